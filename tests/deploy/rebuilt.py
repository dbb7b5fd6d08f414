"""A network made anew from its description."""

from torch import nn

from quantsr.archs import contract
from quantsr.archs.constructors import build_network


def rebuilt(net: nn.Module) -> nn.Module:
    """Another network of the same contract and state, in eval mode."""
    arch = contract.of(net).arch
    again = build_network(arch.pop("type"), arch)
    again.load_state_dict(net.state_dict())
    return again.eval()
