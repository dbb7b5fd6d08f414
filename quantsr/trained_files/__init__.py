"""Files of trained networks: from names to files, checkpoints, and the headers of packed networks.

Only ``checkpoint`` imports torch.
"""
