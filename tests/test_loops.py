"""The transposes that a CPU runs as loops: where they are taken, and shapes and programs that are hard to compile."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jax_crop
from jax_crop import crop_and_resize
from tests.conftest import OPTIMIZED, PAIRS, on_a_mesh
from tests.test_derivatives import assert_as_reference, pull_back, random_case

pytestmark = OPTIMIZED

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((2, 9, 11, 3), dtype=np.float32)
BOXES = RNG.uniform(-0.2, 1.2, (6, 4)).astype(np.float32)
INDICES = np.array([0, 1, 1, -1, 0, 1])


def crop(image, boxes):
    return jnp.sum(crop_and_resize(image, boxes, INDICES, (4, 5)) ** 2)


def pool(image, boxes):
    return jnp.sum(jax_crop.roi_align(image, boxes * 10, INDICES, (4, 5)) ** 2)


OPERATIONS = pytest.mark.parametrize("operation", [crop, pool])
GRADIENTS = pytest.mark.parametrize("argument", [0, 1], ids=["image", "boxes"])


@OPERATIONS
@GRADIENTS
def test_loops_are_taken_where_a_device_is_alone(operation, argument):
    def program(gradient, image, boxes):
        return jax.jit(gradient).lower(image, boxes).compile().as_text()

    gradient = jax.grad(operation, argument)
    replicated = on_a_mesh((IMAGE, BOXES))
    alone = jax.shard_map(gradient, mesh=replicated[0].sharding.mesh, in_specs=P(), out_specs=P())
    assert "xla_cpu_small_call" in program(gradient, IMAGE, BOXES)
    assert "xla_cpu_small_call" in program(alone, *replicated)
    assert "xla_cpu_small_call" not in program(gradient, *replicated)


@functools.cache
def gradient_of(operation, argument):
    return jax.jit(jax.grad(operation, argument))


@OPERATIONS
@GRADIENTS
def test_loops_equal_the_transpose_of_jax(operation, argument):
    gradient = gradient_of(operation, argument)
    by_loops, by_jax = gradient(IMAGE, BOXES), gradient(*on_a_mesh((IMAGE, BOXES)))
    np.testing.assert_allclose(by_loops, by_jax, rtol=0, atol=2e-6 * np.abs(by_jax).max())


FEW_PIXELS = [(1, 1), (1, 2), (2, 2), (2, 9), (9, 2), (3, 1)]


def assert_gradients(crops_bar, image, boxes, indices):
    """XLA drops an index that can only be 0, and aborts the process if no part of that argument is left in use."""
    fill = np.zeros(image.shape[3], np.float32)
    found = pull_back(crops_bar, image, boxes, indices, crops_bar.shape[1:3], fill)
    assert_as_reference(found, crops_bar, image, boxes, indices)


# Each size with channels as one run of floats and apart; then those that no vector holds.
@pytest.mark.parametrize(
    ("size", "channels"),
    [*itertools.product(FEW_PIXELS, (1, 16)), *zip(FEW_PIXELS, (15, 17, 40) * 2, strict=True)],
    ids=str,
)
def test_images_of_a_few_pixels(size, channels):
    assert_gradients(*random_case(size, (3, 2), channels=channels, boxes=8))


@pytest.mark.parametrize("size", FEW_PIXELS, ids=str)
def test_one_sample_of_one_box(size):
    crops_bar, image, boxes, _ = random_case(size, (1, 1), batch=1, boxes=1)
    assert_gradients(crops_bar, image, boxes, np.zeros(1, int))


@pytest.mark.parametrize(
    ("image", "crop_size"),
    [((1, 9, 9, 1024), (60, 60)), ((1, 4, 4, 70000), (2, 3)), ((1, 3, 9, 3), (2, 30000)), ((1, 1500, 2000, 3), (4, 4))],
    ids=["crops", "channels", "columns", "image"],
)
def test_large_shapes(image, crop_size):
    """Whatever is large, XLA would run on several threads or leave to a library, which a loop cannot."""
    image = np.ones(image, np.float32)
    boxes = np.float32([[0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]])

    def total(image, boxes):
        return jnp.sum(crop_and_resize(image, boxes, np.zeros(2, int), crop_size))

    of_image, of_boxes = jax.jit(jax.grad(total, (0, 1)))(image, boxes)
    np.testing.assert_allclose(
        np.asarray(of_image, np.float64).sum(), 2 * np.prod(crop_size) * image.shape[3], rtol=1e-4
    )
    np.testing.assert_array_equal(of_boxes, np.zeros((2, 4)))


@pytest.mark.parametrize(
    "operation",
    [
        crop_and_resize,
        functools.partial(crop_and_resize, antialias=True),
        jax_crop.roi_align,
        functools.partial(jax_crop.roi_align, sampling_ratio=0, max_sampling_ratio=3),
    ],
    ids=["crop", "antialiased", "pool", "adaptive"],
)
def test_nothing_is_read_beyond_its_end(operation):
    """XLA on CPUs reads what it pads as far as the result reaches: beyond a box it may end the process."""
    gradient = jax.grad(lambda *at: jnp.sum(operation(*at, INDICES, (7, 60))), (0, 1))
    text = jax.jit(gradient).lower(IMAGE, BOXES).compile().as_text()
    assert all(int(after) <= 3 for after in re.findall(r" pad\(.*padding=\S*?\d+_(\d+)[,\s]", text))
    assert " pad(" in text


@PAIRS
@OPERATIONS
@GRADIENTS
@pytest.mark.parametrize("constant", [0, 1], ids=["image_known", "boxes_known"])
@pytest.mark.parametrize("within", ["jit", "vmap", "scan"])
def test_constants_of_the_program(operation, argument, constant, within):
    """A constant moves into the loops, and its argument falls out of use, if nothing keeps it out."""
    gradient = jax.grad(operation, argument)
    arguments = [IMAGE, BOXES]
    known = jnp.asarray(arguments[constant])

    def of_other(other):
        return gradient(*([known, other] if constant == 0 else [other, known]))

    def of_others(others):
        if within == "scan":
            return jax.lax.scan(lambda carry, other: (carry, of_other(other)), 0.0, others)[1]
        return jax.vmap(of_other)(others) if within == "vmap" else of_other(others[0])[None]

    results = jax.jit(of_others)(jnp.stack([arguments[1 - constant]] * 2))
    for result in results:
        np.testing.assert_allclose(result, gradient_of(operation, argument)(*arguments), rtol=1e-5, atol=1e-5)


def test_a_cotangent_of_a_sample_outside_is_not_read():
    crops_bar = np.full((6, 4, 5, 3), np.nan, np.float32)
    found = pull_back(crops_bar, IMAGE, BOXES + 2, INDICES, (4, 5), np.zeros(3, np.float32))
    np.testing.assert_array_equal(found[0], np.zeros_like(IMAGE))
