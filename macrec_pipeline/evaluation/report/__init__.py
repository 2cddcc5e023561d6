"""Render the HTML page of an evaluation: tables, charts, sample users with images, and how the numbers were made."""
