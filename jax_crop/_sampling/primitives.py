"""Linear operations of the canonical form, and the crops that they derive, as primitives of JAX.

Derivatives of all are such operations, and so are transposes. What a primitive applies is said by two things: a static
description of it, which a module defines for its primitive, and a tree of operands, of which those that an operation
does not take, as its own result, are None.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_crop._sampling.meshes import lowered_for, vary_as, zeros
from jax_crop._sampling.tables import joined, total

Arrays = Sequence[Any]
Bind = Callable[[Any, Any], Arrays]


def linear_primitive(
    name: str,
    *,
    types: Callable[[Any, Any], Sequence[tuple[Sequence[Any], Any]]],
    programs: Callable[[Any, Any, int | None], dict[str, Callable[[Any, Any], Arrays]]],
    jvp: Callable[[Any, Any, Any], Sequence[Arrays]],
    cotangents: Callable[[Any, Any, Arrays], Any],
    images: str,
) -> Bind:
    """A function of description and operands to results, which a primitive applies.

    Args:
        name: of the primitive.
        types: of description and operands to the shape and the dtype of each result.
        programs: of description, operands, and over how many devices XLA partitions the work, None if it does not, to
            the programs by platform; ``"default"`` for all others.
        jvp: of description, operands and tangents to parts of which the results' tangents are the sums.
        cotangents: of description, operands and the results' cotangents to the operands with their cotangents in the
            places of those that are asked for.
        images: the operand ``[G, ...]``, also the name of the result that is such; all others are ``[G, N, ...]``.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def bind(what: Any, operands: Any) -> Arrays:
        leaves, tree = jax.tree.flatten(operands)
        # Within `jax.shard_map`, cotangents of what does not differ between devices are summed over them here.
        return primitive.bind(*vary_as(leaves, leaves), what=what, tree=tree)

    def apply(*leaves: Any, what: Any, tree: Any, platform: str = "default", devices: int | None = 1) -> Arrays:
        operands = jax.tree.unflatten(tree, leaves)
        return programs(what, operands, devices)[platform](what, operands)

    def types_of(*leaves: Any, what: Any, tree: Any) -> Any:
        shapes = types(what, jax.tree.unflatten(tree, leaves))
        # Traced, for what `jax.shard_map` adds to a type.
        return jax.make_jaxpr(lambda *leaves: [zeros(*shape, leaves) for shape in shapes])(*leaves).out_avals

    def lower(context: Any, *leaves: Any, what: Any, tree: Any) -> Any:
        module = context.module_context
        devices = lowered_for(module.axis_context)
        here = programs(what, jax.tree.unflatten(tree, context.avals_in), devices)
        # Only what is asked for is traced: one program, if not for `jax.export`.
        asked = sorted({platform if platform in here else "default" for platform in module.platforms})
        by_platform = {
            platform: functools.partial(apply, what=what, tree=tree, platform=platform, devices=devices)
            for platform in asked
        }
        one_of_them = functools.partial(lax.platform_dependent, **by_platform)
        return mlir.lower_fun(one_of_them, multiple_results=True)(context, *leaves)

    def jvp_of(primals: Arrays, tangents: Arrays, *, what: Any, tree: Any) -> tuple[Arrays, Arrays]:
        operands, dots = jax.tree.unflatten(tree, primals), jax.tree.unflatten(tree, tangents)
        results = bind(what, operands)
        parts = jvp(what, operands, dots)
        if not parts:
            return results, [jnp.zeros_like(result) for result in results]
        return results, [total(of_result) for of_result in zip(*parts, strict=True)]

    def transpose(bars: Arrays, *leaves: Any, what: Any, tree: Any) -> Arrays:
        found = cotangents(what, jax.tree.unflatten(tree, leaves), [dense(bar) for bar in bars])
        return [
            bar.astype(leaf.aval.dtype) if ad.is_undefined_primal(leaf) else None
            for leaf, bar in zip(leaves, tree.flatten_up_to(found), strict=True)
        ]

    def batch(leaves: Arrays, axes: Sequence[Any], *, what: Any, tree: Any) -> tuple[Arrays, Sequence[int]]:
        of_groups = jax.tree.leaves(getattr(jax.tree.unflatten(tree, range(len(leaves))), images))
        of_boxes = [k for k in range(len(leaves)) if k not in of_groups]

        def program(groups: Arrays, boxes: Arrays) -> Arrays:
            by_place = dict(zip([*of_groups, *of_boxes], [*groups, *boxes], strict=True))
            return bind(what, jax.tree.unflatten(tree, [by_place[k] for k in range(len(leaves))]))

        size = next(x.shape[axis] for x, axis in zip(leaves, axes, strict=True) if axis is not None)
        groups, boxes = (([leaves[k] for k in places], [axes[k] for k in places]) for places in (of_groups, of_boxes))
        results, axis = joined(program, size, groups, boxes, gives_groups=what.result == images)
        # First, as those of `lax.platform_dependent` are: a rule has to map the axis that its function does.
        return [jnp.moveaxis(result, axis, 0) for result in results], [0 for _ in results]

    primitive.def_impl(apply)
    primitive.def_abstract_eval(types_of)
    mlir.register_lowering(primitive, lower)
    ad.primitive_jvps[primitive] = jvp_of
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    return bind


def derived(function: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """``function(*primals)`` and its tangent: `jax.jvp` by those leaves alone whose tangents are not known to be 0."""
    tree: Any
    leaves, tree = jax.tree.flatten(primals)
    dots = tree.flatten_up_to(tangents)
    moved = [k for k, dot in enumerate(dots) if moves(dot)]

    def of_moved(*values: Any) -> Any:
        others = dict(zip(moved, values, strict=True))
        return function(*jax.tree.unflatten(tree, [others.get(k, leaf) for k, leaf in enumerate(leaves)]))

    return jax.jvp(of_moved, [leaves[k] for k in moved], [dots[k] for k in moved])


def moves(dots: Any) -> bool:
    """Whether any of the tangents is not known to be 0."""
    return not all(map(_is_zero, jax.tree.leaves(dots, is_leaf=_is_zero)))


def dense(dots: Any) -> Any:
    """Tangents or cotangents as arrays, those too that are known to be 0."""

    def of(dot: Any) -> Any:
        return jnp.zeros(dot.shape, dot.dtype) if isinstance(dot, SymbolicZero) else ad.instantiate_zeros(dot)

    return jax.tree.map(of, dots, is_leaf=_is_zero)


def is_asked(operands: Any) -> bool:
    """Whether a cotangent of any of them is."""
    return any(map(ad.is_undefined_primal, jax.tree.leaves(operands, is_leaf=ad.is_undefined_primal)))


def _is_zero(dot: Any) -> bool:
    return isinstance(dot, ad.Zero | SymbolicZero)
