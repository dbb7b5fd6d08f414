"""Cost, comparison and reports."""
