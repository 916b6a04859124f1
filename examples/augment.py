"""Random resized crops and flips of a batch, on the device, beside Pillow's: `python augment.py [--output FILE]`.

This is torchvision's and timm's RandomResizedCrop and RandomHorizontalFlip, antialiased and bicubic. A flip is a box
whose x1 and x2 are exchanged, so one crop_and_resize does all the work, and uint8 images are all that travels to the
device. Pillow is given the same boxes.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # draws without a screen

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import cbook
from PIL import Image
from sklearn.datasets import load_sample_image

from jax_crop import boxes, crop_and_resize

BATCH, IMAGE_SIZE, CROP_SIZE = 64, (400, 400), (224, 224)
SHOWN = 4  # crops of each photograph in the picture


@functools.partial(jax.jit, static_argnames="crop_size")
def augment(key, images, crop_size=CROP_SIZE):
    """``[B, H, W, 3]`` uint8 to crops ``[B, *crop_size, 3]`` from 0 to 255, and the boxes ``[B, 4]`` of these."""
    of_boxes, of_flips = jax.random.split(key)
    parts = boxes.random_resized(of_boxes, len(images), images.shape[1:3], align_corners=False)
    is_flipped = jax.random.bernoulli(of_flips, 0.5, (len(images), 1))
    parts = jnp.where(is_flipped, parts[:, jnp.array([0, 3, 2, 1])], parts)
    crops = crop_and_resize(images, parts[:, None], None, crop_size, "cubic", align_corners=False, antialias=True)
    return crops[:, 0].clip(0, 255), parts  # a cubic kernel overshoots


def by_pillow(image, box, crop_size=CROP_SIZE):
    """One crop as Pillow makes it, uint8."""
    y1, x1, y2, x2 = np.float64(box) * np.tile(image.shape[:2], 2)
    upright = (min(x1, x2), y1, max(x1, x2), y2)
    crop = Image.fromarray(image).resize(crop_size[::-1], Image.Resampling.BICUBIC, box=upright)
    return np.asarray(crop)[:, ::-1] if x2 < x1 else np.asarray(crop)


def photographs() -> np.ndarray:
    """``[BATCH, *IMAGE_SIZE, 3]`` uint8: three photographs over and over."""
    photos = [
        plt.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))[30:430, 60:460],
        load_sample_image("china.jpg")[:400, :400],
        load_sample_image("flower.jpg")[20:420, 110:510],
    ]
    return np.resize(photos, (BATCH, *IMAGE_SIZE, 3))


def main(output: str) -> None:
    images = photographs()
    key, on_device = jax.random.key(0), jnp.asarray(images)
    crops, parts = augment(key, on_device)
    ours = np.asarray(crops.round()).astype(np.uint8)
    pillows = np.stack([by_pillow(*pair) for pair in zip(images, np.asarray(parts), strict=True)])
    draw(images, ours, pillows, output)

    seconds = []
    for i in range(10):
        start = time.perf_counter()
        jax.block_until_ready(augment(jax.random.fold_in(key, i), on_device))
        seconds.append(time.perf_counter() - start)
    rate = BATCH / statistics.median(seconds)
    difference = abs(ours.astype(int) - pillows)
    print(f"images {images.shape} {images.dtype} -> crops {crops.shape} {crops.dtype}")
    print(f"Pillow, which also rounds between rows and columns, differs by {difference.mean():.2f} of 255 on average")
    print(
        f"{rate:,.0f} images per second were cropped, flipped and resized on {crops.device}, "
        f"in one call for {BATCH}; the picture is {output}"
    )


def draw(images, ours, pillows, output: str) -> None:
    """Each photograph to the left, its first crops in the middle, and Pillow's to the right."""
    figure, axes = plt.subplots(3, 1 + 2 * SHOWN, figsize=(12, 4.2), layout="constrained")
    for i, row in enumerate(axes):
        for place, picture in zip(row, [images[i], *ours[i::3][:SHOWN], *pillows[i::3][:SHOWN]], strict=True):
            place.imshow(picture)
            place.axis("off")
    for column, title in {0: "photograph", 1: "jax_crop", 1 + SHOWN: "Pillow, the same boxes"}.items():
        axes[0, column].set_title(title, fontsize=13, loc="left")
    figure.savefig(output, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="augment.png")
    main(parser.parse_args().output)
