"""Trains on crops with one process or with many, the same program: batches are divided along the "data" axis of a mesh.

Each process composes its own part of every batch: pieces of three photographs, and random boxes in them. A linear layer
learns to name the photograph from a crop. Nothing but the layer's gradient is ever communicated.

    python examples/many_hosts.py

On two hosts, or here for two processes, with the same address on both (on TPU pods and under Slurm, no arguments at all
beyond --processes: JAX finds the others by itself):

    python examples/many_hosts.py --coordinator 127.0.0.1:9911 --processes 2 --process 0 &
    python examples/many_hosts.py --coordinator 127.0.0.1:9911 --processes 2 --process 1
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # draws without a screen

import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib import cbook
from sklearn.datasets import load_sample_image

import jax_crop

BATCH, SIDE, BOXES, CROP_SIZE = 16, 160, 8, (16, 16)
STEPS = 100


def photographs() -> list[np.ndarray]:
    hopper = plt.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return [hopper, load_sample_image("china.jpg"), load_sample_image("flower.jpg")]


def examples(step: int, items: range, photos: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items of a batch: pieces of photographs ``[B, SIDE, SIDE, 3]``, boxes ``[B, BOXES, 4]`` and which photographs."""
    images, boxes, labels = [], [], []
    for item in items:
        rng = np.random.default_rng((step, item))  # an item is the same whoever composes it
        label = rng.integers(len(photos))
        y, x = (rng.integers(n - SIDE) for n in photos[label].shape[:2])
        first = rng.uniform(0, 0.6, (BOXES, 2))
        images.append(photos[label][y : y + SIDE, x : x + SIDE])
        boxes.append(np.concatenate([first, first + rng.uniform(0.1, 0.4, (BOXES, 2))], axis=1))
        labels.append(label)
    return np.stack(images), np.stack(boxes).astype(np.float32), np.array(labels, np.int32)


def loss(
    layer: dict[str, jax.Array], images: jax.Array, boxes: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    crops = jax_crop.crop_and_resize(images, boxes, None, CROP_SIZE) / 255 - 0.5
    logits = crops.reshape(*crops.shape[:2], -1) @ layer["kernel"] + layer["bias"]
    right = jnp.argmax(logits, axis=-1) == labels[:, None]
    repeated = jnp.broadcast_to(labels[:, None], logits.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(logits, repeated).mean(), right.mean()


def main(output: str) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    along_batch, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    per_process = BATCH // jax.process_count()
    mine = range(jax.process_index() * per_process, (jax.process_index() + 1) * per_process)
    photos = photographs()

    optimizer = optax.adam(3e-3)
    layer = {
        "kernel": np.zeros((CROP_SIZE[0] * CROP_SIZE[1] * 3, len(photos)), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    state = jax.device_put((layer, optimizer.init(layer)), everywhere)

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state, images, boxes, labels):
        layer, moments = state
        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(layer, images, boxes, labels)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(layer, updates), moments), value, accuracy

    values, accuracies = [], []
    for step in range(STEPS):
        parts = examples(step, mine, photos)
        batch = (jax.make_array_from_process_local_data(along_batch, part) for part in parts)
        state, value, accuracy = train(state, *batch)
        values.append(float(value))
        accuracies.append(float(accuracy))

    if jax.process_index() == 0:
        draw(parts, values, output)
        print(
            f"{jax.process_count()} process(es), {jax.device_count()} device(s): the loss fell from {values[0]:.6f} to "
            f"{np.mean(values[-10:]):.6f}, {np.mean(accuracies[-10:]):.1%} of the last crops were named right; "
            f"the picture is {output}"
        )


def draw(parts: tuple[np.ndarray, np.ndarray, np.ndarray], values: list[float], output: str) -> None:
    images, boxes, _ = parts
    figure, axes = plt.subplots(1, 5, figsize=(14, 3), layout="constrained", width_ratios=(1, 1, 1, 1, 1.6))
    for place, image, own in zip(axes[:-1], images, boxes, strict=False):
        place.imshow(image)
        place.axis("off")
        for y1, x1, y2, x2 in own * (SIDE - 1):
            place.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=1.2))
    axes[-1].plot(values)
    axes[-1].set(xlabel="step", ylabel="loss", ylim=(0, None))
    figure.savefig(output, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="many_hosts.png")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, help="which of the processes this is")
    parser.add_argument("--coordinator", help="address and port of the first process")
    options = parser.parse_args()
    if options.processes > 1:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    main(options.output)
