"""Where the samples of a box stand along one axis: box edges -> pixel index, fraction, inside.

A `Lattice` says how samples divide a box and where the image's pixels lie; `locate` applies it to boxes. Rows and
columns are independent, so that tables of shape ``[N, n]`` per axis are all that sampling needs.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jax_crop import _exact
from jax_crop._exact import Integers


class Lattice(NamedTuple):
    """The samples of a box from ``start`` to ``stop``, in integers, so that no rounding enters.

    With ``place = start * to_start + stop * to_stop``, a sample stands at pixel ``place * scale / steps + half_shift
    / 2``, pixel centres being whole numbers, and is inside where ``lower <= place <= upper``. ``steps`` is even.
    Integers are NumPy's or Python's where they are known while tracing, and broadcast to ``[N, n]``.
    """

    to_start: Integers
    to_stop: Integers
    steps: Integers
    scale: int
    half_shift: int
    lower: Integers | float
    upper: Integers | float


def corners(size: int, samples: int) -> Lattice:
    """First and last sample on the box's edges; 0 and 1 are the centres of the first and the last pixel."""
    a = np.arange(samples, dtype=np.int32)[None]
    # The factor 2 makes the number of steps even; a single sample stands in the middle.
    to_start, to_stop = (2 * a[:, ::-1], 2 * a) if samples > 1 else (a + 1, a + 1)
    steps = max(2 * (samples - 1), 2)
    # A single pixel is at 0 and at 1: as in TensorFlow and ONNX Runtime, every finite coordinate is on it.
    lower, upper = (0, steps) if size > 1 else (-np.inf, np.inf)
    return Lattice(to_start, to_stop, steps, scale=size - 1, half_shift=0, lower=lower, upper=upper)


def centres(size: int, samples: int) -> Lattice:
    """Samples at the centres of equal bins; 0 and 1 are the outer edges of the first and the last pixel."""
    to_stop = 2 * np.arange(samples, dtype=np.int32)[None] + 1
    steps = 2 * samples
    return Lattice(steps - to_stop, to_stop, steps, scale=size, half_shift=-1, lower=0, upper=steps)


def bins(size: Integers, bins: int, samples: Integers, most: int, aligned: bool) -> Lattice:
    """Samples at the centres of equal parts of each bin, of a box in pixels; inside up to one pixel beyond the image.

    ``samples`` is how many parts a bin has: up to ``most``, for which there is room, and per box (``[N, 1]``) perhaps.
    """
    bin_, part = np.divmod(np.arange(bins * most, dtype=np.int32)[None], most)
    parts = bins * samples
    to_stop = 2 * (bin_ * samples + part) + 1
    half_shift = -1 if aligned else 0
    return Lattice(
        to_start=2 * parts - to_stop,
        to_stop=to_stop,
        steps=2 * parts,
        scale=1,
        half_shift=half_shift,
        lower=-(2 + half_shift) * parts,
        upper=(2 * size - half_shift) * parts,
    )


class Axis(NamedTuple):
    """Samples along one axis, ``[N, n]`` each: between pixels ``index`` and ``index + 1``, at ``fraction`` of the way.

    ``index`` is at most the last pixel but one, and the fraction 1 on the last pixel: so the two pixels also give the
    slope there. Of a single pixel, fraction is 0.

    Of `unclamped`, ``index`` is any pixel, also the one before the first, and the fraction below 1; ``scale`` is how
    much interpolation kernels are stretched, ``[N, 1]``.
    """

    index: Array  # type: ignore[assignment]  # which is a method of tuples, of no use here
    fraction: Array
    inside: Array
    scale: Any = None


