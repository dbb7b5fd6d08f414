"""Trained networks as files: how names become files, checkpoints, and the headers of packed
networks.

Only ``checkpoint`` imports torch.
"""
