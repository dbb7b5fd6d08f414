"""The training loop, checkpoints, and the only evaluation loop."""
