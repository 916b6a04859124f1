"""Random resized crops and flips of a batch, on the device, in one call: `python augment.py [--output FILE]`.

A flip is a box whose x1 and x2 are exchanged, so one crop_and_resize does all the work, and uint8 images are all that
travels to the device.
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
from sklearn.datasets import load_sample_image

import jax_crop

BATCH, IMAGE_SIZE, CROP_SIZE = 64, (256, 256), (224, 224)
MEAN, STD = jnp.array([123.7, 116.3, 103.5]), jnp.array([58.4, 57.1, 57.4])  # ImageNet's


def random_boxes(key, count, image_size, area=(0.2, 1.0), aspect=(3 / 4, 4 / 3), flip=0.5):
    """Boxes ``[count, 4]`` of random area (as a share of the image), aspect ratio and place, some flipped."""
    height, width = image_size
    keys = jax.random.split(key, 4)
    share = jax.random.uniform(keys[0], count, minval=area[0], maxval=area[1])
    ratio = jnp.exp(jax.random.uniform(keys[1], count, minval=np.log(aspect[0]), maxval=np.log(aspect[1])))
    sides = jnp.sqrt(jnp.stack([share / ratio * width / height, share * ratio * height / width], axis=1))
    sides = jnp.minimum(sides, 1)
    y1, x1 = (jax.random.uniform(keys[2], (count, 2)) * (1 - sides)).T
    y2, x2 = y1 + sides[:, 0], x1 + sides[:, 1]
    flipped = jax.random.bernoulli(keys[3], flip, count)
    return jnp.stack([y1, jnp.where(flipped, x2, x1), y2, jnp.where(flipped, x1, x2)], axis=1)


@functools.partial(jax.jit, static_argnames="crop_size")
def augment(key, images, crop_size=CROP_SIZE):
    """``[B, H, W, 3]`` uint8 to ``[B, *crop_size, 3]`` float32 of mean 0 and deviation 1, about."""
    boxes = random_boxes(key, images.shape[0], images.shape[1:3])[:, None]  # one for each image
    crops = jax_crop.crop_and_resize(images, boxes, None, crop_size)[:, 0]
    return (crops - MEAN) / STD


def photographs() -> np.ndarray:
    """``[BATCH, *IMAGE_SIZE, 3]`` uint8: three photographs over and over."""
    photos = [
        plt.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))[:512],
        load_sample_image("china.jpg")[:, :427],
        load_sample_image("flower.jpg")[:, 100:527],
    ]
    resized = [jax.image.resize(jnp.float32(photo), (*IMAGE_SIZE, 3), "linear") for photo in photos]
    return np.resize(jnp.round(jnp.stack(resized)).astype(jnp.uint8), (BATCH, *IMAGE_SIZE, 3))


def main(output: str) -> None:
    images = jnp.asarray(photographs())
    key = jax.random.key(0)
    crops = augment(key, images)
    draw(images, crops, output)

    seconds = []
    for i in range(10):
        start = time.perf_counter()
        jax.block_until_ready(augment(jax.random.fold_in(key, i), images))
        seconds.append(time.perf_counter() - start)
    rate = BATCH / statistics.median(seconds)
    print(f"images {images.shape} {images.dtype} -> {crops.shape} {crops.dtype}, mean {crops.mean():.2f}")
    print(
        f"{rate:,.0f} images per second were cropped, flipped, resized and normalized on {crops.device}, "
        f"in one call for {BATCH}; the picture is {output}"
    )


def draw(images, crops, output: str) -> None:
    """Each photograph to the left, and what became of it to the right."""
    figure, axes = plt.subplots(3, 9, figsize=(12, 4.2), layout="constrained")
    shown = np.asarray(jnp.clip(crops * STD + MEAN, 0, 255)).round().astype(np.uint8)
    for i, row in enumerate(axes):
        for place, picture in zip(row, [images[i], *shown[i::3]], strict=False):
            place.imshow(picture)
            place.axis("off")
    axes[0, 0].set_title("photograph", fontsize=13)
    axes[0, 1].set_title("random crops and flips", fontsize=13, loc="left")
    figure.savefig(output, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="augment.png")
    main(parser.parse_args().output)
