"""What `checkify` reports, through every transform; and that nothing is left of it elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jax_crop
from jax_crop import _forms

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 6, 9, 2)).astype(np.float32)
BOXES = np.float32([[0.1, 0.2, 0.7, 0.8], [0.9, 0.1, 0.3, 0.6], [0, 0, 1, 1], [-0.4, 0.3, 0.6, 1.7]])
INDICES = np.int32([0, 1, 2, 0])
NOT_FINITE = np.where(np.arange(4)[:, None] % 2, BOXES, np.float32([0, np.nan, np.inf, 1]))

crop = functools.partial(jax_crop.crop_and_resize, crop_size=(2, 3))
pool = functools.partial(jax_crop.roi_align, output_size=(2, 3))
operations = pytest.mark.parametrize("operation", [crop, pool], ids=["crop", "pool"])


def message(function, *arguments):
    """What checkify has to say."""
    error, _ = jax.jit(checkify.checkify(function))(*arguments)
    return error.get()


def total(operation):
    return lambda images, boxes, indices: operation(images, boxes, indices).sum()


def mapped(operation):
    def call(images, boxes, indices):
        return jax.lax.map(lambda part: operation(images, part[0][None], part[1][None]), (boxes, indices))

    return call


def vmapped(operation):
    return jax.vmap(lambda images, box, index: operation(images, box[None], index[None]), in_axes=(None, 0, 0))


TRANSFORMS = {
    "plain": lambda operation: operation,
    "jit": jax.jit,
    "vmap": vmapped,
    "map": mapped,
    "grad by image": lambda operation: jax.grad(total(operation)),
    "grad by boxes": lambda operation: jax.grad(total(operation), argnums=1),
    "checkpoint": lambda operation: jax.grad(jax.checkpoint(total(operation))),
    "hessian": lambda operation: jax.hessian(total(operation), argnums=1),
}


@operations
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_reports(operation, transform):
    call = transform(operation)
    assert message(call, IMAGES, BOXES, INDICES) is None
    assert "boxes must be finite, but " in message(call, IMAGES, NOT_FINITE, INDICES)
    for indices in (np.int32([0, 3, 2, 1]), np.int32([0, 1, 2, -1])):
        assert "box_indices must be in [0, 3), but they reach from " in message(call, IMAGES, BOXES, indices)


@operations
def test_reports_tell_how_many_and_how_far(operation):
    assert "but 2 are not" in message(operation, IMAGES, NOT_FINITE, INDICES)
    assert "from -5 to 9" in message(operation, IMAGES, BOXES, np.int32([0, -5, 9, 2]))


@operations
@pytest.mark.parametrize("name", ["boxes of each image", "one image", "no boxes"])
def test_call_forms(operation, name):
    image, boxes, indices = {
        "boxes of each image": (IMAGES, np.stack([BOXES, NOT_FINITE, BOXES]), None),
        "one image": (IMAGES[0], NOT_FINITE, None),
        "no boxes": (IMAGES, BOXES[:0], INDICES[:0]),
    }[name]
    found = message(operation, image, boxes, indices)
    assert found is None if name == "no boxes" else "boxes must be finite" in found


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded(axis_type):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        images, good, bad, indices = (
            jax.device_put(x, jax.NamedSharding(mesh, P(*axes)))
            for x, axes in ((IMAGES, ()), (BOXES, ("data",)), (NOT_FINITE, ("data",)), (INDICES, ("data",)))
        )
        assert message(crop, images, good, indices) is None
        assert "but 2 are not" in message(crop, images, bad, indices)
        assert "from 3 to 5" in message(crop, images, good, indices + 3)


@operations
@pytest.mark.parametrize("differentiate", [False, True], ids=["value", "gradient"])
def test_nothing_is_left_without_checkify(monkeypatch, operation, differentiate):
    """The program that is compiled is the one of the operation without checks."""

    def program():
        call = jax.grad(total(operation), argnums=(0, 1)) if differentiate else operation
        jitted = jax.jit(lambda *arguments: call(*arguments))
        assert not jax.make_jaxpr(jitted)(IMAGES, BOXES, INDICES).effects
        return jitted.lower(IMAGES, BOXES, INDICES).as_text()

    with_checks = program()
    monkeypatch.setattr(_forms, "checked", lambda crops, *_: crops)
    assert program() == with_checks
    assert message(operation, IMAGES, NOT_FINITE, INDICES) is None  # so there were checks to leave out


def test_other_errors_may_be_asked_for_alone():
    error, _ = checkify.checkify(crop, errors=checkify.index_checks)(IMAGES, NOT_FINITE, INDICES + 3)
    assert error.get() is None


def test_without_jit():
    with jax.disable_jit():
        assert jnp.all(crop(IMAGES, NOT_FINITE[:1], INDICES[:1]) == 0)
