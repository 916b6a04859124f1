"""What the types of arrays say of meshes; within `jax.shard_map` under the names that each JAX has for it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType


def partitioned_over(arrays: Any) -> int:
    """Over how many devices XLA partitions work on the arrays, as far as is known while tracing."""
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(array).sharding.mesh for array in jax.tree.leaves(arrays))]
    axes = [axis for mesh in meshes for axis in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)]
    return math.prod({name: size for name, size, kind in axes if kind == AxisType.Auto}.values())


def vary_as(arrays: Sequence[Any], others: Any) -> list[Any]:
    """The arrays; within `jax.shard_map` of types that differ between devices along the axes of any of the others."""
    axes = frozenset().union(*map(_varying, jax.tree.leaves(others)))
    return [_to_varying(x, tuple(missing)) if (missing := axes - _varying(x)) else x for x in arrays]


def zeros(shape: Sequence[Any], dtype: Any, *others: Any) -> Array:
    """An array of zeros that varies as others do, to begin a loop's sum with."""
    return jnp.broadcast_to(vary_as([jnp.zeros((), dtype)], others)[0], shape)


def _varying(array: Any) -> frozenset[str]:
    """The mesh axes along which an array differs between devices."""
    type_ = jax.typeof(array)
    return type_.manual_axis_type.varying if hasattr(type_, "manual_axis_type") else type_.vma  # until JAX 0.9


def _to_varying(array: Array, axes: tuple[str, ...]) -> Array:
    cast: Any = lax  # whose name for it was another until JAX 0.8
    return cast.pcast(array, axes, to="varying") if hasattr(lax, "pcast") else cast.pvary(array, axes)
