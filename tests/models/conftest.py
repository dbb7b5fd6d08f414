"""The engine's tiny pictures and options serve the model's tests too."""

from tests.engine.conftest import _one_thread, make_options, pictures

__all__ = ["_one_thread", "make_options", "pictures"]
