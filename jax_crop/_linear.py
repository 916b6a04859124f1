"""Linear maps for which, or for whose transpose, a CPU has a program of its own.

The formula, and the transpose that JAX derives of it, are right everywhere, and fast where thousands of threads work at
once. A CPU has faster programs for the same sums. JAX's `linear_call` would take those, but can neither be
differentiated again nor batched.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_crop._manual import vary_as

Arrays = Sequence[Any]


class Map(NamedTuple):
    """A map ``(inputs, tables) -> outputs`` of lists of arrays, linear in the inputs.

    Attributes:
        formula: can be differentiated.
        on_cpu: another program for the same map, which cannot; if there is one.
    """

    formula: Callable[[Arrays, Arrays], Arrays]
    on_cpu: Callable[[Arrays, Arrays], Arrays] | None = None


def linear(
    formula: Callable[..., Array],
    inputs: Any,
    tables: Any,
    *,
    on_cpu: Callable[..., Array] | None = None,
    transpose_on_cpu: Callable[..., Any] | None = None,
) -> Array:
    """``formula(inputs, tables)``, differentiable to any order.

    Args:
        formula: linear in the inputs, and what JAX can differentiate.
        inputs: a tree of arrays.
        tables: a tree of arrays.
        on_cpu: another program for the formula, which need not be differentiable.
        transpose_on_cpu: likewise for its transpose, ``(cotangent, tables)`` to the cotangents of the inputs.
    """
    leaves, tree = jax.tree.flatten(inputs)
    table_leaves, table_tree = jax.tree.flatten(tables)
    # Within `jax.shard_map`, cotangents are summed over the devices here, if it is the tables that differ between them.
    leaves = vary_as(leaves, [*leaves, *table_leaves])
    types = jax.tree.unflatten(tree, [jax.typeof(leaf) for leaf in leaves])

    def forward(program: Callable[..., Array], leaves: Arrays, table_leaves: Arrays) -> Arrays:
        return [program(jax.tree.unflatten(tree, leaves), jax.tree.unflatten(table_tree, table_leaves))]

    def transposed(cotangents: Arrays, table_leaves: Arrays) -> Arrays:
        tables = jax.tree.unflatten(table_tree, table_leaves)
        return jax.tree.leaves(jax.linear_transpose(lambda inputs: formula(inputs, tables), types)(*cotangents))

    def transposed_by(program: Callable[..., Any], cotangents: Arrays, table_leaves: Arrays) -> Arrays:
        return jax.tree.leaves(program(*cotangents, jax.tree.unflatten(table_tree, table_leaves)))

    maps = {
        "map_": Map(functools.partial(forward, formula), on_cpu and functools.partial(forward, on_cpu)),
        "transpose": Map(transposed, transpose_on_cpu and functools.partial(transposed_by, transpose_on_cpu)),
    }
    (output,) = _linear_p.bind(*leaves, *table_leaves, count=len(leaves), **maps)
    return output


# `count` inputs, then tables.
_linear_p = Primitive("jax_crop_linear")
_linear_p.multiple_results = True


def _apply(*arrays: Any, count: int, map_: Map, transpose: Map) -> Arrays:
    return map_.formula(arrays[:count], arrays[count:])


def _lower(context: Any, *arrays: Any, count: int, map_: Map, transpose: Map) -> Any:
    def apply(*arrays: Any) -> Arrays:
        inputs, tables = arrays[:count], arrays[count:]
        if map_.on_cpu is None or not _on_one_device(context.module_context.axis_context):
            return map_.formula(inputs, tables)
        return lax.platform_dependent(inputs, tables, cpu=map_.on_cpu, default=map_.formula)

    return mlir.lower_fun(apply, multiple_results=True)(context, *arrays)


def _on_one_device(axis_context: Any) -> bool:
    """Whether each device runs a program of its own. What is partitioned by XLA must leave it the choice of order."""
    if hasattr(axis_context, "manual_axes"):  # within `jax.shard_map`
        return axis_context.manual_axes == frozenset(axis_context.mesh.axis_names)
    return getattr(axis_context, "num_devices", None) == 1


def _types(*types: Any, count: int, map_: Map, transpose: Map) -> Arrays:
    return jax.make_jaxpr(map_.formula)(types[:count], types[count:]).out_avals


def _jvp(primals: Arrays, tangents: Arrays, *, count: int, map_: Map, transpose: Map) -> tuple[Arrays, Arrays]:
    def apply(inputs: Arrays) -> Arrays:
        return _linear_p.bind(*inputs, *tables, count=count, map_=map_, transpose=transpose)

    inputs, tables = primals[:count], primals[count:]
    outputs = apply(inputs)
    outputs_dot: Arrays = [jnp.zeros_like(output) for output in outputs]
    if not all(isinstance(dot, ad.Zero) for dot in tangents[:count]):
        outputs_dot = apply([ad.instantiate_zeros(dot) for dot in tangents[:count]])
    moving = {i: dot for i, dot in enumerate(tangents[count:]) if not isinstance(dot, ad.Zero)}
    if moving:

        def of_moving(moving: dict[int, Any]) -> Arrays:
            return map_.formula(inputs, tuple(moving.get(i, table) for i, table in enumerate(tables)))

        _, by_tables = jax.jvp(of_moving, ({i: tables[i] for i in moving},), (moving,))
        outputs_dot = [dot + other for dot, other in zip(outputs_dot, by_tables, strict=True)]
    return outputs, outputs_dot


def _transpose(cotangents: Arrays, *arrays: Any, count: int, map_: Map, transpose: Map) -> Arrays:
    inputs, tables = arrays[:count], arrays[count:]
    cotangents = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    of_inputs = _linear_p.bind(*cotangents, *tables, count=len(cotangents), map_=transpose, transpose=map_)
    asked = [dot if ad.is_undefined_primal(x) else None for x, dot in zip(inputs, of_inputs, strict=True)]
    return [*asked, *(None for _ in tables)]


def _vmap(arrays: Arrays, axes: Arrays, *, count: int, map_: Map, transpose: Map) -> tuple[Arrays, Arrays]:
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    leading = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    for i in range(count):
        if axes[i] is None:
            leading[i] = jnp.broadcast_to(arrays[i], (size, *arrays[i].shape))
    table_axes = tuple(None if axis is None else 0 for axis in axes[count:])

    def batched(map_: Map) -> Map:
        on_cpu = map_.on_cpu and functools.partial(_in_turn, map_.on_cpu, table_axes)
        return Map(functools.partial(_at_once, map_.formula, table_axes), on_cpu)

    outputs = _linear_p.bind(*leading, count=count, map_=batched(map_), transpose=batched(transpose))
    return outputs, [0 for _ in outputs]


def _at_once(each: Callable[..., Arrays], table_axes: Arrays, inputs: Arrays, tables: Arrays) -> Arrays:
    return jax.vmap(each, in_axes=(0, table_axes))(inputs, tables)


def _in_turn(each: Callable[..., Arrays], table_axes: Arrays, inputs: Arrays, tables: Arrays) -> Arrays:
    def one(own: tuple[Arrays, Arrays]) -> Arrays:
        inputs, own_tables = own
        own_or_shared = zip(own_tables, tables, strict=True)
        return each(inputs, tuple(shared if own is None else own for own, shared in own_or_shared))

    return lax.map(one, (inputs, [None if axis is None else x for x, axis in zip(tables, table_axes, strict=True)]))


_linear_p.def_impl(_apply)
_linear_p.def_abstract_eval(_types)
mlir.register_lowering(_linear_p, _lower)
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _vmap
