"""BasicSR model classes: what one training step does."""
