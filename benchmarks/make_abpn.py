"""Write the int8 TFLite file of a network of ABPN's structure (x3, 28 channels, 42.5 k parameters)
with random weights, for `bench_small`.

The structure is that of "Anchor-based Plain Net for Mobile Image Super-Resolution" (CVPR workshops
2021): seven 3x3 convolutions, addition of the repeated input, one depth-to-space. Its speed does
not depend on its weights. Needs TensorFlow, which may be in a separate environment:

    pip install tensorflow-cpu
    python benchmarks/make_abpn.py abpn.tflite
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf

SCALE, CHANNELS = 3, 28


def network(height: int, width: int) -> tf.keras.Model:
    layers = tf.keras.layers
    image = tf.keras.Input((height, width, 3), batch_size=1)
    x = image
    for _ in range(5):
        x = layers.Conv2D(CHANNELS, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(3 * SCALE**2, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(3 * SCALE**2, 3, padding="same")(x)
    x = layers.Add()([x, layers.Concatenate()([image] * SCALE**2)])
    large = (height * SCALE, width * SCALE, 3)
    x = layers.Lambda(lambda t: tf.nn.depth_to_space(t, SCALE), output_shape=large)(x)
    x = layers.Lambda(lambda t: tf.clip_by_value(t, 0.0, 255.0), output_shape=large)(x)
    return tf.keras.Model(image, x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--size", default="180x320", help="height x width of the input (default: %(default)s)"
    )
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    tf.keras.utils.set_random_seed(0)
    model = network(height, width)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    rng = np.random.default_rng(0)
    pictures = rng.uniform(0, 255, (3, 1, height, width, 3)).astype(np.float32)
    converter.representative_dataset = lambda: ([picture] for picture in pictures)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    args.output.write_bytes(converter.convert())
    print(f"{args.output}: {model.count_params():,} parameters")


if __name__ == "__main__":
    main()
