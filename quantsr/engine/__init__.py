"""Training loop, checkpoints and the one evaluation loop."""
