"""Pixels -> crops by an interpolation kernel, and the derivatives of that.

    crops[i, j] = sum over k and l of  rows[i, k] * columns[j, l] * image[k, l]

It is linear in the image; and its derivative by what the weights are made of, fractions and scales, is linear in the
image and in how far these move. So ``sum(crops * cotangent)``, or how it moves, is linear in crops, image and moves
alike, and all derivatives up to the second are its derivatives by one of the three (`Derivative`). What these are is
said by deriving the matrix products of `products`, which serve all platforms and, derived again, all orders; a CPU has
programs of its own (`bands`) for them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.interpreters import ad

from jax_crop._kernels import Kernel
from jax_crop._sampling import bands, gather, products
from jax_crop._sampling.meshes import unless_partitioned, zeros
from jax_crop._sampling.primitives import dense, derived, is_asked, linear_primitive, moves
from jax_crop._sampling.tables import Samples, Scheme, closed_under_vmap, float_of

Moves = tuple[tuple[Any, Any], tuple[Any, Any]]  # fractions and scales, of rows and of columns
_NONE: Moves = ((None, None), (None, None))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def sample_by_kernel(kernel: Kernel, scheme: Scheme, image: Array, samples: Samples) -> Array:
    """As `sample` of one image, which an interpolation kernel weighs; differentiable in scales, too."""
    by_products, by_bands = (
        functools.partial(program, kernel, scheme.dtype) for program in (products.values_of_kernel, bands.crops)
    )
    on_cpu = closed_under_vmap(functools.partial(unless_partitioned, by_bands, by_products))
    on_others = closed_under_vmap(by_products)
    if not bands.can_compile(image.shape):
        return on_others(image, samples)
    return lax.platform_dependent(image, samples, cpu=on_cpu, default=on_others)


@functools.partial(sample_by_kernel.defjvp, symbolic_zeros=True)
def _(kernel: Kernel, scheme: Scheme, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    def values(image: Array, samples: Samples) -> Array:
        which = Derivative("values", kernel, scheme.dtype, image.shape[1:4])
        return _bind(which, Operands(None, image, None, _moving(samples), _with(samples, _NONE)))[0]

    return derived(values, primals, tangents)  # by a primitive, as `sample`


class Derivative(NamedTuple):
    """The derivative of ``sum(crops * cotangent)`` by the cotangent, the image or what the weights are made of; static.

    Attributes:
        result: accordingly ``"crops"``, ``"image"`` or ``"moves"``. Operands are the others; and if moves are among
            these, the result is how that derivative changes along them. Or ``"values"``, the crops of
            `sample_by_kernel`.
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
    """What a derivative is linear in, or depends on; what it is not given is None.

    Attributes:
        crops: their cotangents, ``[G, N, h, w, C]``.
        image: ``[G, B, H, W, C]``.
        moves: how far fractions and scales move.
        moving: these themselves.
        rest: all else of the samples; with a fill for values alone.
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

    def of(image: Array, moving: Moves) -> Array:
        return products.crops_of_kernel(which.kernel, image, _with(at.rest, moving), which.compute)

    def along_moves(function: Callable[[Moves], Any]) -> Any:
        return function(at.moving) if at.moves is None else jax.jvp(function, (at.moving,), (at.moves,))[1]

    if which.result == "values":
        return [products.values_of_kernel(which.kernel, which.dtype, at.image, _with(at.rest, at.moving))]
    if which.result == "crops":
        image = at.image if at.moves is None else products.finite(at.image)
        return [along_moves(functools.partial(of, image)).astype(which.dtype)]
    bars = at.crops.astype(which.compute)
    if which.result == "image":
        none = zeros(_shape_of_image(which, at), which.compute, at)
        return list(jax.vjp(lambda image: along_moves(functools.partial(of, image)), none)[1](bars))
    image = products.finite(at.image)
    return jax.tree.leaves(along_moves(lambda moving: jax.vjp(functools.partial(of, image), moving)[1](bars)))


def _by_bands(which: Derivative, at: Operands) -> Sequence[Array]:
    samples = _with(at.rest, at.moving)
    if which.result in ("values", "crops"):
        return [bands.crops(which.kernel, which.dtype, at.image, samples, at.moves)]
    if which.result == "image":
        return [bands.images(which.kernel, _shape_of_image(which, at), at.crops, samples, at.moves)]
    return jax.tree.leaves(bands.moves(which.kernel, at.crops, at.image, samples, at.moves))


def _shape_of_image(which: Derivative, at: Operands) -> tuple[Any, ...]:
    return (at.crops.shape[0], *which.shape, at.crops.shape[-1])


def _types(which: Derivative, at: Operands) -> Sequence[tuple[tuple[Any, ...], Any]]:
    if which.result == "image":
        return [(_shape_of_image(which, at), which.compute)]
    if which.result == "moves":
        return [(x.shape, which.compute) for x in jax.tree.leaves(at.moving)]
    size = at.rest.rows.index.shape[-1], at.rest.columns.index.shape[-1]
    return [((*at.rest.item.shape, *size, at.image.shape[-1]), which.dtype)]


def _programs(
    which: Derivative, at: Operands, devices: int | None
) -> dict[str, Callable[[Derivative, Operands], Sequence[Any]]]:
    has_bands = bands.can_compile((at.crops if at.image is None else at.image).shape)
    return {"default": _by_products} | ({"cpu": _by_bands} if has_bands and devices is None else {})


def _jvp(which: Derivative, at: Operands, dots: Operands) -> Sequence[Sequence[Array]]:
    """By operands, and by what moves, with the same programs; by all else as JAX derives the products."""
    parts: list[Sequence[Array]] = []
    if which.result == "values":
        if moves(dots.rest.fill):
            parts.append([gather.fill_tangent(which.dtype, dense(dots.rest.fill), at.rest)])
        which = which._replace(result="crops")
        at, dots = (x._replace(rest=x.rest._replace(fill=None)) for x in (at, dots))
    # How the derivative by moves changes is linear in crops and image, too; but such transposes have no programs.
    linear_in = ["moves"] if which.result == "moves" and at.moves is not None else ["crops", "image", "moves"]
    parts += [
        _bind(which, at._replace(**{name: dense(getattr(dots, name))}))
        for name in linear_in
        if moves(getattr(dots, name))
    ]
    done = {name: getattr(at, name) for name in linear_in}
    if at.moves is None:
        done["moving"] = at.moving
        if moves(dots.moving):
            parts.append(_bind(which, at._replace(moves=dense(dots.moving))))
    none: dict[str, Any] = dict.fromkeys(done)
    rest, rest_dots = at._replace(**none), dots._replace(**none)
    if moves(rest_dots):
        parts.append(derived(lambda *rest: _by_products(which, Operands(*rest)._replace(**done)), rest, rest_dots)[1])
    return parts


def _cotangents(which: Derivative, given: Operands, cotangents: Sequence[Array]) -> Operands:
    """Those of the operand that is asked for, in its place: the derivative by that."""
    name = next(name for name in ("crops", "image", "moves") if is_asked(getattr(given, name)))
    of_result: Any = cotangents[0]
    if which.result == "moves":
        of_result = jax.tree.unflatten(jax.tree.structure(given.moving), cotangents)
    at = given._replace(**{name: None, which.result: of_result})  # of both names, which may be one, the last counts
    found = _bind(which._replace(result=name), at)
    asked = jax.tree.structure(getattr(given, name), is_leaf=ad.is_undefined_primal)
    return given._replace(**{name: jax.tree.unflatten(asked, found)})


_bind = linear_primitive(
    "jax_crop_by_kernel", types=_types, programs=_programs, jvp=_jvp, cotangents=_cotangents, images="image"
)
