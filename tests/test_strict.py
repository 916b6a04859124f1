"""Under each of JAX's strict modes: every operation and derivative gives what it gives without them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_crop
from tests.conftest import STRICT, jax_config

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (2, 9, 8, 3)).astype(np.float32)
BYTES = RNG.integers(0, 256, (2, 9, 8, 3)).astype(np.uint8)
BOXES = np.float32([[0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], [0.9, 1.3, -0.2, 0.4], [2, 2, 3, 3], [0.2, 0, 1, 0.7]])
BOXES = np.concatenate([BOXES, np.float32([[0, 0, 1, np.nan], [0, np.inf, 1, 1], [1e38] * 4])])
BOXES_OF_EACH = np.stack([BOXES, BOXES[::-1]])
INDICES = np.array([0, 1, -1, 1, 5, 0, 0, 1], np.int32)


def crop(images, boxes, box_indices, **options):
    return jax_crop.crop_and_resize(images, boxes, box_indices, (3, 2), **options)


def pool(images, boxes, box_indices, **options):
    """Of so many channels that a CPU has another program for the derivatives."""
    return jax_crop.roi_align(jnp.tile(images, 8), boxes, box_indices, (3, 2), spatial_scale=8.0, **options)


def pool_of_pyramid(images, boxes, box_indices):
    pyramid = (images, images[..., ::2, ::2, :])
    boxes = jax_crop.boxes.denormalize(boxes, (36, 32))
    return jax_crop.multilevel_roi_align(pyramid, boxes, box_indices, (3, 2), canonical_size=64.0)


OPERATIONS = {
    "corners": crop,
    "half_pixel": functools.partial(
        crop, align_corners=False, dtype=jnp.bfloat16, extrapolation_value=np.array([1, 2, 3], np.float32)
    ),
    "nearest": functools.partial(crop, method="nearest", extrapolation_value=0.5),
    "adaptive": functools.partial(pool, aligned=False, sampling_ratio=0, max_sampling_ratio=2),
    "pyramid": pool_of_pyramid,
}


def values_and_gradients(operation, images, of_bytes, boxes, box_indices):
    """Of both image types; in image and boxes, and the crops."""

    def total(images, boxes):
        crops = operation(images, boxes, box_indices)
        return jnp.sum(crops.astype(jnp.float32) ** 2), crops

    return operation(of_bytes, boxes, box_indices), jax.grad(total, argnums=(0, 1), has_aux=True)(images, boxes)


def everything(operation, images, of_bytes, boxes, boxes_of_each, box_indices):
    """Values of each call form and image type; first and second derivatives, forward and reverse."""

    def at(images, boxes):
        return values_and_gradients(operation, images, of_bytes, boxes, box_indices)

    def crops(images, boxes):
        return operation(images, boxes, box_indices)

    ones = jnp.ones_like(boxes)
    first, moves = jax.jvp(functools.partial(at, images), (boxes,), (ones,))
    return first, {
        "each": operation(images, boxes_of_each, None),
        "vmap": jax.vmap(operation, in_axes=(None, 0, None))(images, boxes_of_each, box_indices),
        "tangent": jax.jvp(crops, (images, boxes), (jnp.ones_like(images), ones))[1],
        "second": moves,
    }


def lowered(name):
    """All in one program."""
    program = jax.jit(functools.partial(everything, OPERATIONS[name]))
    return program.lower(IMAGES, BYTES, BOXES, BOXES_OF_EACH, INDICES)


def results_of(program):
    return jax.tree.map(np.asarray, program(IMAGES, BYTES, BOXES, BOXES_OF_EACH, INDICES))


def assert_same(results, expected):
    for actual, wanted in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert actual.dtype == wanted.dtype
        actual, wanted = (np.asarray(a, np.float32) for a in (actual, wanted))
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=3e-6 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("name", OPERATIONS)
def test_modes(name):
    """Strict ones allow the program that there is without them, and its results; others give the same results."""
    without = lowered(name).as_text()
    with jax_config(**STRICT):
        strict = lowered(name)
        expected = results_of(strict.compile())
    assert strict.as_text() == without
    with jax_config(jax_enable_x64=True):
        assert_same(results_of(lowered(name).compile()), expected)
    if name == "adaptive":  # which does what others do: JAX compiles each operation alone there (test_derivatives, too)
        with jax_config(jax_disable_jit=True):
            results = values_and_gradients(OPERATIONS[name], IMAGES, BYTES, BOXES, INDICES)
        assert_same(jax.tree.map(np.asarray, results), expected[0])


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_transfers(name):
    """Jitted calls on arrays of the device move nothing to it or from it."""
    operation = OPERATIONS[name]

    def step(images, boxes, box_indices):
        return jax.value_and_grad(lambda *a: operation(*a, box_indices).astype(jnp.float32).sum(), (0, 1))(
            images, boxes
        )

    arguments = jax.device_put((IMAGES, BOXES, INDICES))
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(jax.jit(step)(*arguments))


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_compilation_for_each_shape(name):
    chex.clear_trace_counter()  # which knows functions by their names
    operation = jax.jit(chex.assert_max_traces(lambda *arguments: OPERATIONS[name](*arguments), n=2))
    for count in (4, 3, 4, 3):
        operation(IMAGES, BOXES[:count], INDICES[:count])
        operation(IMAGES * 2, BOXES[:count] * 0.5, INDICES[:count] - 1)
