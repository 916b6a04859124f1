"""What is known of meshes: by the types of arrays, or by a lowering; within `jax.shard_map` as each JAX names it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import AxisType


def partitioned_over(arrays: Any) -> int:
    """Over how many devices XLA partitions work on the arrays, as far as their types say."""
    axes = [
        axis for mesh in _meshes(arrays) for axis in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    ]
    return math.prod({name: size for name, size, kind in axes if kind == AxisType.Auto}.values())


def lowered_for(axis_context: Any) -> int | None:
    """Over how many devices XLA partitions what is lowered, at least 1; None if each runs a program of its own."""
    if hasattr(axis_context, "manual_axes"):  # within `jax.shard_map`
        others = [size for name, size in axis_context.mesh.shape.items() if name not in axis_context.manual_axes]
        return math.prod(others) if others else None
    devices = getattr(axis_context, "num_devices", None) or 0
    return None if devices == 1 else max(devices, 1)


def vary_as(arrays: Sequence[Any], others: Any) -> list[Any]:
    """The arrays; within `jax.shard_map` of types that differ between devices along the axes of any of the others."""
    axes = frozenset().union(*map(_varying, jax.tree.leaves(others)))
    return [_to_varying(x, tuple(missing)) if (missing := axes - _varying(x)) else x for x in arrays]


def zeros(shape: Sequence[Any], dtype: Any, *others: Any) -> Array:
    """An array of zeros that varies as others do, to begin a loop's sum with."""
    return jnp.broadcast_to(vary_as([jnp.zeros((), dtype)], others)[0], shape)


def unless_partitioned(alone: Callable[..., Array], shared: Callable[..., Array], *arrays: Any) -> Array:
    """``alone(*arrays)``, a CPU's program that XLA cannot partition; or where it would have to, ``shared(*arrays)``.

    Types tell of most meshes. Of one that they do not show, as of ``in_shardings``, only a lowering knows: where there
    may be such a mesh, a primitive chooses then, the only one of our own that a forward pass has.
    """
    if partitioned_over(arrays) > 1:
        return shared(*arrays)
    if _cpu_devices() == 1 or any(not mesh.empty for mesh in _meshes(arrays)):
        return alone(*arrays)
    leaves, tree = jax.tree.flatten(arrays)

    def traced(program: Callable[..., Array]) -> ClosedJaxpr:
        return jax.make_jaxpr(lambda *leaves: program(*jax.tree.unflatten(tree, leaves)))(*leaves)

    return _unless_partitioned.bind(*leaves, alone=traced(alone), shared=traced(shared))


def _varying(array: Any) -> frozenset[str]:
    """The mesh axes along which an array differs between devices."""
    type_ = jax.typeof(array)
    return type_.manual_axis_type.varying if hasattr(type_, "manual_axis_type") else type_.vma  # until JAX 0.9


def _to_varying(array: Array, axes: tuple[str, ...]) -> Array:
    cast: Any = lax  # whose name for it was another until JAX 0.8
    return cast.pcast(array, axes, to="varying") if hasattr(lax, "pcast") else cast.pvary(array, axes)


def _meshes(arrays: Any) -> list[Any]:
    return [jax.sharding.get_abstract_mesh(), *(jax.typeof(array).sharding.mesh for array in jax.tree.leaves(arrays))]


def _cpu_devices() -> int:
    try:
        return jax.device_count("cpu")
    except RuntimeError:  # JAX was told to have none
        return 1


def _apply(*leaves: Any, alone: ClosedJaxpr, shared: ClosedJaxpr) -> Any:
    return jaxpr_as_fun(alone)(*leaves)[0]  # outside of `jax.jit`, where types show every mesh


def _type_of(*leaves: Any, alone: ClosedJaxpr, shared: ClosedJaxpr) -> Any:
    return shared.out_avals[0]


def _lower(context: Any, *leaves: Any, alone: ClosedJaxpr, shared: ClosedJaxpr) -> Any:
    program = alone if lowered_for(context.module_context.axis_context) is None else shared
    return mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(context, *leaves)


_unless_partitioned = Primitive("jax_crop_unless_partitioned")
_unless_partitioned.def_impl(_apply)
_unless_partitioned.def_abstract_eval(_type_of)
mlir.register_lowering(_unless_partitioned, _lower)
