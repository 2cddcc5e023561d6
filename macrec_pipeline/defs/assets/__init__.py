"""The assets, one module a part of the graph. A body is: load, one core call, save, report."""
