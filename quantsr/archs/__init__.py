"""Network architectures, registered in BasicSR's ARCH_REGISTRY."""
