"""Devices and processes: what training steps and the engine both need to know of the machine."""
