"""Random small programs, as users compose them, against the oracles: `python -m tests.small_programs COUNT SEED`.

Shapes are of 1 to 17, where compilers have their special cases. Each program is named before it is compiled, so that
whoever started this can see at which one it came to an end.
"""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

import jax_crop
from tests import garbage, oracle, roi_oracle

RESULTS = ("crops", "crops", "gradients")
OPERATIONS = ("crop_and_resize", "crop_and_resize", "roi_align", "kernel")
IMAGES = ("float32", "float32", "bfloat16", "float16")  # float64 for float32 with x64
COMPOSITIONS = ("one call", "constants", "scan over boxes", "vmap over boxes", "vmap of gradients")


def random_program(rng):
    return {
        "result": str(rng.choice(RESULTS)),
        "operation": str(rng.choice(OPERATIONS)),
        "composition": str(rng.choice(COMPOSITIONS)),
        "shape": tuple(int(n) for n in rng.integers(1, 18, 4)),
        "boxes": int(rng.integers(1, 18)),
        "size": tuple(int(n) for n in rng.integers(1, 18, 2)),
        "sampling_ratio": int(rng.integers(1, 4)),
        "x64": bool(rng.integers(2)),
        "image": str(rng.choice(IMAGES)),
        "optimized": bool(rng.integers(4) == 0),  # by LLVM; by XLA it always is
    }


def operation(program, oracle_of_crops=False):
    """Of ``(image, boxes, indices)``: ours, or its oracle."""
    kind, size, n = program["operation"], program["size"], program["sampling_ratio"]
    if kind == "roi_align":
        call = roi_oracle.roi_align if oracle_of_crops else jax_crop.roi_align
        return lambda *arguments: call(*arguments, size, sampling_ratio=n)
    if oracle_of_crops:
        return lambda *arguments: oracle.crop_and_resize(*arguments, size)
    # A triangle that is not stretched is what bilinear interpolation is.
    options = {"antialias": True} if kind == "kernel" else {}
    return lambda *arguments: jax_crop.crop_and_resize(*arguments, size, **options)


def composed(program, crop, image, boxes, indices, crops_bar):
    """What is asked for, of image and boxes, as a composition computes it."""

    def gradients(image, boxes, indices, crops_bar):
        return jax.grad(lambda image, boxes: jnp.sum(crop(image, boxes, indices) * crops_bar), (0, 1))(image, boxes)

    def of_each(call):
        return lambda image, box, index, *bar: jax.tree.map(
            lambda x: x[0] if x.shape[0] == 1 else x, call(image, box[None], index[None], *(b[None] for b in bar))
        )

    is_crops = program["result"] == "crops"
    call = crop if is_crops else gradients
    arguments = image, boxes, indices, *([] if is_crops else [crops_bar])
    how = program["composition"]
    if how == "constants":
        return jax.jit(lambda: call(*arguments))()
    if how == "scan over boxes":
        of_one = lambda *of_box: call(image, *(x[None] for x in of_box))  # noqa: E731
        each = jax.jit(lambda *of_boxes: jax.lax.map(lambda of_box: of_one(*of_box), of_boxes))(*arguments[1:])
        return _joined(each, is_crops)
    if how == "vmap of gradients" or (how == "vmap over boxes" and is_crops):
        each = jax.jit(jax.vmap(lambda *of_box: call(image, *(x[None] for x in of_box))))(*arguments[1:])
        return _joined(each, is_crops)
    if how == "vmap over boxes":

        def total(image, boxes):
            crops = jax.vmap(lambda box, index: crop(image, box[None], index[None])[0])(boxes, indices)
            return jnp.sum(crops * crops_bar)

        return jax.jit(jax.grad(total, (0, 1)))(image, boxes)
    return jax.jit(call)(*arguments)


def _joined(each, is_crops):
    if is_crops:
        return np.asarray(each)[:, 0]
    of_images, of_boxes = (np.asarray(x, np.float64) for x in each)
    return of_images.sum(0), of_boxes[:, 0]


def largest_error(program, rng):
    """Relative to the largest value that is expected."""
    dtype = "float64" if program["x64"] else "float32"
    of_image = dtype if program["image"] == "float32" else program["image"]
    image = rng.uniform(-1, 1, program["shape"]).astype(jnp.dtype(of_image))
    boxes = rng.uniform(-0.3, 1.3, (program["boxes"], 4)).astype(dtype)
    lengths = np.array(program["shape"][1:3])
    if program["operation"] == "roi_align":
        boxes *= np.tile(lengths, 2).astype(dtype)
    elif program["operation"] == "kernel":  # which samples closer than pixels do not stretch
        closest = np.minimum(1, np.maximum(np.array(program["size"]) - 1, 1) / np.maximum(lengths - 1, 1)) / 2
        boxes[:, 2:] = boxes[:, :2] + (boxes[:, 2:] * closest).astype(dtype)
    indices = rng.integers(-1, program["shape"][0], program["boxes"])
    crops_bar = rng.uniform(-1, 1, (program["boxes"], *program["size"], program["shape"][3])).astype(dtype)
    found = composed(program, operation(program), image, boxes, indices, crops_bar)
    if program["result"] == "crops":
        expected = [operation(program, oracle_of_crops=True)(image, boxes, indices)]
    elif program["operation"] == "roi_align":
        options = {"sampling_ratio": program["sampling_ratio"]}
        expected = roi_oracle.cotangents(crops_bar, image, boxes, indices, program["size"], **options)
    else:
        expected = oracle.cotangents(crops_bar, image, boxes, indices)[:2]
    return max(
        np.abs(np.asarray(x, np.float64) - y).max() / max(np.abs(y).max(), 1)
        for x, y in zip(jax.tree.leaves(found), expected, strict=True)
    )


def main() -> int:
    """Runs the programs, and fails on the first that is wrong."""
    count, seed = map(int, sys.argv[1:])
    garbage.search_less()
    rng = np.random.default_rng(seed)
    for _ in range(count):
        program = random_program(rng)
        print(program, flush=True)
        jax.config.update("jax_enable_x64", program["x64"])
        jax.config.update("jax_disable_most_optimizations", not program["optimized"])
        error = largest_error(program, rng)
        if not error <= (1e-5 if program["image"] == "float32" else 2e-2):
            print(f"error {error:.3g}")
            return 1
    print("all agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
