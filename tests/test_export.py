"""Saved programs: for every platform, for any number of images and boxes, loaded by a process that knows only JAX."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_crop
from tests.conftest import EACH

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
BATCH, COUNT, CHANNELS = export.symbolic_shape("batch, count, channels")


def shapes(*kinds):
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds)


def crop(images, boxes, box_indices=None):
    return jax_crop.crop_and_resize(images, boxes, box_indices, (5, 7), extrapolation_value=0.5)


def nearest(images, boxes):
    return jax_crop.crop_and_resize(images, boxes, None, (5, 7), "nearest", align_corners=False)


def antialiased(images, boxes):
    return jax_crop.crop_and_resize(images, boxes, None, (5, 7), "cubic", antialias=True)


def pool(images, boxes, box_indices):
    return jax_crop.roi_align(images, boxes * 16, box_indices, (5, 7))


def pool_adaptively(images, boxes):
    return jax_crop.roi_align(images, boxes * 16, None, (5, 7), sampling_ratio=0, max_sampling_ratio=3)


def pool_of_pyramid(images, coarser, boxes, box_indices=None):
    return jax_crop.multilevel_roi_align((images, coarser), boxes * 200, box_indices, (5, 7))


IMAGES = ((BATCH, 16, 20, 3), jnp.float32)
COARSER = ((BATCH, 8, 10, 3), jnp.float32)
WITH_INDICES = shapes(IMAGES, ((COUNT, 4), jnp.float32), ((COUNT,), jnp.int32))
OF_EACH = ((BATCH, COUNT, 4), jnp.float32)
CASES = {
    "one_image": (crop, shapes(((16, 20, 3), jnp.float32), ((COUNT, 4), jnp.float32))),
    "boxes_for_each": (crop, shapes(IMAGES, OF_EACH)),
    "any_channels": (
        crop,
        shapes(((BATCH, 16, 20, CHANNELS), jnp.float32), ((COUNT, 4), jnp.float32), ((COUNT,), jnp.int32)),
    ),
    "antialiased": (antialiased, shapes(IMAGES, OF_EACH)),
    "nearest_of_bytes": (nearest, shapes(((BATCH, 16, 20, 3), jnp.uint8), OF_EACH)),
    "roi_align": (pool, WITH_INDICES),
    "adaptive": (pool_adaptively, shapes(IMAGES, OF_EACH)),
    "pyramid": (pool_of_pyramid, shapes(IMAGES, COARSER, OF_EACH)),
    "pyramid_with_indices": (
        pool_of_pyramid,
        shapes(IMAGES, COARSER, ((COUNT, 4), jnp.float32), ((COUNT,), jnp.int32)),
    ),
}


def with_gradient(function):
    """And the gradient of a sum of squares, by all images and boxes that have one."""

    def of(*arguments):
        def total(*arguments):
            crops = function(*arguments)
            return jnp.sum(crops**2), crops

        floats = [i for i, a in enumerate(arguments) if a.dtype == jnp.float32]
        return jax.value_and_grad(total, floats, has_aux=True)(*arguments)

    return of


def examples(arguments, **sizes):
    """Arrays for symbolic shapes."""
    rng = np.random.default_rng(0)
    for a in arguments:
        shape = [sizes.get(str(n), n) for n in a.shape]
        yield (rng.uniform(0, 1, shape) if a.dtype == jnp.float32 else rng.integers(0, 2, shape)).astype(a.dtype)


def assert_same(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * max(1, np.abs(e).max()))


@EACH
@pytest.mark.parametrize(
    "sizes", [{"batch": 2, "count": 6, "channels": 20}, {"batch": 3, "count": 1, "channels": 1}], ids=["many", "one"]
)
@pytest.mark.parametrize("case", CASES)
def test_every_platform_and_any_number(case, sizes):
    function, arguments = CASES[case]
    function = with_gradient(function)
    saved = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize()
    loaded = export.deserialize(saved)
    assert loaded.platforms == PLATFORMS
    values = list(examples(arguments, **sizes))
    assert_same(loaded.call(*values), jax.jit(function)(*values))


def test_a_saved_program_can_be_differentiated():
    function, arguments = CASES["boxes_for_each"]
    saved = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize(vjp_order=1)
    loaded = export.deserialize(saved)
    values = list(examples(arguments, batch=2, count=6))
    assert_same(with_gradient(loaded.call)(*values), jax.jit(with_gradient(function))(*values))


def test_a_fresh_process_gives_the_same_pixels(tmp_path):
    function, arguments = crop, WITH_INDICES
    values = list(examples(arguments, batch=2, count=6))
    (tmp_path / "program").write_bytes(export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize())
    np.savez(tmp_path / "values.npz", *values)
    program = """if True:
        import sys
        import numpy as np
        from jax import export
        folder = sys.argv[1]
        program = export.deserialize(bytearray(open(f"{folder}/program", "rb").read()))
        values = np.load(f"{folder}/values.npz")
        np.save(f"{folder}/crops.npy", program.call(*(values[name] for name in values.files)))
        assert "jax_crop" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    as_there = jax.jit(function).lower(*values).compile({"xla_backend_optimization_level": 3})  # LLVM's default
    np.testing.assert_array_equal(np.load(tmp_path / "crops.npy"), as_there(*values))
