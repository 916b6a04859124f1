"""Across devices: what the compiled program communicates, and that the result is that of one device."""

import contextlib
import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_crop
from jax_crop import _forms
from tests.conftest import EACH, PAIRS, jax_config

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((8, 16, 20, 16), dtype=np.float32)
BOXES = RNG.uniform(-0.2, 1.2, (8, 8, 4)).astype(np.float32)
INDICES = np.arange(64, dtype=np.int32) % 8
CROP_SIZE = (5, 7)

COLLECTIVES = r" (all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter)(?:-start)?\("
NOTHING, ONE_SUM = {}, {"all-reduce": 1}


def crop(images, boxes, box_indices=None):
    return jax_crop.crop_and_resize(images, boxes, box_indices, CROP_SIZE)


def pool_of_pyramid(images, boxes, box_indices=None):
    pyramid = (images, images[..., ::2, ::2, :])
    return jax_crop.multilevel_roi_align(pyramid, boxes * 16, box_indices, CROP_SIZE, canonical_size=16.0)


def antialiased(images, boxes, box_indices=None):
    return jax_crop.crop_and_resize(images, boxes, box_indices, CROP_SIZE, antialias=True)


def pool_of_16_bits(images, boxes, box_indices=None):
    return jax_crop.roi_align(images.astype(jnp.bfloat16), boxes * 16, box_indices, CROP_SIZE)


OPERATIONS = pytest.mark.parametrize("operation", [crop, pool_of_pyramid])


def gradient(operation, argument):
    return jax.grad(lambda *arguments: jnp.sum(operation(*arguments) ** 2), argument)


# What each layout communicates: in the forward pass, in the image gradient, in the box gradient.
LAYOUTS = {
    "batch": ((8,), P("data"), P("data"), (NOTHING, NOTHING, NOTHING)),
    "batch_and_boxes": ((4, 2), P("data"), P("data", "model"), (NOTHING, ONE_SUM, NOTHING)),
    "batch_and_channels": ((4, 2), P("data", None, None, "model"), P("data"), (NOTHING, NOTHING, ONE_SUM)),
    "boxes": ((8,), P(), P("data"), (NOTHING, ONE_SUM, NOTHING)),
}


def arguments_of(layout):
    """Arguments as NumPy arrays, and the specification of each: boxes of their own for each image, or with indices."""
    _, images, boxes, _ = LAYOUTS[layout]
    if layout == "boxes":
        return (IMAGES, BOXES.reshape(-1, 4), INDICES), (images, boxes, boxes)
    return (IMAGES, BOXES), (images, boxes)


def mesh_of(layout, kind):
    shape = LAYOUTS[layout][0]
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=(kind,) * len(shape))


def sharded(layout, mesh):
    return [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(*arguments_of(layout), strict=True)]


