"""Pixels -> crops: gather and interpolate, and the derivative of that. The only place that is tuned for speed.

The value is formed by ``left + (right - left) * w``, which keeps constants exact. Its derivative is that of the weighted sum
of the same pixels, ``left * (1 - w) + right * w``, whose transpose is a scatter-add.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jax_crop._geometry import Axis

# How many bytes of pixels the derivative handles at a time on a CPU: about what the caches nearest to a core hold.
_STRIP_BYTES = 2**16


def float_of(*dtypes: Any) -> Any:
    """The dtype to compute in: float64 where one of the dtypes is, else float32."""
    return jnp.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)


class Scheme(NamedTuple):
    """What is known of crops before their data is.

    Attributes:
        taps: how many pixels a sample weighs along (rows, columns): 2 for linear interpolation, else 1.
        samples: how many samples an output pixel sums along (rows, columns): 1 but for pooling.
        dtype: of the crops.
    """

    taps: tuple[int, int]
    samples: tuple[int, int]
    dtype: Any

    @property
    def compute(self) -> Any:
        """The dtype of interpolation."""
        return float_of(self.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def sample(scheme: Scheme, image: Array, rows: Axis, columns: Axis, fill: Array, share: Array) -> Array:
    """Crops of an image.

    Args:
        scheme: see `Scheme`.
        image: ``[R, W, C]``, any real type; the rows of all images of a batch follow each other.
        rows: the samples along rows, ``[N, h * samples]``.
        columns: the samples along columns, ``[N, w * samples]``.
        fill: ``[C]``, the value of a sample outside.
        share: ``[N]``, what each of several samples of an output pixel counts.

    Returns:
        ``[N, h, w, C]`` in the scheme's dtype, differentiable in image, fractions and fill.
    """
    return _pool(
        scheme,
        rows,
        columns,
        share,
        lambda row, column, inside: jnp.where(inside, _interpolate(scheme, image, row, column), fill),
    )


@functools.partial(sample.defjvp, symbolic_zeros=True)
def _sample_jvp(scheme: Scheme, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    image, rows, columns, fill, share = primals
    image_dot, rows_dot, columns_dot, fill_dot, _ = tangents
    crops = sample(scheme, *primals)
    crops_dot = jnp.zeros(crops.shape, scheme.compute)

    # Only what has a tangent is differentiated: the rest, slopes above all, is never computed.
    moving = {"image": image_dot, "row": rows_dot.fraction, "column": columns_dot.fraction}
    moving = {name: dot for name, dot in moving.items() if not isinstance(dot, SymbolicZero)}
    if moving:
        at = {"image": image, "row": rows.fraction, "column": columns.fraction}
        if "image" in moving:  # so that its cotangent is summed in the type of interpolation
            at["image"], moving["image"] = image.astype(scheme.compute), image_dot.astype(scheme.compute)

        def crops_at(changes: dict[str, Array]) -> Array:
            now = at | changes
            moved = rows._replace(fraction=now["row"]), columns._replace(fraction=now["column"])
            return _weighted_sum(scheme, now["image"], *moved, share)

        crops_dot = jax.jvp(crops_at, ({name: at[name] for name in moving},), (moving,))[1]
    if not isinstance(fill_dot, SymbolicZero):
        crops_dot += _pool(scheme, rows, columns, share, lambda _row, _column, inside: jnp.where(inside, 0, fill_dot))
    return crops, crops_dot.astype(scheme.dtype)


def _pool(
    scheme: Scheme, rows: Axis, columns: Axis, share: Array, value: Callable[[Axis, Axis, Array], Array]
) -> Array:
    """The sum of ``value(row, column, inside)`` over the samples of each output pixel; value gives ``[N, h, w, C]``."""
    total = sum(
        value(row, column, (row.inside[:, :, None] & column.inside[:, None, :])[..., None])
        for row in _every(scheme.samples[0], rows)
        for column in _every(scheme.samples[1], columns)
    )
    if math.prod(scheme.samples) > 1:
        total *= share[:, None, None, None]
    return total.astype(scheme.dtype)


def _every(samples: int, axis: Axis) -> list[Axis]:
    """The first sample of each output pixel, the second of each, and so on."""
    return [jax.tree.map(lambda table, i=i: table[:, i::samples], axis) for i in range(samples)]


def _interpolate(scheme: Scheme, image: Array, row: Axis, column: Axis) -> Array:
    """One sample for each output pixel: ``[N, h, w, C]``."""
    row_indices, row_weight = _neighbours(scheme.taps[0], row)
    column_indices, column_weight = _neighbours(scheme.taps[1], column)
    across = [
        _lerp([_pixels(image, i, j, (1, 1)).squeeze((3, 4)).astype(scheme.compute) for j in column_indices], column_weight[:, None, :, None])
        for i in row_indices
    ]
    return _lerp(across, row_weight[:, :, None, None])


def _neighbours(taps: int, axis: Axis) -> tuple[list[Array], Array]:
    """The indices of the pixels that a sample lies between, and the weight of the second, in [0, 1)."""
    if taps == 1:
        return [axis.index], axis.fraction
    on_second = axis.fraction == 1
    return [axis.index + on_second.astype(jnp.int32), axis.index + 1], jnp.where(on_second, 0, axis.fraction)


def _lerp(values: list[Array], weight: Array) -> Array:
    """Between two values; a value without weight has no influence, be it infinite or NaN."""
    left, right = values[0], values[-1]
    return left if left is right else jnp.where(weight == 0, left, left + (right - left) * weight)


def _pixels(image: Array, rows: Array, columns: Array, window: tuple[int, int]) -> Array:
    """Windows of pixels that start at each of ``[N, h]`` rows and ``[N, w]`` columns: ``[N, h, w, *window, C]``."""
    starts = jnp.stack(jnp.broadcast_arrays(rows[:, :, None], columns[:, None, :]), axis=-1)
    return lax.gather(
        image,
        starts,
        lax.GatherDimensionNumbers(offset_dims=(3, 4, 5), collapsed_slice_dims=(), start_index_map=(0, 1)),
        slice_sizes=(*window, image.shape[2]),
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def _weighted_sum(scheme: Scheme, image: Array, rows: Axis, columns: Axis, share: Array) -> Array:
    """As `sample` but for rounding, with 0 outside: linear in the image, its transpose is one scatter-add a strip.

    A strip is a number of crop rows.
    """
    boxes, samples = rows.index.shape
    height, width = samples // scheme.samples[0], columns.index.shape[1] // scheme.samples[1]

    # Nothing is kept from the forward pass but the tables: a strip's pixels and weights are computed anew.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def strip(image: Array, columns: Axis, row: Axis, box: Array) -> Array:
        column = jax.tree.map(lambda table: table[box], columns)
        inside = row.inside[:, :, None] & column.inside[:, None, :]
        weights = _weights(scheme.taps[0], row)[:, :, None, :, None] * _weights(scheme.taps[1], column)[:, None, :, None, :]
        if math.prod(scheme.samples) > 1:
            weights *= share[box][:, None, None, None, None]
        pixels = _pixels(image, row.index, column.index, scheme.taps).astype(scheme.compute)
        weighted = jnp.where(inside[..., None, None, None], pixels, 0) * weights[..., None]
        length = row.index.shape[0]
        return weighted.reshape(length, scheme.samples[0], width, scheme.samples[1], *weighted.shape[3:]).sum((1, 3, 4, 5))

    def in_strips(image: Array, rows: Axis, columns: Axis) -> Array:
        row_bytes = math.prod(scheme.taps) * scheme.samples[0] * samples * image.shape[2] * jnp.dtype(scheme.compute).itemsize
        length = _strip_length(boxes, height, _STRIP_BYTES // row_bytes)
        table = jax.tree.map(lambda t: t.reshape(-1, length, scheme.samples[0]), rows)
        box = (jnp.arange(boxes * height, dtype=jnp.int32) // height).reshape(-1, length)
        crops = lax.scan(lambda _, xs: (None, strip(image, columns, *xs)), None, (table, box))[1]
        return crops.reshape(boxes, height, width, image.shape[2])

    return in_strips(image, rows, columns)


def _strip_length(boxes: int, height: int, most: int) -> int:
    """How many of the ``boxes * height`` crop rows make a strip: a divisor of their number."""
    total = boxes * height
    return max(length for length in range(1, max(most, 1) + 1) if total % length == 0)


def _weights(taps: int, axis: Axis) -> Array:
    """The weights of the pixels that a sample lies between, ``[..., taps]``."""
    if taps == 1:
        return jnp.ones_like(axis.fraction)[..., None]
    return jnp.stack([1 - axis.fraction, axis.fraction], axis=-1)
