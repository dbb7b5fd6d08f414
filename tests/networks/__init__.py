"""Networks that no part of the package knows."""