def locate(start: Array, stop: Array, size: Integers, lattice: Lattice, dtype: DTypeLike) -> Axis:
    """The samples of boxes along one axis.

    Args:
        start: ``[N]`` float32 or float64, the boxes' first edges along the axis; any value, finite or not.
        stop: ``[N]``, the other edges; below ``start`` the crop is flipped.
        size: the number of pixels along the axis.
        lattice: how the samples lie in a box.
        dtype: of the fractions.

    Returns:
        The samples. Between which pixels they stand and whether they are inside is decided as exact arithmetic
        decides it on the floats given. The fraction's derivative is that of the position: exactly on a pixel toward
        higher indices, at the last pixel toward the inside, and 0 where the position is clamped or outside.
    """
    start, stop = start[:, None], stop[:, None]
    index, fraction, on_pixel, inside = lax.stop_gradient(_place(start, stop, lattice, dtype))

    # Beyond the centres of the first and the last pixel the position is clamped to them. A single pixel has no slope.
    last = jnp.asarray(size - 1, jnp.int32)
    moves = inside & (index >= 0) & ((index < last) | ((index == last) & on_pixel & (last > 0)))
    before_last = jnp.maximum(last - 1, 0)
    fraction = jnp.where(index < 0, 0, jnp.where(index < last, fraction, (last - before_last).astype(fraction.dtype)))

    # The derivative is that of the position, which is linear in the box: a term that is 0, with the position's slope.
    # (A rule of `custom_jvp` would say the same, but JAX forgets it in second derivatives through `lax.scan`.)
    steps = jnp.asarray(lattice.steps, fraction.dtype)
    for edge, weight in ((start, lattice.to_start), (stop, lattice.to_stop)):
        edge = jnp.where(moves, edge.astype(fraction.dtype), 0)
        fraction += (edge - lax.stop_gradient(edge)) * (jnp.asarray(weight, edge.dtype) * lattice.scale / steps)
    return Axis(jnp.clip(index, 0, before_last), fraction.astype(dtype), inside)


def nearest(start: Array, stop: Array, size: int, lattice: Lattice, dtype: DTypeLike) -> Axis:
    """As `locate`, with the pixel nearest to each sample, halves rounded up, as the index and 0 as the fraction."""
    # The nearest pixel is the one below what stands half a pixel further on.
    lattice = lattice._replace(half_shift=lattice.half_shift + 1)
    index, _, _, inside = _place(start[:, None], stop[:, None], lattice, dtype)
    return Axis(jnp.clip(index, 0, size - 1), jnp.zeros(index.shape, dtype), inside)


def unclamped(
    start: Array, stop: Array, size: int, samples: int, align_corners: bool, antialias: bool, dtype: DTypeLike
) -> Axis:
    """As `locate`, but also beyond the centres of the border's pixels, and with the scale of kernels.

    The scale is 1, or with ``antialias`` the distance of two samples in pixels where that is more than 1; of a single
    sample, the box's length. Where the distance is exactly 1, the scale's derivative is 0.
    """
    start, stop = start[:, None], stop[:, None]
    lattice = (corners if align_corners else centres)(size, samples)
    index, fraction, _, inside = lax.stop_gradient(_place(start, stop, lattice, dtype))
    start, stop = start.astype(fraction.dtype), stop.astype(fraction.dtype)
    steps = float(lattice.steps)
    for edge, weight in ((start, lattice.to_start), (stop, lattice.to_stop)):
        edge = jnp.where(inside, edge, 0)
        fraction += (edge - lax.stop_gradient(edge)) * jnp.asarray(weight * (lattice.scale / steps), edge.dtype)

    scale = jnp.ones_like(start)
    if antialias:
        in_use = jnp.any(inside, axis=1, keepdims=True)
        # Far beyond any image, so that no difference is infinite.
        start, stop = (jnp.clip(jnp.where(in_use, edge, 0), -(2.0**30), 2.0**30) for edge in (start, stop))
        distance = jnp.abs(stop - start) * (2 * lattice.scale / steps)
        scale = jnp.where(distance > 1, distance, scale)
    return Axis(index, fraction.astype(dtype), inside, scale.astype(dtype))


def _place(start: Array, stop: Array, lattice: Lattice, dtype: DTypeLike) -> tuple[Array, Array, Array, Array]:
    """Of each sample: the pixel below, the fraction beyond, whether that is exactly 0, whether the sample is inside."""
    dtype = jnp.promote_types(start.dtype, dtype)
    finite = jnp.isfinite(start) & jnp.isfinite(stop)
    place = _exact.dot(
        (jnp.where(finite, start, 0), lattice.to_start),
        (jnp.where(finite, stop, 0), lattice.to_stop),
        dtype=dtype,
    )
    lower, upper = (jnp.asarray(bound, dtype) for bound in (lattice.lower, lattice.upper))
    inside = finite & place.at_least(lower) & place.at_most(upper)
    place = _exact.Pair(*(jnp.where(inside, part, 0) for part in place))

    # The position in steps, of which the integer part is kept in int32 and the rest as a pair in [0, 1).
    whole, rest = place.floor()
    if lattice.scale != 1:
        more, rest = rest.times(lattice.scale).floor()
        whole = whole * lattice.scale + more
    whole += lattice.half_shift * (lattice.steps // 2)
    index = whole // lattice.steps
    remainder = whole - index * lattice.steps
    fraction = (remainder.astype(dtype) + rest.high) / jnp.asarray(lattice.steps, dtype)
    return index, fraction, (remainder == 0) & (rest.high == 0), inside
