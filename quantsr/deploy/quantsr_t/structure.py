"""What a packed QuantSR-T consists of: names and shapes of its parts, and the units that run at a
depth. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from quantsr.deploy.model import Header, upsample_stages
from quantsr.errors import InputError

TAIL_FEATURES = 64
"""Channels of SwinIR's classical tail."""


class ConvPlace(NamedTuple):
    """A conv on a map, and what follows it."""

    name: str
    shape: tuple[int, ...]
    slope: float | None = None
    """Of a LeakyReLU; None where there is none."""
    shuffle: int = 1
    """Factor of a pixel shuffle."""


@dataclass(frozen=True)
class Structure:
    """The network's shape, as its constructor's arguments give it."""

    dim: int
    """C, channels of the features."""
    blocks: int
    """RSTBs."""
    layers: int
    """Swin layers in each."""
    heads: int
    window: int
    hidden: int
    """Size of the MLP's hidden layer."""
    scale: int
    classical: bool
    """Whether the tail is SwinIR's classical one (`pixelshuffle`)."""
    three_convs: bool
    """Whether RSTBs and body end in three convs."""
    counts_layers: bool
    """Whether a unit of depth is a Swin layer instead of an RSTB."""
    quantized_attention: bool

    @classmethod
    def of(cls, header: Header) -> Structure:
        """Raises ValueError for arguments that no QuantSR-T has, or that do not fit the header."""
        arch = header.arch

        def number(key: str, low: int, high: int) -> int:
            value = arch.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"arch.{key}: must be an integer in {low}..{high}")
            return value

        def choice(key: str, *known: Any) -> Any:
            if not any(arch.get(key) is k or arch.get(key) == k for k in known):
                raise ValueError(f"arch.{key}: must be one of {', '.join(map(str, known))}")
            return arch[key]

        ratio = arch.get("mlp_ratio")
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 < ratio <= 64:
            raise ValueError("arch.mlp_ratio: must be a number in 0..64")
        dim = number("embed_dim", 1, 1 << 12)
        found = cls(
            dim=dim,
            blocks=number("num_block", 1, 1 << 10),
            layers=number("layers_per_block", 1, 1 << 8),
            heads=number("num_heads", 1, dim),
            window=number("window_size", 2, 64),
            hidden=int(dim * ratio),
            scale=header.scale,
            classical=choice("upsampler", "pixelshuffledirect", "pixelshuffle") == "pixelshuffle",
            three_convs=choice("resi_connection", "1conv", "3conv") == "3conv",
            counts_layers=choice("dqa_unit", "rstb", "layer") == "layer",
            quantized_attention=bool(choice("quantize_attention", True, False))
            and number("nbits_a", 2, 32) <= 8,
        )
        if found.dim % found.heads or found.hidden < 1 or (found.three_convs and dim < 4):
            raise ValueError(f"arch: {found.heads} heads, {dim} channels and mlp_ratio {ratio} do not fit")
        if header.scale not in (2, 3, 4, 8) or number("upscale", 2, 8) != header.scale:
            raise ValueError(f"scale: {header.scale} is not that of a QuantSR-T")
        if header.num_block != found.blocks * (found.layers if found.counts_layers else 1):
            raise ValueError(f"num_block: {header.num_block} units are not those of its arch")
        return found

    @property
    def tokens(self) -> int:
        """N, tokens in a window."""
        return self.window**2

    def plan(self, units: tuple[int, ...] | set[int]) -> list[tuple[int, tuple[int, ...]]]:
        """(index, its Swin layers) of each RSTB that runs where `units` do; where units are layers,
        all RSTBs run, if only their conv."""
        if not self.counts_layers:
            return [(i, tuple(range(self.layers))) for i in sorted(units)]
        return [
            (i, tuple(j for j in range(self.layers) if i * self.layers + j in units))
            for i in range(self.blocks)
        ]

    def closing(self, prefix: str) -> list[ConvPlace]:
        """The conv or three at the end of an RSTB (`layers.0.conv`) or the body
        (`conv_after_body`)."""
        if not self.three_convs:
            return [ConvPlace(prefix, (self.dim, self.dim, 3, 3))]
        narrow = self.dim // 4
        return [
            ConvPlace(f"{prefix}.0", (narrow, self.dim, 3, 3), slope=0.2),
            ConvPlace(f"{prefix}.2", (narrow, narrow, 1, 1), slope=0.2),
            ConvPlace(f"{prefix}.4", (self.dim, narrow, 3, 3)),
        ]

    def tail(self) -> list[ConvPlace]:
        """The convs after the body."""
        if not self.classical:
            out = 3 * self.scale**2
            return [ConvPlace("upsample.0", (out, self.dim, 3, 3), shuffle=self.scale)]
        feat = TAIL_FEATURES
        return [
            ConvPlace("conv_before_upsample.0", (feat, self.dim, 3, 3), slope=0.01),
            *(ConvPlace(n, (feat * f**2, feat, 3, 3), shuffle=f) for n, f in upsample_stages(self.scale)),
            ConvPlace("conv_last", (3, feat, 3, 3)),
        ]

    def layer_shapes(self, units: set[int]) -> dict[str, tuple[int, ...]]:
        """Shape of every conv and linear layer where `units` run."""
        dim = self.dim
        shapes: dict[str, tuple[int, ...]] = {"conv_first": (dim, 3, 3, 3)}
        for i, layers in self.plan(units):
            for j in layers:
                shapes |= {
                    f"layers.{i}.blocks.{j}.attn.qkv": (3 * dim, dim),
                    f"layers.{i}.blocks.{j}.attn.proj": (dim, dim),
                    f"layers.{i}.blocks.{j}.mlp.fc1": (self.hidden, dim),
                    f"layers.{i}.blocks.{j}.mlp.fc2": (dim, self.hidden),
                }
            shapes |= {conv.name: conv.shape for conv in self.closing(f"layers.{i}.conv")}
        return shapes | {conv.name: conv.shape for conv in [*self.closing("conv_after_body"), *self.tail()]}

    def float_shapes(self, units: set[int]) -> dict[str, tuple[int, ...]]:
        """Shape of every LayerNorm tensor and table of relative position biases where `units`
        run."""
        norms = ["norm_first"]
        tables: dict[str, tuple[int, ...]] = {}
        for i, layers in self.plan(units):
            for j in layers:
                prefix = f"layers.{i}.blocks.{j}"
                norms += [f"{prefix}.norm1", f"{prefix}.norm2"]
                tables[f"{prefix}.attn.relative_position_bias_table"] = (
                    (2 * self.window - 1) ** 2,
                    self.heads,
                )
        norms.append("norm")
        return {f"{n}.{p}": (self.dim,) for n in norms for p in ("weight", "bias")} | tables

    def operand_channels(self, units: set[int]) -> dict[str, int]:
        """Last dimension of every quantized operand of an attention product where `units` run."""
        if not self.quantized_attention:
            return {}
        sizes = {
            "scores.left": self.dim,
            "scores.right": self.dim,
            "mixture.left": self.tokens,
            "mixture.right": self.dim,
        }
        return {
            f"layers.{i}.blocks.{j}.attn.{name}": size
            for i, layers in self.plan(units)
            for j in layers
            for name, size in sizes.items()
        }


def used_units(header: Header) -> set[int]:
    """The units that run at any depth. Raises ValueError for depths that cannot be run."""
    try:
        return {i for depth in header.depths for i in header.blocks_kept(depth)}
    except InputError as error:
        raise ValueError(str(error)) from error
