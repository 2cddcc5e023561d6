"""Cleaning: raw rows become the interactions that are used, or go to quarantine with a reason."""
