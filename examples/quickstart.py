"""Cuts six boxes out of one photograph, in one jitted call, and draws them: `python quickstart.py [--output FILE]`."""

import argparse
import time

import jax
import matplotlib

matplotlib.use("Agg")  # draws without a screen

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import cbook

import jax_crop

CROP_SIZE = (160, 160)
OUTSIDE = np.array([255.0, 200.0, 60.0])  # the colour of what is beyond the photograph's border

# [y1, x1, y2, x2] in pixels
BOXES = {
    "whole photograph": [0, 0, 599, 511],
    "portrait": [55, 85, 375, 405],
    "flipped": [55, 405, 375, 85],
    "cap badge": [10, 192, 130, 332],
    "beyond the border": [-60, -60, 130, 130],
    "wide, stretched": [475, 315, 540, 460],
}


def main(output: str) -> None:
    photo = plt.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))  # [600, 512, 3] uint8
    boxes = jax_crop.boxes.normalize(list(BOXES.values()), photo.shape[:2])

    @jax.jit
    def crop(image, boxes):
        return jax_crop.crop_and_resize(image, boxes, None, CROP_SIZE, extrapolation_value=OUTSIDE, antialias=True)

    start = time.perf_counter()
    crops = jax.block_until_ready(crop(photo, boxes))
    compiled = time.perf_counter()
    crops = jax.block_until_ready(crop(photo, boxes))
    again = time.perf_counter()

    draw(photo, np.asarray(crops), output)
    print(f"photograph {photo.shape} {photo.dtype} -> crops {crops.shape} {crops.dtype}")
    for title, box, colour in zip(BOXES, np.asarray(boxes), np.asarray(crops).mean((1, 2)), strict=True):
        numbers = " ".join(f"{x:6.3f}" for x in box)
        print(f"  [{numbers}]  mean RGB {colour.round().astype(int)}  {title}")
    times = f"{compiled - start:.2f} s to compile and run, {(again - compiled) * 1e3:.1f} ms to run again"
    print(f"{times} on {crops.device}")
    print(f"{len(crops)} boxes of one photograph became crops of {CROP_SIZE} in one call; the picture is {output}")


def draw(photo: np.ndarray, crops: np.ndarray, output: str) -> None:
    """The photograph with its boxes to the left, the crops to the right."""
    figure = plt.figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.1, 2])
    axes = left.subplots()
    axes.imshow(photo)
    axes.set(xlim=(-75, 526), ylim=(614, -75))
    axes.axis("off")
    for place, (title, (y1, x1, y2, x2)), crop, colour in zip(
        right.subplots(2, 3).flat, BOXES.items(), crops, plt.get_cmap("Set1").colors, strict=False
    ):
        style = "--" if x2 < x1 else "-"  # drawn over the box that it flips
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, linewidth=2, linestyle=style)
        place.imshow(crop.round().astype(np.uint8))
        place.set_title(title, fontsize=13)
        place.set(xticks=[], yticks=[])
        for spine in place.spines.values():
            spine.set(color=colour, linewidth=3, linestyle=style)
    figure.savefig(output, dpi=140)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="quickstart.png")
    main(parser.parse_args().output)