def compiled_and_its_collectives(function, arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled, dict(Counter(re.findall(COLLECTIVES, compiled.as_text())))


@functools.cache
def on_one_device(operation, argument, layout):
    if argument is None:
        return np.asarray(jax.jit(operation)(*arguments_of(layout)[0]))
    with jax_config(jax_enable_x64=True):  # sums of another order are closer to the exact one than to each other
        images, *others = arguments_of(layout)[0]
        return np.asarray(jax.jit(gradient(operation, argument))(images.astype(np.float64), *others))


def assert_equals_one_device(result, operation, argument, layout):
    expected = on_one_device(operation, argument, layout)
    # A pixel is the sum of hundreds of float32 numbers, in an order that is the compiler's.
    tolerance = 0 if argument is None else 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


@PAIRS
@OPERATIONS
@pytest.mark.parametrize("argument", [None, 0, 1], ids=["forward", "image_gradient", "box_gradient"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["auto", "auto_by_types", "explicit"])
def test_communication(operation, argument, layout, kind):
    """Also on an Auto mesh of which nothing but the arguments tells."""
    mesh = mesh_of(layout, AxisType.Explicit if kind == "explicit" else AxisType.Auto)
    function = operation if argument is None else gradient(operation, argument)
    with jax.set_mesh(mesh) if kind != "auto_by_types" else contextlib.nullcontext():
        arguments = sharded(layout, mesh)
        compiled, collectives = compiled_and_its_collectives(function, arguments)
        result = compiled(*arguments)
    assert collectives == LAYOUTS[layout][3][0 if argument is None else argument + 1]
    assert_equals_one_device(result, operation, argument, layout)


@pytest.mark.parametrize(("argument", "expected"), [(None, NOTHING), (0, ONE_SUM), (1, NOTHING)])
@pytest.mark.parametrize("is_set", [True, False])
def test_kernels_on_an_auto_mesh(argument, expected, is_set):
    """By matrix products, for a CPU's own programs cannot be partitioned."""
    layout = "batch_and_boxes"
    mesh = mesh_of(layout, AxisType.Auto)
    function = antialiased if argument is None else gradient(antialiased, argument)
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        compiled, collectives = compiled_and_its_collectives(function, sharded(layout, mesh))
        result = compiled(*sharded(layout, mesh))
    assert collectives == expected
    on_one_device = np.asarray(jax.jit(function)(IMAGES, BOXES))
    np.testing.assert_allclose(result, on_one_device, rtol=0, atol=2e-6 * np.abs(on_one_device).max())


@pytest.mark.parametrize("layout", ["batch_and_channels", "boxes"])
@pytest.mark.parametrize("operation", [crop, pool_of_pyramid, pool_of_16_bits, antialiased])
def test_a_mesh_that_no_type_shows(operation, layout):
    """Arguments come to it by ``in_shardings``: a CPU's loops would fail to compile there."""
    mesh = mesh_of(layout, AxisType.Auto)
    arguments, specs = arguments_of(layout)
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    for function in [operation] if layout == "boxes" else [operation, jax.vmap(operation)]:
        result = jax.jit(function, in_shardings=shardings)(*arguments)
        alone = on_one_device(function, None, layout).astype(np.float32)
        np.testing.assert_allclose(np.asarray(result, np.float32), alone, rtol=0, atol=2e-6 * np.abs(alone).max())


@OPERATIONS
@pytest.mark.parametrize("argument", [None, 0, 1], ids=["forward", "image_gradient", "box_gradient"])
def test_shard_map(operation, argument):
    mesh = mesh_of("batch", AxisType.Auto)
    function = operation if argument is None else gradient(operation, argument)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data"))
    compiled, collectives = compiled_and_its_collectives(mapped, sharded("batch", mesh))
    assert collectives == NOTHING
    assert_equals_one_device(compiled(*sharded("batch", mesh)), operation, argument, "batch")


@OPERATIONS
def test_type_of_the_result_on_an_explicit_mesh(operation):
    expected = {
        "batch": P("data", None, None, None, None),
        "batch_and_boxes": P("data", "model", None, None, None),
        "batch_and_channels": P("data", None, None, None, "model"),
        "boxes": P("data", None, None, None),
    }
    for layout, spec in expected.items():
        mesh = mesh_of(layout, AxisType.Explicit)
        with jax.set_mesh(mesh):
            result = jax.eval_shape(operation, *sharded(layout, mesh))
        assert result.sharding.spec == spec


@OPERATIONS
def test_a_fill_and_images_that_are_not_sharded_alike(operation):
    """On an Explicit mesh the boxes, or else the images, say where the batch is; a replicated one is cut to fit."""
    mesh = mesh_of("batch", AxisType.Explicit)
    with jax.set_mesh(mesh):
        for specs in [(P(), P("data")), (P("data"), P())]:
            arguments = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((IMAGES, BOXES), specs, strict=True)]
            result = jax.jit(operation)(*arguments)
            assert jax.typeof(result).sharding.spec == P("data", None, None, None, None)
            assert_equals_one_device(result, operation, None, "batch")


def test_images_along_an_axis_that_has_their_boxes():
    """On an Explicit mesh, boxes keep it: images go to where theirs are."""
    mesh = mesh_of("batch_and_boxes", AxisType.Explicit)
    result = on_mesh(mesh, jax.jit(crop), P("model"), P(None, "model"))
    assert jax.typeof(result).sharding.spec == P(None, "model", None, None, None)
    assert_equals_one_device(result, crop, None, "batch")


@pytest.mark.parametrize(("argument", "expected"), [(None, NOTHING), (0, ONE_SUM), (1, NOTHING)])
def test_communication_of_many_channels(argument, expected):
    """However many channels there are, the compiler has all boxes to share out among the devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    images = jax.device_put(RNG.standard_normal((1, 9, 9, 512), dtype=np.float32), NamedSharding(mesh, P()))
    boxes, indices = jax.device_put(
        (RNG.uniform(0, 1, (72, 4)).astype(np.float32), np.zeros(72, np.int32)), NamedSharding(mesh, P("data"))
    )
    function = crop if argument is None else gradient(crop, argument)
    assert compiled_and_its_collectives(function, (images, boxes, indices))[1] == expected


def on_mesh(mesh, function, *specs):
    with jax.set_mesh(mesh):
        return function(
            *(jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((IMAGES, BOXES), specs, strict=True))
        )


@EACH  # operations and gradients go the same way
@OPERATIONS
@pytest.mark.parametrize("argument", [0, 1], ids=["image_gradient", "box_gradient"])
def test_meshes_of_two_kinds(operation, argument):
    """A `shard_map` that is manual over some axes only; Explicit and Auto axes; one axis for boxes and channels."""
    function = gradient(operation, argument)
    expected = on_one_device(operation, argument, "batch")
    auto, mixed, explicit = (
        jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
        for kinds in (
            (AxisType.Auto, AxisType.Auto),
            (AxisType.Explicit, AxisType.Auto),
            (AxisType.Explicit, AxisType.Explicit),
        )
    )
    spec = P("data")
    partly = jax.jit(lambda *a: jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names={"data"})(*a))
    results = [
        on_mesh(auto, partly, P(), P()),
        on_mesh(mixed, jax.jit(function), spec, spec),
        on_mesh(explicit, jax.jit(function), P("data", None, None, "model"), P("data", "model")),
    ]
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.xfail(
    jax.__version_info__ < (0, 8, 1), reason="before JAX 0.8.1, even x + 1 in a shard_map fails so", raises=ValueError
)
def test_vmap_over_an_axis_of_an_explicit_mesh():
    mesh = mesh_of("batch", AxisType.Explicit)
    result = on_mesh(mesh, jax.vmap(crop), P("data"), P("data"))
    np.testing.assert_array_equal(result, on_one_device(crop, None, "batch"))


def test_eager_calls_on_an_explicit_mesh_trace_once(monkeypatch):
    mesh = mesh_of("batch", AxisType.Explicit)
    on_mesh(mesh, crop, P("data"), P("data"))
    monkeypatch.setattr(_forms, "_on_each_device", None)  # which tracing would call
    on_mesh(mesh, crop, P("data"), P("data"))
