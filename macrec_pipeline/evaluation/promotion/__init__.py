"""Promotion: champion and challenger are compared on the same users and judged by rules."""
