"""Interpolation kernels: where a sample stands -> what it weighs of each pixel.

A kernel is an even function of the distance between pixel and sample, 0 beyond its radius. It is written for distances
from 0 to the radius, in arithmetic that can be differentiated to any order there, at both ends too.

Sources: R. G. Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -1/2; C. E. Duchon,
"Lanczos filtering in one and two dimensions", 1979. They are those of `jax.image.resize` and of Pillow.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jax_crop._geometry import Axis


class Kernel(NamedTuple):
    """A function of distances in ``[0, radius]``."""

    radius: int
    of_distance: Callable[[Array], Array]

    def __call__(self, ahead: Array) -> Array:
        """The weight of a pixel so far ahead of a sample. Where two slopes meet, the one as the sample moves ahead."""
        distance = jnp.where(ahead > 0, ahead, -ahead)  # whose slope is 1 or -1, at 0 too
        within = (ahead > -self.radius) & (ahead <= self.radius)
        return jnp.where(within, self.of_distance(distance), 0)


def _triangle(x: Array) -> Array:
    return 1 - x


def _keys(x: Array) -> Array:
    return jnp.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


def _lanczos(radius: int, x: Array) -> Array:
    return _sinc(x) * _sinc(x / radius)


def _sinc(x: Array) -> Array:
    """``sin(pi x) / (pi x)`` of ``x >= 0``; near 0 the quotient's derivatives would lose all precision."""
    nearest = jnp.floor(x + 0.5)
    rest = x - nearest  # exact, so that whole numbers give 0
    sign = 1 - 2 * (nearest - 2 * jnp.floor(nearest / 2))
    square = (math.pi * rest) * (math.pi * rest)
    series = 0.0  # Taylor's, up to pi / 2 to the type's precision, slopes included
    for k in reversed(range(12 if x.dtype == jnp.float64 else 8)):
        series = series * square + (-1) ** k / math.factorial(2 * k + 1)
    return jnp.where(nearest == 0, series, series * sign * rest / jnp.where(nearest == 0, 1, x))


CUBIC = Kernel(2, _keys)

KERNELS = {
    "bilinear": Kernel(1, _triangle),
    "cubic": CUBIC,
    "bicubic": CUBIC,
    "lanczos3": Kernel(3, functools.partial(_lanczos, 3)),
    "lanczos5": Kernel(5, functools.partial(_lanczos, 5)),
}


def weights(kernel: Kernel, axis: Axis, size: int) -> Array:
    """What samples ``[..., n]`` weigh of each of ``size`` pixels, ``[..., n, size]``: of sum 1, or all 0 if outside."""
    index, fraction, inside, on_last_ = (x[..., None] for x in (*axis[:3], on_last(axis, size)))
    pixels = lax.broadcasted_iota(jnp.int32, (*axis.index.shape, size), axis.index.ndim)
    ahead = (pixels - index).astype(fraction.dtype) - fraction
    weights = kernel(jnp.where(on_last_, -ahead, ahead) / axis.scale[..., None])
    return jnp.where(inside, weights / jnp.sum(weights, axis=-1, keepdims=True), 0)


def on_last(axis: Axis, size: int) -> Array:
    """Where samples are on the last pixel: there what is ahead is taken as behind, for the slope toward the inside."""
    return (axis.index == size - 1) & (axis.fraction == 0)
