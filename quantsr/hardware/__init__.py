"""Devices and processes, for training steps and the engine."""
