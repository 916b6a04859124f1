"""A crop finds a flower: gradient descent through the box. `python learn_where_to_look.py [--output FILE]`.

All that moves is the box, downhill in the difference between its crop and the crop that is looked for. It starts on the
pixel grid, with every sample exactly on a pixel. There the slope of jax_crop points toward higher indices, while
TensorFlow's CropAndResize reports 0, and a box with slope 0 stays where it is. That happens only to samples exactly on
pixels: started 0.3 pixels further down and to the right, TensorFlow's slope finds the flower just as well.

TensorFlow is not needed: `floor_and_ceil` is its kernel in JAX, with its slope (the tests compare the two).
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
from matplotlib.collections import LineCollection
from sklearn.datasets import load_sample_image

import jax_crop

# With 2^8 steps from the first pixel to the last, pixels have exact coordinates, and all arithmetic on them is exact.
SIZE = 257
TARGET = np.array([44, 38, 219, 211])  # [y1, x1, y2, x2] in pixels
START = np.array([125, 4, 253, 132])
OFF_GRID = 0.3  # how far the last run starts from there
CROP_SIZE = (129, 129)  # the start box has 129 pixels a side, so that every sample stands on one
STEPS = 150


def photograph() -> jax.Array:
    """``[SIZE, SIZE, 3]``, from 0 to 1."""
    flower = load_sample_image("flower.jpg") / np.float32(255)
    square = jax_crop.boxes.normalize([[0, 95, 426, 521]], flower.shape[:2])
    return jax_crop.crop_and_resize(flower, square, None, (SIZE, SIZE))[0]


def blurred(image: jax.Array) -> jax.Array:
    """Without the fine petals, each of which looks like its neighbour: the way down then has few false bottoms."""
    return jax.image.resize(jax.image.resize(image, (16, 16, 3), "cubic"), image.shape, "cubic")


def floor_and_ceil(image, boxes, box_indices, crop_size):
    """The crop of TensorFlow's kernel, between the pixels floor(y) and ceil(y): on a pixel, they are the same."""
    del box_indices

    def along(axis, start, stop):  # where the samples are; what is read there, and between which pixels
        size, n = image.shape[axis], crop_size[axis]
        place = start * (size - 1) + np.arange(n, dtype=np.float32) * ((stop - start) * (size - 1) / (n - 1))
        low, high = (jnp.clip(f(place), 0, size - 1).astype(int) for f in (jnp.floor, jnp.ceil))
        return low, high, place - jnp.floor(place), (place >= 0) & (place <= size - 1)

    def crop(box):
        top, bottom, down, in_rows = along(0, box[0], box[2])
        left, right, across, in_columns = along(1, box[1], box[3])
        down, across = down[:, None, None], across[None, :, None]
        upper = image[top][:, left] + (image[top][:, right] - image[top][:, left]) * across
        lower = image[bottom][:, left] + (image[bottom][:, right] - image[bottom][:, left]) * across
        return jnp.where((in_rows[:, None] & in_columns)[..., None], upper + (lower - upper) * down, 0)

    return jax.vmap(crop)(boxes)


@functools.partial(jax.jit, static_argnames="crop_and_resize")
def learn(image, target, start, crop_and_resize=jax_crop.crop_and_resize):
    """Every box of the way, ``[STEPS, 4]``, and how far its crop was from the target, ``[STEPS]``."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, STEPS))

    def loss(box):
        return jnp.mean((crop_and_resize(image, box[None], None, CROP_SIZE)[0] - target) ** 2)

    def step(carry, _):
        box, state = carry
        value, slope = jax.value_and_grad(loss)(box)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(box, updates), state), (box, value)

    return jax.lax.scan(step, (start, optimizer.init(start)), None, STEPS)[1]


def main(output: str) -> None:
    photo = photograph()
    image = blurred(photo)
    start, truth = jax_crop.boxes.normalize([START, TARGET], (SIZE, SIZE))
    target = jax_crop.crop_and_resize(image, truth[None], None, CROP_SIZE)[0]
    ours = learn(image, target, start)
    tensorflows = learn(image, target, start, floor_and_ceil)
    off_grid = learn(image, target, start + OFF_GRID / (SIZE - 1), floor_and_ceil)
    draw(photo, truth, ours, tensorflows, off_grid, output)

    moved, stuck, freed = (np.asarray(way[0]) * (SIZE - 1) for way in (ours, tensorflows, off_grid))
    for step in (0, 10, 30, 70, STEPS - 1):
        box = " ".join(f"{x:6.1f}" for x in moved[step])
        losses = f"{ours[1][step]:.6f}, with TensorFlow's slope {tensorflows[1][step]:.6f}"
        print(f"step {step:3d}: box [{box}], loss {losses}")
    print(
        f"the box found the flower to within {abs(moved[-1] - TARGET).max():.2f} pixels in {STEPS} steps; "
        f"with TensorFlow's slope it moved by {abs(stuck[-1] - START).max():.2f}, and, started {OFF_GRID} pixels "
        f"off the grid, came to within {abs(freed[-1] - TARGET).max():.2f}; the picture is {output}"
    )


def draw(photo, truth, ours, tensorflows, off_grid, output: str) -> None:
    """The way over the photograph, and beside it what the crops show; below, how the loss fell."""
    figure = plt.figure(figsize=(8, 7.6), layout="constrained")
    upper, losses = figure.subfigures(2, 1, height_ratios=[1.35, 1])
    left, crops = upper.subfigures(1, 2, width_ratios=[1.1, 1])
    way, colours = np.asarray(ours[0]) * (SIZE - 1), plt.get_cmap("cool")
    axes = left.subplots()
    axes.imshow(photo)
    axes.set_title("the way of the box", fontsize=13)
    axes.axis("off")
    every = np.unique(np.geomspace(1, STEPS, 10).astype(int)) - 1
    outlines = [[(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)] for y1, x1, y2, x2 in way[every]]
    axes.add_collection(LineCollection(outlines, colors=colours(every / STEPS), linewidths=1.5))
    centre = (way[:, :2] + way[:, 2:]) / 2
    axes.plot(*centre[:, ::-1].T, color="white", linewidth=2)
    axes.plot(*centre[-1, ::-1], "o", color="white")
    y1, x1, y2, x2 = np.asarray(truth) * (SIZE - 1)
    axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], ":", color="white", linewidth=2.5)

    boxes = jnp.stack([truth, ours[0][0], ours[0][-1], tensorflows[0][-1]])
    titles = ["looked for", "start", "found", "TF's, from pixels"]
    for place, title, crop in zip(
        crops.subplots(2, 2).flat, titles, jax_crop.crop_and_resize(photo, boxes, None, CROP_SIZE), strict=True
    ):
        place.imshow(crop)
        place.set_title(title, fontsize=12)
        place.axis("off")
    axes = losses.subplots()
    axes.plot(ours[1], color=colours(0.7), linewidth=2.5, label="jax_crop")
    axes.plot(tensorflows[1], color="gray", linewidth=2.5, linestyle="--", label="TensorFlow's slope: 0 on pixels")
    label = f"TensorFlow's slope, started {OFF_GRID} px off them"
    axes.plot(off_grid[1], color="gray", linewidth=2.5, linestyle=":", label=label)
    axes.set(xlabel="step", ylabel="mean squared difference", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", fontsize=12)
    figure.savefig(output, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="learn_where_to_look.png")
    main(parser.parse_args().output)
