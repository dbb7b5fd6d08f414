"""Costs, comparisons, reports, and the checks of ``quantsr check``."""
