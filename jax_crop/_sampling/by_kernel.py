"""Pixels -> crops by an interpolation kernel, and the derivatives of that.

Derivatives are linear operations, each the transpose of another (`Derivative`). What they are is said by deriving the
matrix products of `products`, which serve all platforms and, derived again, all orders; a CPU has programs of its own
(`bands`) for them, which gradients, forward mode and Hessian-vector products in boxes consist of.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad

from jax_crop._kernels import Kernel
from jax_crop._sampling import bands, gather, products
from jax_crop._sampling.meshes import unless_partitioned, zeros
from jax_crop._sampling.primitives import dense, linear_primitive, moves
from jax_crop._sampling.tables import Samples, Scheme, closed_under_vmap, float_of

Moves = tuple[tuple[Any, Any], tuple[Any, Any]]  # fractions and scales, of rows and of columns
_NONE: Moves = ((None, None), (None, None))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def sample_by_kernel(kernel: Kernel, scheme: Scheme, image: Array, samples: Samples, fill: Array) -> Array:
    """As `sample` of one image, which an interpolation kernel weighs; differentiable in scales, too."""
    by_products, by_bands = (
        functools.partial(program, kernel, scheme.dtype) for program in (products.values_of_kernel, bands.values)
    )
    on_cpu = closed_under_vmap(functools.partial(unless_partitioned, by_bands, by_products))
    on_others = closed_under_vmap(by_products)
    of_groups = image, jnp.broadcast_to(fill, (image.shape[0], *fill.shape))
    if not bands.can_compile(image.shape):
        return on_others(of_groups, samples)
    return lax.platform_dependent(of_groups, samples, cpu=on_cpu, default=on_others)


@functools.partial(sample_by_kernel.defjvp, symbolic_zeros=True)
def _jvp_of_sample(
    kernel: Kernel, scheme: Scheme, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    image, samples, _ = primals
    image_dot, samples_dot, fill_dot = tangents
    crops = sample_by_kernel(kernel, scheme, *primals)
    crops_dot = jnp.zeros((), scheme.dtype)
    which = Derivative("crops of image", kernel, scheme.dtype, image.shape[1:4])
    at = Operands(None, None, None, _moving(samples), _with(samples, _NONE))
    if moves(image_dot):
        crops_dot += _bind(which, at._replace(image=image_dot))[0]
    dots = _moving(samples_dot)
    if moves(dots):
        of_moves = which._replace(result="crops of moves")
        crops_dot += _bind(of_moves, at._replace(image=image, moves=dense(dots)))[0]
    if moves(fill_dot):
        crops_dot += gather.fill_tangent(scheme, fill_dot, samples)
    return crops, jnp.broadcast_to(crops_dot, crops.shape)


class Derivative(NamedTuple):
    """Which of the linear operations; static.

    Attributes:
        result: what it gives: ``"crops of image"`` of an image, or its transpose, ``"image"`` of crops;
            ``"crops of moves"`` of moves, or its transpose, ``"moves"`` of crops; ``"moves of moves"``, how these move,
            its own transpose.
        kernel: see `Kernel`.
        dtype: of crops.
        shape: ``(B, H, W)`` of the image.
    """

    result: str
    kernel: Kernel
    dtype: Any
    shape: tuple[Any, ...]

    @property
    def compute(self) -> Any:
        """The dtype of all else."""
        return float_of(self.dtype)


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
    rows, columns = ((axis.fraction, axis.scale) for axis in samples[:2])
    return rows, columns


def _with(samples: Samples, moving: Moves) -> Samples:
    """The samples with other fractions and scales."""
    rows, columns = (
        axis._replace(fraction=fraction, scale=scale)
        for axis, (fraction, scale) in zip(samples[:2], moving, strict=True)
    )
    return samples._replace(rows=rows, columns=columns)


def _by_products(which: Derivative, at: Operands) -> Sequence[Array]:
    """The results, as the derivatives of matrix products."""

    def of_image(image: Array) -> Array:
        return products.crops_of_kernel(which.kernel, image, _with(at.rest, at.moving), which.compute)

    def of_moving(moving: Moves) -> Array:
        image = products.finite(at.image)
        return products.crops_of_kernel(which.kernel, image, _with(at.rest, moving), which.compute)

    if which.result == "crops of image":
        return [of_image(at.image).astype(which.dtype)]
    if which.result == "image":
        none = zeros(_shape_of_image(which, at), which.compute, at)
        return list(jax.vjp(of_image, none)[1](at.crops.astype(which.compute)))
    if which.result == "crops of moves":
        return [jax.jvp(of_moving, (at.moving,), (at.moves,))[1].astype(which.dtype)]

    def of_crops(moving: Moves) -> Any:
        return jax.vjp(of_moving, moving)[1](at.crops.astype(which.compute))

    found = of_crops(at.moving) if which.result == "moves" else jax.jvp(of_crops, (at.moving,), (at.moves,))[1]
    return jax.tree.leaves(found)


def _by_bands(which: Derivative, at: Operands) -> Sequence[Array]:
    samples = _with(at.rest, at.moving)
    if which.result in ("crops of image", "crops of moves"):
        return [bands.crops(which.kernel, which.dtype, at.image, samples, at.moves)]
    if which.result == "image":
        return [bands.images(which.kernel, _shape_of_image(which, at), at.crops, samples)]
    return jax.tree.leaves(bands.moves(which.kernel, at.crops, at.image, samples, at.moves))


def _shape_of_image(which: Derivative, at: Operands) -> tuple[Any, ...]:
    return (at.crops.shape[0], *which.shape, at.crops.shape[-1])


def _types(which: Derivative, at: Operands) -> Sequence[tuple[tuple[Any, ...], Any]]:
    if which.result == "image":
        return [(_shape_of_image(which, at), which.compute)]
    if which.result in _OF_MOVING:
        return [(x.shape, which.compute) for x in jax.tree.leaves(at.moving)]
    size = at.rest.rows.index.shape[-1], at.rest.columns.index.shape[-1]
    return [((*at.rest.item.shape, *size, at.image.shape[-1]), which.dtype)]


def _programs(
    which: Derivative, at: Operands, devices: int | None
) -> dict[str, Callable[[Derivative, Operands], Sequence[Any]]]:
    has_bands = bands.can_compile((at.crops if at.image is None else at.image).shape)
    return {"default": _by_products} | ({"cpu": _by_bands} if has_bands and devices is None else {})


# Which operand each is linear in, and its transpose.
_LINEAR_IN = {
    "crops of image": "image",
    "image": "crops",
    "crops of moves": "moves",
    "moves": "crops",
    "moves of moves": "moves",
}
_TRANSPOSE = {
    "crops of image": "image",
    "image": "crops of image",
    "crops of moves": "moves",
    "moves": "crops of moves",
    "moves of moves": "moves of moves",
}
_OF_MOVING = ("moves", "moves of moves")


def _jvp(which: Derivative, at: Operands, dots: Operands) -> Sequence[Sequence[Array]]:
    parts = []
    name = _LINEAR_IN[which.result]
    if moves(getattr(dots, name)):
        parts.append(_bind(which, at._replace(**{name: dense(getattr(dots, name))})))
    done = {name: getattr(at, name)}
    if which.result == "moves":
        done["moving"] = at.moving
        if moves(dots.moving):
            parts.append(_bind(which._replace(result="moves of moves"), at._replace(moves=dense(dots.moving))))
    none: dict[str, Any] = dict.fromkeys(done)
    rest: Any
    held, rest = jax.tree.flatten(at._replace(**none))
    held_dots = rest.flatten_up_to(dots._replace(**none))
    moved = [k for k, dot in enumerate(held_dots) if moves(dot)]
    if moved:

        def of(moving: Sequence[Array]) -> Sequence[Array]:
            leaves = list(held)
            for k, x in zip(moved, moving, strict=True):
                leaves[k] = x
            return _by_products(which, jax.tree.unflatten(rest, leaves)._replace(**done))

        parts.append(jax.jvp(of, ([held[k] for k in moved],), ([held_dots[k] for k in moved],))[1])
    return parts


def _cotangents(which: Derivative, given: Operands, cotangents: Sequence[Array]) -> Operands:
    name = _LINEAR_IN[which.result]
    of_result: Any = cotangents[0]
    if which.result in _OF_MOVING:
        of_result = jax.tree.unflatten(jax.tree.structure(given.moving), cotangents)
    transpose = _TRANSPOSE[which.result]
    at = given._replace(**{name: None, _LINEAR_IN[transpose]: of_result})
    found = _bind(which._replace(result=transpose), at)
    asked = jax.tree.structure(getattr(given, name), is_leaf=ad.is_undefined_primal)
    return given._replace(**{name: jax.tree.unflatten(asked, found)})


_bind = linear_primitive(
    "jax_crop_by_kernel", types=_types, programs=_programs, jvp=_jvp, cotangents=_cotangents, images="image"
)
