"""Networks at the edge of what programs can hold, each of operations that few networks have side by
side."""

from __future__ import annotations

from quantsr.deploy.packed.model import PackedModel
from tests.deploy.programs import Written, swin


def two_windows() -> PackedModel:
    """Attention in windows of 4 and of 8 pixels, one shifted, on the same value."""
    net = Written(8)
    x = net.norm(net.conv(net.x, "first", 16, 3), "norm", 16, 20)
    a = net.attention(net.conv(x, "qkv4", 48, 16, 0), "attn4", 2, 4, 2)
    b = net.attention(net.conv(x, "qkv8", 48, 16, 0), "attn8", 2, 8, 4)
    return net.finish(net.conv(net.add("add", a, b), "last", 3, 16))


def norm_of_an_enlarged_map() -> PackedModel:
    net = Written()
    x = net.add("upsample_nearest", net.conv(net.x, "first", 16, 3), factor=2)
    x = net.conv(net.norm(x, "norm", 16, 20), "linear", 16, 16, 0)
    return net.finish(net.conv(x, "last", 3, 16), scale=2)


def gate_by_a_linear_layer() -> PackedModel:
    net = Written()
    x = net.norm(net.conv(net.x, "first", 16, 3), "norm", 16, 20)
    gate = net.add("sigmoid", net.conv(net.add("mean", x), "gate", 16, 16, 0))
    return net.finish(net.conv(net.add("multiply", x, gate), "last", 3, 16))


def attention_and_gate() -> PackedModel:
    net = Written(8)
    x = net.norm(net.conv(net.x, "first", 16, 3), "norm", 16, 20)
    y = net.attention(net.conv(x, "qkv", 48, 16, 0), "attn", 2, 8, 4)
    gate = net.add("sigmoid", net.conv(net.add("mean", x), "gate", 16, 16, 1))
    return net.finish(net.conv(net.add("multiply", y, gate), "last", 3, 16))


def codes_of_a_mean() -> PackedModel:
    """A quantized convolution of 3x3 pixels on a map of one."""
    net = Written()
    x = net.conv(net.x, "first", 16, 3)
    gate = net.add("sigmoid", net.quantized(net.add("mean", x), "gate", 16, 16))
    return net.finish(net.conv(net.add("multiply", x, gate), "last", 3, 16))


def picture_read_twice() -> PackedModel:
    net = Written()
    other = net.build.add("normalize", 0, mean=[0.0, 0.0, 0.0], range=100.0)
    x = net.add("add", net.conv(net.x, "a", 8, 3), net.conv(net.x, "b", 8, 3))
    x = net.add("add", x, net.conv(other, "c", 8, 3))
    return net.finish(net.add("add", net.conv(x, "last", 3, 8, gain=0.5), net.x))


def layer_used_twice() -> PackedModel:
    net = Written()
    x = net.add("relu", net.quantized(net.conv(net.x, "first", 16, 3), "shared", 16, 16))
    x = net.add("relu", net.quantized(x, "shared", 16, 16))
    y = net.add("scale", net.conv(x, "twice", 16, 16), factor=0.25)
    return net.finish(net.conv(net.add("add", y, net.conv(x, "twice", 16, 16)), "last", 3, 16))


def one_channel_times_many() -> PackedModel:
    """The value of one channel comes first."""
    net = Written()
    x = net.conv(net.x, "first", 8, 3)
    gate = net.add("sigmoid", net.conv(x, "gate", 1, 8))
    return net.finish(net.conv(net.add("multiply", gate, x), "last", 3, 8))


def shuffle_behind_the_last_convolution() -> PackedModel:
    net = Written()
    x = net.add("relu", net.conv(net.x, "first", 8, 3))
    x = net.add("pixel_shuffle", net.conv(x, "up", 32, 8), factor=2)
    x = net.add("pixel_shuffle", net.conv(x, "last", 12, 8), factor=2)
    return net.finish(x, scale=4)


def windows_below_the_multiple() -> PackedModel:
    return swin(window=4, multiple=16)


def attention_wider_than_the_stream() -> PackedModel:
    return swin(inner=32)


ODD = [
    two_windows,
    norm_of_an_enlarged_map,
    gate_by_a_linear_layer,
    attention_and_gate,
    codes_of_a_mean,
    picture_read_twice,
    layer_used_twice,
    one_channel_times_many,
    shuffle_behind_the_last_convolution,
    windows_below_the_multiple,
    attention_wider_than_the_stream,
]
