"""The built-in demo shop: a generated log and catalogue, written as real files."""
