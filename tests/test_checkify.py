"""What `boxes.check` reports under `checkify`, through every transform, and that it changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jax_crop

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 6, 9, 2)).astype(np.float32)
BOXES = np.float32([[0.1, 0.2, 0.7, 0.8], [0.9, 0.1, 0.3, 0.6], [0, 0, 1, 1], [-0.4, 0.3, 0.6, 1.7]])
INDICES = np.int32([0, 1, 2, 0])
NOT_FINITE = np.where(np.arange(4)[:, None] % 2, BOXES, np.float32([0, np.nan, np.inf, 1]))


def crop(images, boxes, indices):
    return jax_crop.crop_and_resize(images, jax_crop.boxes.check(boxes, indices, len(images)), indices, (2, 3))


def total(*arguments):
    return crop(*arguments).sum()


def mapped(images, boxes, indices):
    return jax.lax.map(lambda part: crop(images, part[0][None], part[1][None]), (boxes, indices))


def vmapped(images, boxes, indices):
    return jax.vmap(lambda box, index: crop(images, box[None], index[None]))(boxes, indices)


CALLS = {
    "plain": crop,
    "jit": jax.jit(crop),
    "vmap": vmapped,
    "map": mapped,
    "grad by image": jax.grad(total),
    "grad by boxes": jax.grad(total, argnums=1),
}


@functools.cache
def checked(function):
    return jax.jit(checkify.checkify(function))


def message(function, *arguments):
    """What checkify has to say."""
    error, _ = checked(function)(*arguments)
    return error.get()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_reports(call):
    assert message(call, IMAGES, BOXES, INDICES) is None
    assert "boxes must be finite, but " in message(call, IMAGES, NOT_FINITE, INDICES)
    for indices in (np.int32([0, 3, 2, 1]), np.int32([0, 1, 2, -1])):
        assert "box_indices must be in [0, 3), but they reach from " in message(call, IMAGES, BOXES, indices)


def test_reports_tell_how_many_and_how_far():
    assert "but 2 are not" in message(crop, IMAGES, NOT_FINITE, INDICES)
    assert "from -5 to 9" in message(crop, IMAGES, BOXES, np.int32([0, -5, 9, 2]))


@pytest.mark.parametrize(
    "pool", [jax_crop.roi_align, lambda m, *a: jax_crop.multilevel_roi_align((m, m[:, ::2, ::2]), *a)]
)
def test_padding_computes_no_nan(pool):
    """Boxes of NaN are no error to the checks of whoever looks for NaN."""
    pool_boxes = checkify.checkify(lambda boxes: pool(IMAGES, boxes, INDICES, 2), errors=checkify.float_checks)
    assert pool_boxes(NOT_FINITE)[0].get() is None


def test_boxes_alone():
    """Of any leading axes, and none at all."""
    check = jax_crop.boxes.check
    assert message(check, np.stack([BOXES, BOXES])) is None
    assert "but 2 are not" in message(check, np.stack([BOXES, NOT_FINITE]))
    assert message(functools.partial(check, batch=0), BOXES[:0], INDICES[:0]) is None


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded(axis_type):
    """Checked after they are cut out, as JAX cannot carry a check into the `jax.shard_map` of an Explicit mesh."""

    def crop(images, boxes, indices):
        crops = jax_crop.crop_and_resize(images, boxes, indices, (2, 3))
        jax_crop.boxes.check(boxes, indices, len(images))
        return crops

    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        images, good, bad, indices = (
            jax.device_put(x, jax.NamedSharding(mesh, P(*axes)))
            for x, axes in ((IMAGES, ()), (BOXES, ("data",)), (NOT_FINITE, ("data",)), (INDICES, ("data",)))
        )
        assert message(crop, images, good, indices) is None
        assert "but 2 are not" in message(crop, images, bad, indices)
        assert "from 3 to 5" in message(crop, images, good, indices + 3)


def test_raises_at_once_where_nothing_is_traced():
    np.testing.assert_array_equal(jax_crop.boxes.check(BOXES, INDICES, 3), BOXES)
    with pytest.raises(Exception, match="boxes must be finite, but 2 are not"):
        jax_crop.boxes.check(NOT_FINITE)
    with pytest.raises(Exception, match=r"box_indices must be in \[0, 2\), but they reach from 0 to 2"):
        jax_crop.boxes.check(BOXES, INDICES, 2)


@pytest.mark.parametrize("arguments", [{"box_indices": INDICES}, {"batch": 3}])
def test_indices_need_the_number_of_images(arguments):
    with pytest.raises(ValueError, match=r"box_indices and batch go together, got box_indices=.* and batch="):
        jax_crop.boxes.check(jnp.asarray(BOXES), **arguments)
