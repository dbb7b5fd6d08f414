"""The engines that run a packed network, each in a file of its own; `select.create` makes one by
name."""
