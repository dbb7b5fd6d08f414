"""Methods of post-training quantization, and the setting of quantizers layer by layer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from quantsr.errors import InputError
from quantsr.quant import calibrate
from quantsr.quant.attention import QuantOperand
from quantsr.quant.fit import fit, in_float
from quantsr.quant.layers import QuantizedLayer, quantized_layers

MethodName = Literal["fit", "minmax", "percentile", "mse", "2dquant"]

METHODS: tuple[MethodName, ...] = get_args(MethodName)

QUANTIZERS: Mapping[MethodName, str] = {
    "fit": "RLQAsymmetric",
    "minmax": "MinMax",
    "percentile": "Percentile",
    "mse": "RLQAsymmetric",
    "2dquant": "Bounds",
}
"""The quantizer of each method; that of the first can be chosen."""

ITERATIONS = 200
"""Of 2DQuant's training of the bounds; the paper has 3,000."""


@dataclass(frozen=True)
class Method:
    """How layers are quantized without training of the network."""

    name: MethodName = "fit"
    """``fit``: each layer in turn, `quantsr.quant.fit`. ``minmax``, ``percentile``, ``mse``:
    calibration alone. ``2dquant``: bounds searched (DOBI), then trained against the float network
    (DQC), `quantsr.engine.bounds_training`."""
    quantizer: str | None = None
    """Of ``fit``: a name in ``QUANTIZER_REGISTRY`` whose codes are integers."""
    correct_bias: bool = True
    """Of ``fit``: whether biases are changed."""
    iterations: int = ITERATIONS
    """Of ``2dquant``; 0 leaves the bounds that were searched."""
    rectifier: int = 0
    """Of ``2dquant``: rank of what is added to each weight (SPR2Q); 0: nothing."""
    mixed: float = 0.0
    """Share of the layers that get one bit more, and of those that get one bit less
    (`quantsr.quant.bit_gradients`), 0 to 0.5."""

    def __post_init__(self) -> None:
        if self.name != "fit" and self.quantizer is not None:
            raise InputError(f"--quantizer: method {self.name} has its own; omit it")
        if self.rectifier and (self.name != "2dquant" or not self.iterations):
            raise InputError(
                "--rectifier: is trained with the bounds; choose --method 2dquant and --iterations"
            )


FIT = Method()
"""The default."""


@torch.no_grad()
def set_layers(
    net: nn.Module,
    batch: Tensor,
    method: Method,
    *,
    fits: bool,
    importance: Mapping[str, Tensor] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Fit (`quantsr.quant.fit`) or calibrate each quantized layer on what the layers before it, set
    already, give of a batch (B, 3, h, w).

    Args:
        fits: whether the method ``fit`` fits; else it calibrates.
        importance: of output channels, by the layer's name (`quantsr.quant.importance`).
        progress: called with the number of layers so far.

    Raises:
        InputError: the network's forward skips a layer.
    """
    fits = fits and method.name == "fit"
    if fits and not any(isinstance(layer, QuantOperand) for layer in quantized_layers(net).values()):
        _fit_beside_float(net, batch, method, importance or {}, progress)
        return
    reached = set()

    def hook(layer: QuantizedLayer, inputs: tuple[Tensor, ...]) -> None:
        if layer in reached:
            return
        reached.add(layer)
        if fits:
            layer.calibrating = False
            with torch._C.DisableTorchFunction():  # the mode that counts products of attention
                fit(layer, inputs[0], correct_bias=method.correct_bias)
        progress(len(reached))

    handles = [layer.register_forward_pre_hook(hook) for layer in layers_of(net)]
    try:
        calibrate(net, [batch], "mse")
    except ValueError as error:
        raise InputError(f"network: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def _fit_beside_float(
    net: nn.Module,
    batch: Tensor,
    method: Method,
    importance: Mapping[str, Tensor],
    progress: Callable[[int], None],
) -> None:
    """`fit` each layer to its input in the quantized network and its output in the float one.

    Both run at once, as the halves of a batch: no layer's output is kept longer than it is read.
    """
    layers = layers_of(net)
    names = {layer: name for name, layer in quantized_layers(net).items()}
    reached: set[QuantizedLayer] = set()
    originals = {layer: copy.deepcopy(layer) for layer in layers}

    def fitted(layer: QuantizedLayer, x: Tensor) -> Tensor:
        theirs, ours = x.chunk(2)
        wanted = in_float(originals[layer], theirs)
        if layer not in reached:
            reached.add(layer)
            weights = importance.get(names[layer])
            with _own_forward(layer):
                fit(layer, ours, wanted, importance=weights, correct_bias=method.correct_bias)
            progress(len(reached))
        return torch.cat([wanted, type(layer).forward(layer, ours)])

    for layer in layers:
        layer.forward = functools.partial(fitted, layer)
    try:
        net(torch.cat([batch, batch]))
    finally:
        for layer in layers:
            del layer.forward
    if missed := [names[layer] for layer in layers if layer not in reached]:
        raise InputError(f"network: its forward skips {', '.join(missed)}")


@contextmanager
def _own_forward(layer: nn.Module) -> Iterator[None]:
    """Calls of the layer compute what its class does, while it is fitted."""
    other = layer.__dict__.pop("forward")
    try:
        yield
    finally:
        layer.forward = other


def quantizes(layer: QuantizedLayer) -> bool:
    """Whether the layer has a quantizer."""
    return layer.weight_quantizer is not None or layer.input_quantizer is not None


def layers_of(net: nn.Module) -> list[QuantizedLayer]:
    """The layers with quantizers, without products of attention."""
    layers = quantized_layers(net).values()
    return [x for x in layers if quantizes(x) and not isinstance(x, QuantOperand)]
