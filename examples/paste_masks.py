"""Pastes the small soft masks of a mask head into a photograph: `python paste_masks.py [--output FILE]`.

A mask of 28 x 28 pixels becomes one of the photograph's size by one crop of the mask, from the box that
`jax_crop.boxes.invert` gives. What stands in for the network is the redness of the photograph in each box.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # draws without a screen

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from jax_crop import boxes, crop_and_resize, roi_align

# [y1, x1, y2, x2] in pixels, counted from their edges; the second reaches beyond the photograph
BLOSSOMS = np.array([[80, 162, 365, 452], [368, 280, 460, 470], [386, 568, 427, 624]], np.float32)
COLOURS = np.array([[255, 0, 160], [0, 200, 255], [255, 235, 0]])


@functools.partial(jax.jit, static_argnames=("image_size", "batch_size"))
def paste(masks, in_pixels, image_size, batch_size=None):
    """Soft masks [N, h, w] and their boxes [N, 4] as bool [N, H, W], batch_size of them at a time."""
    height, width = masks.shape[1:]
    padded = jnp.pad(masks, ((0, 0), (1, 1), (1, 1)))[..., None]  # with zeros that the border fades into
    around = boxes.scale(in_pixels, (1 + 2 / height, 1 + 2 / width))
    views = boxes.invert(boxes.normalize(around, image_size, align_corners=False))

    def paste_one(mask_and_view):
        mask, view = mask_and_view
        pasted = crop_and_resize(mask, view[None], None, image_size, align_corners=False)
        return pasted[0, ..., 0] >= 0.5

    return jax.lax.map(paste_one, (padded, views), batch_size=batch_size)


def predict(photo):
    """Soft masks ``[N, 28, 28]`` in [0, 1] of the blossoms: each pixel averages what it covers, as a network would."""
    red, green, blue = jnp.unstack(roi_align(photo, BLOSSOMS, None, (28, 28), sampling_ratio=4), axis=-1)
    return jax.nn.sigmoid((red - (green + blue) / 2 - 40) / 10)


def main(output: str) -> None:
    photo = load_sample_image("flower.jpg")  # [427, 640, 3] uint8
    masks = predict(photo)
    pasted = jax.block_until_ready(paste(masks, BLOSSOMS, photo.shape[:2]))
    start = time.perf_counter()
    pasted = jax.block_until_ready(paste(masks, BLOSSOMS, photo.shape[:2]))
    seconds = time.perf_counter() - start

    draw(photo, masks, np.asarray(pasted), output)
    print(f"masks {masks.shape} {masks.dtype} -> {pasted.shape} {pasted.dtype}, pixels: {pasted.sum((1, 2))}")
    print(f"{len(masks)} masks were pasted in {seconds * 1e3:.1f} ms on {pasted.device}; the picture is {output}")


def draw(photo, masks, pasted, output: str) -> None:
    """The masks to the left, the photograph with boxes and pasted masks to the right."""
    figure = plt.figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 4.5])
    for axes, mask, colour in zip(left.subplots(3), masks, COLOURS, strict=True):
        axes.imshow(mask, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=colour / 255, linewidth=3)
    painted = photo.astype(np.float32)
    axes = right.subplots()
    for mask, colour, (y1, x1, y2, x2) in zip(pasted, COLOURS, BLOSSOMS - 0.5, strict=True):  # drawn from centres
        painted[mask] = (painted[mask] + colour) / 2
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour / 255, linewidth=2)
    axes.imshow(painted.round().astype(np.uint8))
    axes.set(xlim=(-10, 650), ylim=(470, -10))
    axes.axis("off")
    figure.savefig(output, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="paste_masks.png")
    main(parser.parse_args().output)
