"""Pixels -> crops by an interpolation kernel, and the derivatives of that.

Derivatives are linear operations, each the transpose of another (`Sum`). What they are is said by deriving the matrix
products of `products`, which serve all platforms and, derived again, all orders; a CPU has programs of its own
(`bands`) for those that gradients consist of.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_crop._kernels import Kernel
from jax_crop._sampling import bands, gather, products
from jax_crop._sampling.linear import on_one_device
from jax_crop._sampling.tables import Samples, Scheme, batched, closed_under_vmap
from jax_crop._sampling.varying import vary_as, zeros

Moves = tuple[tuple[Any, Any], tuple[Any, Any]]  # fractions and scales, of rows and of columns


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def sample_by_kernel(kernel: Kernel, scheme: Scheme, image: Array, samples: Samples, fill: Array) -> Array:
    """As `sample` of one image, which an interpolation kernel weighs; differentiable in scales, too."""
    by_products, by_bands = (
        closed_under_vmap(functools.partial(program, kernel, scheme.dtype))
        for program in (products.values_of_kernel, bands.values)
    )
    of_groups = image, jnp.broadcast_to(fill, (image.shape[0], *fill.shape))
    if not bands.can_compile(image.shape):
        return by_products(of_groups, samples)
    return lax.platform_dependent(of_groups, samples, cpu=by_bands, default=by_products)


@functools.partial(sample_by_kernel.defjvp, symbolic_zeros=True)
def _jvp_of_sample(
    kernel: Kernel, scheme: Scheme, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    image, samples, _ = primals
    image_dot, samples_dot, fill_dot = tangents
    crops = sample_by_kernel(kernel, scheme, *primals)
    crops_dot = jnp.zeros((), scheme.dtype)
    sum_ = Sum("crops of image", kernel, scheme.compute, image.shape[1:4])
    at = Operands(None, None, None, _moving(samples), _at_rest(samples))
    if not isinstance(image_dot, SymbolicZero):
        crops_dot += _bind(sum_, at._replace(image=image_dot))[0].astype(scheme.dtype)
    dots = _moving(samples_dot)
    if not all(isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(dots)):
        dots = jax.tree.map(lambda dot: jnp.zeros(dot.shape, dot.dtype) if isinstance(dot, SymbolicZero) else dot, dots)
        of_moves = sum_._replace(result="crops of moves")
        crops_dot += _bind(of_moves, at._replace(image=image, moves=dots))[0].astype(scheme.dtype)
    if not isinstance(fill_dot, SymbolicZero):
        crops_dot += gather.fill_tangent(scheme, fill_dot, samples)
    return crops, jnp.broadcast_to(crops_dot, crops.shape)


class Sum(NamedTuple):
    """Which of the linear operations; static.

    Attributes:
        result: what it gives: ``"crops of image"`` of an image, or its transpose, ``"image"`` of crops;
            ``"crops of moves"`` of moves, or its transpose, ``"moves"`` of crops.
        kernel: see `Kernel`.
        dtype: what is computed in.
        shape: ``(B, H, W)`` of the image.
    """

    result: str
    kernel: Kernel
    dtype: Any
    shape: tuple[Any, ...]


class Operands(NamedTuple):
    """What the operations are given; what one does not take is None.

    Attributes:
        crops: ``[G, N, h, w, C]``.
        image: ``[G, B, H, W, C]``.
        moves: how far fractions and scales move.
        moving: these themselves.
        rest: all else of the samples.
    """

    crops: Any
    image: Any
    moves: Moves | None
    moving: Moves
    rest: Samples


def _moving(samples: Samples) -> Moves:
    (rows, columns) = ((axis.fraction, axis.scale) for axis in samples[:2])
    return rows, columns


def _at_rest(samples: Samples, moving: Moves = ((None, None), (None, None))) -> Samples:
    rows, columns = (
        axis._replace(fraction=fraction, scale=scale)
        for axis, (fraction, scale) in zip(samples[:2], moving, strict=True)
    )
    return samples._replace(rows=rows, columns=columns)


def _by_products(sum_: Sum, at: Operands) -> Sequence[Array]:
    """The results, as the derivatives of matrix products."""

    def of_image(image: Array) -> Array:
        return products.crops_of_kernel(sum_.kernel, image, _at_rest(at.rest, at.moving), sum_.dtype)

    def of_moving(moving: Moves) -> Array:
        image = products.finite(at.image)
        return products.crops_of_kernel(sum_.kernel, image, _at_rest(at.rest, moving), sum_.dtype)

    if sum_.result == "crops of image":
        return [of_image(at.image)]
    if sum_.result == "image":
        none = zeros(_shape_of_image(sum_, at), sum_.dtype, at)
        return list(jax.vjp(of_image, none)[1](at.crops.astype(sum_.dtype)))
    if sum_.result == "crops of moves":
        return [jax.jvp(of_moving, (at.moving,), (at.moves,))[1]]
    return jax.tree.leaves(jax.vjp(of_moving, at.moving)[1](at.crops.astype(sum_.dtype)))


def _by_bands(sum_: Sum, at: Operands) -> Sequence[Array]:
    samples = _at_rest(at.rest, at.moving)
    if sum_.result == "crops of image":
        return [bands.crops(sum_.kernel, sum_.dtype, at.image, samples)]
    if sum_.result == "image":
        return [bands.images(sum_.kernel, _shape_of_image(sum_, at), at.crops, samples)]
    return jax.tree.leaves(bands.moves(sum_.kernel, at.crops, at.image, samples))


def _shape_of_image(sum_: Sum, at: Operands) -> tuple[Any, ...]:
    return (at.crops.shape[0], *sum_.shape, at.crops.shape[-1])


def _bind(sum_: Sum, at: Operands) -> Sequence[Any]:
    leaves, tree = jax.tree.flatten(at)
    return _sum_p.bind(*vary_as(leaves, leaves), sum_=sum_, tree=tree)


_sum_p = Primitive("jax_crop_kernel_sum")
_sum_p.multiple_results = True


def _apply(*leaves: Any, sum_: Sum, tree: Any, program: Callable[..., Any] = _by_products) -> Sequence[Array]:
    return program(sum_, jax.tree.unflatten(tree, leaves))


def _types(*leaves: Any, sum_: Sum, tree: Any) -> Any:
    at = jax.tree.unflatten(tree, leaves)
    if sum_.result == "image":
        shapes = [_shape_of_image(sum_, at)]
    elif sum_.result == "moves":
        shapes = [x.shape for x in jax.tree.leaves(at.moving)]
    else:
        size = at.rest.rows.index.shape[-1], at.rest.columns.index.shape[-1]
        shapes = [(*at.rest.item.shape, *size, at.image.shape[-1])]
    # Traced, for what `jax.shard_map` adds to a type.
    return jax.make_jaxpr(lambda *leaves: [zeros(shape, sum_.dtype, leaves) for shape in shapes])(*leaves).out_avals


def _lower(context: Any, *leaves: Any, sum_: Sum, tree: Any) -> Any:
    module = context.module_context
    at = jax.tree.unflatten(tree, context.avals_in)
    channels = (at.crops if at.image is None else at.image).shape
    of_cpu = (
        on_one_device(module.axis_context)
        and bands.can_compile(channels)
        and sum_.result != "crops of moves"
        and "cpu" in module.platforms
    )

    def apply(*leaves: Any) -> Sequence[Array]:
        by = {"cpu": functools.partial(_apply, sum_=sum_, tree=tree, program=_by_bands)} if of_cpu else {}
        if of_cpu and len(module.platforms) == 1:
            return by["cpu"](*leaves)
        return lax.platform_dependent(*leaves, **by, default=functools.partial(_apply, sum_=sum_, tree=tree))

    return mlir.lower_fun(apply, multiple_results=True)(context, *leaves)


# Which operand each is linear in, and its transpose.
_LINEAR_IN = {"crops of image": "image", "image": "crops", "crops of moves": "moves", "moves": "crops"}
_TRANSPOSE = {
    "crops of image": "image",
    "image": "crops of image",
    "crops of moves": "moves",
    "moves": "crops of moves",
}


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, sum_: Sum, tree: Any) -> tuple[Any, Any]:
    at, dots = jax.tree.unflatten(tree, primals), jax.tree.unflatten(tree, tangents)
    results = _bind(sum_, at)
    totals = [jnp.zeros_like(result) for result in results]
    linear = _LINEAR_IN[sum_.result]
    if _moves(getattr(dots, linear)):
        dense = jax.tree.map(ad.instantiate_zeros, getattr(dots, linear))
        totals = list(_bind(sum_, at._replace(**{linear: dense})))
    rest: Any
    held, rest = jax.tree.flatten(at._replace(**{linear: None}))
    rest_dots = rest.flatten_up_to(dots._replace(**{linear: None}))
    moved = [k for k, dot in enumerate(rest_dots) if _moves(dot)]
    if moved:

        def of(moving: Sequence[Array]) -> Sequence[Array]:
            leaves = list(held)
            for k, x in zip(moved, moving, strict=True):
                leaves[k] = x
            return _by_products(sum_, jax.tree.unflatten(rest, leaves)._replace(**{linear: getattr(at, linear)}))

        by_rest = jax.jvp(of, ([held[k] for k in moved],), ([rest_dots[k] for k in moved],))[1]
        totals = [total + part for total, part in zip(totals, by_rest, strict=True)]
    return results, totals


def _moves(dots: Any) -> bool:
    return not all(isinstance(dot, ad.Zero) for dot in jax.tree.leaves(dots))


def _transpose(cotangents: Sequence[Any], *leaves: Any, sum_: Sum, tree: Any) -> Sequence[Any]:
    given = jax.tree.unflatten(tree, leaves)
    linear, result = _LINEAR_IN[sum_.result], _TRANSPOSE[sum_.result]
    bars = [ad.instantiate_zeros(bar) for bar in cotangents]
    if sum_.result == "moves":
        operand = {"moves": jax.tree.unflatten(jax.tree.structure(given.moving), bars)}
    elif sum_.result == "image":
        operand = {"image": bars[0]}
    else:
        operand = {"crops": bars[0]}
    found = _bind(sum_._replace(result=result), given._replace(**{linear: None}, **operand))
    found_tree = jax.tree.structure(getattr(given, linear), is_leaf=ad.is_undefined_primal)
    results = given._replace(**{linear: jax.tree.unflatten(found_tree, found)})
    return [
        bar.astype(leaf.aval.dtype) if ad.is_undefined_primal(leaf) else None
        for leaf, bar in zip(leaves, tree.flatten_up_to(results), strict=True)
    ]


def _vmap(leaves: Sequence[Any], axes: Sequence[Any], *, sum_: Sum, tree: Any) -> tuple[Any, Any]:
    of_groups = jax.tree.leaves(jax.tree.unflatten(tree, range(len(leaves))).image)
    return batched(
        lambda leaves: _bind(sum_, jax.tree.unflatten(tree, leaves)), leaves, axes, of_groups, sum_.result == "image"
    )


_sum_p.def_impl(_apply)
_sum_p.def_abstract_eval(_types)
mlir.register_lowering(_sum_p, _lower)
ad.primitive_jvps[_sum_p] = _jvp
ad.primitive_transposes[_sum_p] = _transpose
batching.primitive_batchers[_sum_p] = _vmap
