"""Typed options: the schema, the loader and the check command."""
