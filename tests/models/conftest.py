"""Fixtures of tests/engine that the tests of models use too."""

from tests.engine.conftest import _one_thread, make_options, pictures

__all__ = ["_one_thread", "make_options", "pictures"]
