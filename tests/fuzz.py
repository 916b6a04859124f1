"""Random calls of `crop_and_resize` against the oracle: `python -m tests.fuzz --calls 20000 --seed 0`.

Shapes, types and options come from a pool, for each has to be compiled; every call brings new pixels, boxes that try
to mislead, indices and fill values. It tells the largest error, relative to the range of the image, and the number of
wrong pixels; if there are any, the exit status is 1.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from jax_crop import crop_and_resize
from tests import oracle

LARGEST_ERROR = 3e-7
BOXES = 12


def random_configuration(rng):
    """What has to be compiled: sizes, types and options. The largest images are thin."""
    small = tuple(int(n) for n in rng.integers(1, 24, 2))
    thin = (int(rng.choice([3000, 70_000])), int(rng.integers(1, 4)))
    size = small if rng.random() < 0.8 else thin if rng.random() < 0.5 else thin[::-1]
    x64 = bool(rng.integers(2))
    return {
        "shape": (int(rng.integers(1, 4)), *size, int(rng.integers(1, 4))),
        "image_dtype": str(rng.choice(oracle.IMAGE_DTYPES)),
        "box_dtype": str(rng.choice(["float32", "float64"])) if x64 else "float32",
        "x64": x64,
        "crop_size": tuple(int(n) for n in np.where(rng.random(2) < 0.15, 1, rng.integers(1, 15, 2))),
        "method": str(rng.choice(["bilinear", "bilinear", "nearest"])),
        "align_corners": bool(rng.random() < 0.7),
        "dtype": str(rng.choice(["float32", "float32", "float64"])) if x64 else "float32",
        "fill_per_channel": bool(rng.integers(2)),
    }


def random_call(rng, configuration):
    """Image, boxes, indices and fill value."""
    shape = configuration["shape"]
    boxes = oracle.misleading_boxes(
        rng, BOXES, shape[1:3], configuration["crop_size"], np.dtype(configuration["box_dtype"])
    )
    # One axis at a time, mostly, or few samples would be inside on both.
    plain = rng.uniform(-0.2, 1.2, (BOXES, 2)).astype(boxes.dtype)
    kind = rng.integers(0, 3, BOXES)[:, None]
    boxes[:, [0, 2]] = np.where(kind == 0, plain, boxes[:, [0, 2]])
    boxes[:, [1, 3]] = np.where(kind == 1, plain, boxes[:, [1, 3]])
    fill = rng.uniform(-2, 2, shape[3] if configuration["fill_per_channel"] else ()).astype(np.float32)
    indices = np.where(
        rng.random(BOXES) < 0.1, rng.choice([-1, shape[0], 2**40], BOXES), rng.integers(0, shape[0], BOXES)
    )
    image = oracle.random_image(rng, shape, configuration["image_dtype"])
    if rng.random() < 0.2:  # now and then with pixels of no value
        image = np.where(rng.random(shape) < 0.1, image.dtype.type(0), image)
    return image, boxes, indices, fill


def largest_error(configuration, image, boxes, indices, fill):
    """Relative to the range of the image and 0; the number of wrong pixels, and of all."""
    crop_size, method, align_corners = (configuration[name] for name in ("crop_size", "method", "align_corners"))
    crops = np.asarray(
        crop_and_resize(
            image, boxes, indices, crop_size, method, fill, align_corners=align_corners, dtype=configuration["dtype"]
        ),
        np.float64,
    )
    expected = oracle.crop_and_resize(image, boxes, indices, crop_size, method, fill, align_corners)
    inside = oracle.inside(image, boxes, indices, crop_size, align_corners)[..., None]
    values = image.astype(np.float64)
    error = np.abs(crops - expected) / np.where(inside, max(values.max(initial=0) - values.min(initial=0), 1e-30), 1)
    wrong = ~(error <= np.where(inside, LARGEST_ERROR, 0))
    return error[~np.isnan(error)].max(initial=0), np.count_nonzero(wrong), wrong.size


def main() -> int:
    """Runs the calls and says what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--configurations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    calls = [len(part) for part in np.array_split(range(arguments.calls), arguments.configurations)]
    worst, wrong_pixels, pixels, start = 0.0, 0, 0, time.monotonic()
    for i, n_calls in enumerate(calls):
        configuration = random_configuration(rng)
        jax.config.update("jax_enable_x64", configuration["x64"])
        for _ in range(n_calls):
            call = random_call(rng, configuration)
            error, wrong, of = largest_error(configuration, *call)
            worst, wrong_pixels, pixels = max(worst, error), wrong_pixels + wrong, pixels + of
            if wrong:
                print(f"\n{wrong} wrong pixels, error {error:.3g}: {configuration}")
                print(f"boxes {call[1].tolist()}\nindices {call[2].tolist()}")
        print(f"\r{i + 1} of {len(calls)} configurations, {time.monotonic() - start:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    print(
        f"{arguments.calls} calls, {pixels} values: largest error {worst:.3g} of the range, {wrong_pixels} wrong pixels"
    )
    return int(wrong_pixels > 0)


if __name__ == "__main__":
    sys.exit(main())
