"""`_light`: its operators do as NumPy's, with whatever stands on the other side."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_crop import _light
from jax_crop._light import Light

INTEGERS = np.array([[-7, 0, 3], [2**30, -1, 8]], np.int32)
FLOATS = np.array([[-7.5, 0, 3.25], [2.0**30, -0.1, 8]], np.float32)
ROWS = np.array([[1, 2, 3]], np.int32), np.array([[0.5, 2, -3]], np.float32)
OF_BOTH = [
    *[operator.add, operator.sub, operator.mul],
    *[operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne],
]
CASES = [(function, *arrays) for function in OF_BOTH for arrays in zip((INTEGERS, FLOATS), ROWS, strict=True)]
CASES += [(function, INTEGERS, ROWS[0]) for function in (operator.and_, operator.or_, operator.lshift, operator.rshift)]
CASES += [(operator.truediv, FLOATS, ROWS[1])]


def assert_is(found, expected):
    assert isinstance(found, Light)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found.array, expected)


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize(("function", "values", "row"), CASES)
def test_operators_of_two(function, values, row):
    for other in (row, jnp.asarray(row), Light(jnp.asarray(row))):
        assert_is(function(Light(jnp.asarray(values)), other), function(values, row))
    assert_is(function(Light(jnp.asarray(values)), 2), function(values, values.dtype.type(2)))


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize("function", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_operators_of_numbers_and_numpy_arrays_with_light_ones(function):
    light = Light(jnp.asarray(ROWS[1]))
    assert_is(function(FLOATS, light), function(FLOATS, ROWS[1]))
    assert_is(function(2, light), function(np.float32(2), ROWS[1]))


def test_operators_of_one():
    integers, floats = Light(jnp.asarray(INTEGERS)), Light(jnp.asarray(FLOATS))
    assert_is(-integers, -INTEGERS)
    assert_is(_light.absolute(floats), np.abs(FLOATS))
    assert_is(_light.floor(floats), np.floor(FLOATS))
    assert_is(_light.is_finite(Light(jnp.asarray([[1.0, jnp.inf, -jnp.inf]]))), np.array([[True, False, False]]))
    assert_is(_light.clip(integers, -1, 5), np.clip(INTEGERS, -1, 5))
    assert_is(_light.maximum(integers, ROWS[0]), np.maximum(INTEGERS, ROWS[0]))
    assert_is(_light.minimum(integers, ROWS[0]), np.minimum(INTEGERS, ROWS[0]))
    assert_is(_light.unsigned_shift(integers, 3), (INTEGERS.view(np.uint32) >> 3).astype(np.int32))
    assert_is(_light.bitcast(floats, jnp.int32), FLOATS.view(np.int32))
    assert_is(floats.astype(jnp.int32)[..., 1:], FLOATS.astype(np.int32)[..., 1:])


def test_where_of_one_shape_broadcasts_to_the_others_also_where_they_are_sharded():
    mask, column = np.array([[True, False, True]]), FLOATS[:, :1]
    expected = np.where(mask, column, np.float32(0))
    assert_is(_light.where(mask, Light(jnp.asarray(column)), 0), expected)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(column, NamedSharding(mesh, PartitionSpec("data")))
        found = jax.jit(lambda column: _light.where(mask, Light(column), 0).array)(sharded)
        assert jax.typeof(found).sharding.spec[0] == "data"
        np.testing.assert_array_equal(found, expected)
