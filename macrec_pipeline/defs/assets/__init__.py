"""The assets, one module per part of the graph. Each asset loads, makes one core call, saves and reports."""
