"""Pixels -> crops: gather and interpolate, and the derivative of that. The only place that is tuned for speed.

The value is ``left + (right - left) * w``, which keeps constants exact. The derivative is that of the same surface
written ``left * (1 - w) + right * w``: linear in the pixels, so that its transpose is a scatter-add.

Two habits of XLA on CPUs shape this file. It computes what a gather needs anew for every element of the result,
unless that lies in memory before (`_in_memory`). And it forms all that a scatter adds, or a sum adds up, in memory
before it begins; so the derivative is taken of a strip of crop rows at a time (`_in_strips`). Other platforms take all
at once.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata

from jax_crop._geometry import Axis

# What a strip may hold in memory. A scatter is one core's work, so that what it adds should fit in that core's cache;
# products are formed by all cores, for which they must be many.
_SCATTER_BYTES = 2**17
_PRODUCT_BYTES = 2**20


def float_of(*dtypes: Any) -> Any:
    """The dtype to compute in: float64 where one of the dtypes is, else float32."""
    return jnp.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)


class Scheme(NamedTuple):
    """What is known of crops before their data is.

    Attributes:
        taps: how many pixels a sample weighs along (rows, columns): 2 for linear interpolation, else 1.
        samples: how many samples an output pixel sums along (rows, columns): 1 but for pooling.
        dtype: of the crops.
        at_once: how many images are cut at once, under `jax.vmap`.
    """

    taps: tuple[int, int]
    samples: tuple[int, int]
    dtype: Any
    at_once: int

    @property
    def compute(self) -> Any:
        """The dtype of interpolation."""
        return float_of(self.dtype)


class Neighbours(NamedTuple):
    """The pixels that samples lie between along one axis, the weight of the second in [0, 1), and if they are inside.

    ``[N, n]`` each. Of a sample that needs one pixel only, that is the first, and the weight is 0.
    """

    indices: list[Array]
    weight: Array
    inside: Array


class Taps(NamedTuple):
    """The pixels that samples weigh along one axis, and their weights: ``[N, n, taps]``; and ``[N, n]``."""

    indices: Array
    weights: Array
    inside: Array


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
    neighbours = _neighbours(scheme.taps[0], rows), _neighbours(scheme.taps[1], columns)
    row_neighbours, column_neighbours = _in_memory(lax.optimization_barrier(neighbours))  # not anew for each channel

    def value(rows: Neighbours, columns: Neighbours) -> Array:
        return jnp.where(_inside(rows.inside, columns.inside), _interpolate(scheme, image, rows, columns), fill)

    return _sum_of_samples(scheme, row_neighbours, column_neighbours, share, value).astype(scheme.dtype)


@functools.partial(sample.defjvp, symbolic_zeros=True)
def _sample_jvp(scheme: Scheme, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    image, rows, columns, _, share = primals
    tables: tuple[Any, Any, Array]
    image_dot, row_dot, column_dot, fill_dot = (
        None if isinstance(dot, SymbolicZero) else dot  # only what has a tangent is computed
        for dot in (tangents[0], tangents[1].fraction, tangents[2].fraction, tangents[3])
    )
    rows = rows._replace(index=_varying_with(image, rows.index))
    crops_dot = jnp.zeros((), scheme.compute)
    if image_dot is not None:
        image_dot = image_dot.astype(scheme.compute)  # so that its cotangent is summed in the type of interpolation
        if image.shape[2] < 16:  # many channels may be sharded, which a reshape would undo
            image_dot = image_dot.reshape(image.shape[0], -1, 1)
        image_dot = _varying_with(rows.index, image_dot)  # whose cotangents are summed once, after the last strip
        tables = (_taps(scheme.taps[0], rows), _taps(scheme.taps[1], columns), share)
        tangent = functools.partial(_image_tangent, scheme, image.shape[2])
        floats = math.prod(scheme.taps) * image.shape[2]
        crops_dot += _in_strips(scheme, _SCATTER_BYTES, floats, tangent, image_dot, image_dot, *tables)
    if row_dot is not None or column_dot is not None:
        tables = ((rows, row_dot), (columns, column_dot), share)
        tangent = functools.partial(_box_tangent, scheme)
        dot = next(dot for dot in (row_dot, column_dot) if dot is not None)
        crops_dot += _in_strips(scheme, _PRODUCT_BYTES, 2 * image.shape[2], tangent, dot, image, *tables)
    if fill_dot is not None:
        crops_dot += _fill_tangent(scheme, fill_dot, rows, columns, share)
    crops = sample(scheme, *primals)
    return crops, jnp.broadcast_to(crops_dot, crops.shape).astype(scheme.dtype)


def _sum_of_samples(scheme: Scheme, rows: Any, columns: Any, share: Array, value: Callable[[Any, Any], Array]) -> Array:
    """The sum of ``value(row, column)``, ``[N, h, w, C]`` of one sample of each output pixel, over all its samples."""
    down, across = scheme.samples
    values = [value(row, column) for row in _every(down, rows) for column in _every(across, columns)]
    total = functools.reduce(jnp.add, values)
    return total if scheme.samples == (1, 1) else total * share[:, None, None, None]


def _every(samples: int, tables: Any) -> list[Any]:
    """The first sample of each output pixel, the second of each, and so on."""
    return [jax.tree.map(lambda table, i=i: table[:, i::samples], tables) for i in range(samples)]


def _inside(rows: Array, columns: Array) -> Array:
    """Whether samples are inside along rows ``[N, h]`` and along columns ``[N, w]``: ``[N, h, w, 1]``."""
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _interpolate(scheme: Scheme, image: Array, rows: Neighbours, columns: Neighbours) -> Array:
    """The surface at each sample, ``[N, h, w, C]``."""
    across = [
        _lerp([_pixels(image, i, j).astype(scheme.compute) for j in columns.indices], columns.weight[:, None, :, None])
        for i in rows.indices
    ]
    return _lerp(across, rows.weight[:, :, None, None])


def _neighbours(taps: int, axis: Axis) -> Neighbours:
    if taps == 1:
        return Neighbours([axis.index], axis.fraction, axis.inside)
    on_second = axis.fraction == 1
    return Neighbours(
        [axis.index + on_second.astype(jnp.int32), axis.index + 1], jnp.where(on_second, 0, axis.fraction), axis.inside
    )


def _lerp(values: list[Array], weight: Array) -> Array:
    """Between the first value and the last; a value without weight has no influence, be it infinite or NaN."""
    left, right = values[0], values[-1]
    return left if left is right else jnp.where(weight == 0, left, left + (right - left) * weight)


def _pixels(image: Array, rows: Array, columns: Array) -> Array:
    """The pixels at each of ``[N, h]`` rows and ``[N, w]`` columns: ``[N, h, w, C]``."""
    return _windows(image, (rows[:, :, None], columns[:, None, :]), (1, 1, image.shape[2])).squeeze((3, 4))


def _windows(array: Array, starts: tuple[Array, Array], shape: tuple[int, ...]) -> Array:
    """Windows of a shape, which start at indices along the array's first two axes: ``[*broadcast, *shape]``."""
    # Rows and columns have indices of their own: a single one would overflow in images beyond 2^31 pixels.
    indices = jnp.stack(jnp.broadcast_arrays(*starts), axis=-1)
    first = indices.ndim - 1
    return lax.gather(
        array,
        indices,
        lax.GatherDimensionNumbers(tuple(range(first, first + len(shape))), (), start_index_map=(0, 1)),
        slice_sizes=shape,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``; on a CPU as a call that is not inlined: arguments and result are in memory."""
    return lax.platform_dependent(*arguments, cpu=functools.partial(_call, function), default=function)


def _in_memory(tables: Any) -> Any:
    """The same tables; on a CPU in memory."""
    same = functools.partial(jax.tree.map, lax.optimization_barrier)  # JAX would skip a call that does nothing
    return lax.platform_dependent(tables, cpu=functools.partial(_call, same), default=lambda tables: tables)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA does not inline."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)


def _varying_with(other: Array, array: Array) -> Array:
    """The array; within `jax.shard_map` of a type that differs between devices if another's does, as loops need it."""
    return lax.optimization_barrier((array, other))[0]


@functools.partial(jax.checkpoint, static_argnums=0)  # keeps no mask for the backward pass
def _fill_tangent(scheme: Scheme, fill_dot: Array, rows: Axis, columns: Axis, share: Array) -> Array:
    """The tangent of crops, linear in the fill's."""
    return _sum_of_samples(
        scheme, rows.inside, columns.inside, share, lambda row, column: jnp.where(_inside(row, column), 0, fill_dot)
    )


def _taps(count: int, axis: Axis) -> Taps:
    indices = axis.index[..., None] + np.arange(count, dtype=np.int32)[None, None]
    weights = jnp.stack([1 - axis.fraction, axis.fraction][:count], axis=-1)
    return Taps(*_in_memory((indices, weights, axis.inside)))


def _image_tangent(scheme: Scheme, channels: int, image_dot: Array, rows: Taps, columns: Taps, share: Array) -> Array:
    """The tangent of crops, linear in the image's ``[R, W, C]``: its transpose is one scatter-add of windows.

    The image may come as ``[R, W * C, 1]``, in which the neighbours of a row are one longer run of floats.
    """
    down, across = scheme.taps
    shape = (*rows.inside.shape, down, columns.inside.shape[1], across, channels)
    run = channels // image_dot.shape[2]
    # A scatter adds each window by itself; they are a plain list, for it would first copy them from another layout.
    starts = jnp.broadcast_arrays(rows.indices[..., None], columns.indices[:, None, None, :, 0] * run)
    first_row, first_column = (start.reshape(-1) for start in starts)
    windows = _windows(image_dot, (first_row, first_column), (1, across * run, image_dot.shape[2]))
    windows = _in_memory(windows.reshape(shape))
    weights = rows.weights[..., None, None] * columns.weights[:, None, None]
    tangent = jnp.sum(windows * weights[..., None], axis=(2, 4))
    return _pool(scheme, jnp.where(_inside(rows.inside, columns.inside), tangent, 0), share)


def _box_tangent(
    scheme: Scheme, image: Array, rows: tuple[Axis, Array | None], columns: tuple[Axis, Array | None], share: Array
) -> Array:
    """The tangent of crops, linear in the fractions': slopes of the surface times how far each sample moves."""
    (row, row_dot), (column, column_dot) = rows, columns
    inside = _inside(row.inside, column.inside)
    total = jnp.zeros((), scheme.compute)
    if row_dot is not None:
        slope = _apart(functools.partial(_slope, scheme, 0), image, row, column)
        total += jnp.where(inside, slope, 0) * _spread_rows(row_dot, column.fraction.shape[1], image.shape[2])
    if column_dot is not None:
        slope = _apart(functools.partial(_slope, scheme, 1), image, row, column)
        total += jnp.where(inside, slope, 0) * _spread_columns(column_dot, row.fraction.shape[1], image.shape[2])
    return _pool(scheme, total, share)


def _slope(scheme: Scheme, axis: int, image: Array, rows: Axis, columns: Axis) -> Array:
    """The slope of the surface along rows (axis 0) or columns (1) at each sample, ``[N, h, w, C]``."""
    (above_left, above_right), (below_left, below_right) = (
        [_pixels(image, rows.index + i, columns.index + j).astype(scheme.compute) for j in (0, scheme.taps[1] - 1)]
        for i in (0, scheme.taps[0] - 1)
    )
    if axis == 0:
        x = columns.fraction[:, None, :, None]
        return (below_left - above_left) * (1 - x) + (below_right - above_right) * x
    y = rows.fraction[:, :, None, None]
    return (above_right - above_left) * (1 - y) + (below_right - below_left) * y


def _spread_rows(dot: Array, width: int, channels: int) -> Array:
    """``[N, h]`` to ``[N, h, w, C]``."""
    # A matrix product with ones transposes to one, which a CPU does faster than a sum over the last axes.
    shape = (dot.shape[0], width, channels)
    return _in_memory(
        lax.platform_dependent(
            dot,
            cpu=lambda dot: jnp.einsum("nh,nwc->nhwc", dot, jnp.ones(shape, dot.dtype)),
            default=lambda dot: jnp.broadcast_to(dot[..., None, None], (*dot.shape, width, channels)),
        )
    )


def _spread_columns(dot: Array, height: int, channels: int) -> Array:
    """``[N, w]`` to ``[N, h, w, C]``."""
    # In two steps: a CPU sums over one axis that is not the last very fast.
    dot = _in_memory(jnp.broadcast_to(dot[..., None], (*dot.shape, channels)))
    return _in_memory(jnp.broadcast_to(dot[:, None], (dot.shape[0], height, *dot.shape[1:])))


def _pool(scheme: Scheme, values: Array, share: Array) -> Array:
    """As `_sum_of_samples`, of all samples at once: ``[N, h * samples, w * samples, C]``."""
    if scheme.samples == (1, 1):
        return values
    boxes, height, width, channels = values.shape
    down, across = scheme.samples
    bins = values.reshape(boxes, height // down, down, width // across, across, channels)
    return bins.sum((2, 4)) * share[:, None, None, None]


def _in_strips(
    scheme: Scheme,
    strip_bytes: int,
    sample_floats: int,
    tangent: Callable[[Array, Any, Any, Array], Array],
    dot: Array,
    image: Array,
    rows: Any,
    columns: Any,
    share: Array,
) -> Array:
    """``tangent(image, rows, columns, share)``, ``[N, h, w, C]``; on a CPU a strip of crop rows at a time.

    Args:
        scheme: see `Scheme`.
        strip_bytes: what the tangent of a strip may hold in memory.
        sample_floats: how many floats the tangent of a sample holds in memory.
        tangent: of any number of boxes, each of any number of rows.
        dot: one of the arrays that the tangent is linear in.
        image: what it takes first.
        rows: tables of all boxes, ``[N, h * samples, ...]``.
        columns: tables, ``[N, w * samples, ...]``.
        share: ``[N]``.
    """
    # Only the tables are kept for the backward pass: what the tangent computes from them is computed again.
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)
    of_all = checkpoint(tangent)

    def strip_by_strip(dot: Array, image: Array, rows: Any, columns: Any, share: Array) -> Array:
        count, height, width, channels = jax.eval_shape(tangent, image, rows, columns, share).shape
        row_bytes = math.prod(scheme.samples) * width * sample_floats * scheme.compute.itemsize
        strip_boxes, strip_rows = _strip_shape(count, height, strip_bytes // scheme.at_once // row_bytes)
        if (strip_boxes, strip_rows) == (count, height):
            return of_all(image, rows, columns, share)

        # Of every so many boxes one is in a strip: so devices that hold parts of the boxes have a part of each strip.
        def split(table: Array) -> Array:
            return table.reshape(strip_boxes, -1, *table.shape[1:])

        def split_rows(table: Array) -> Array:
            strips = table.reshape(strip_boxes, -1, strip_rows * scheme.samples[0], *table.shape[2:])
            return strips.swapaxes(0, 1)

        @checkpoint
        def strip(rows: Any, columns: Any, share: Array, box: Array) -> Array:
            columns, share = jax.tree.map(
                lambda table: lax.dynamic_index_in_dim(split(table), box, axis=1, keepdims=False), (columns, share)
            )
            return tangent(image, rows, columns, share)

        def add_strip(crops: Array, place: tuple[Any, Array]) -> tuple[Array, None]:
            strip_of_rows, i = place
            # An addition, for the transpose of that reads the cotangent where it lies.
            return lax.scatter_add(
                crops,
                i[None] * strip_rows,
                strip(strip_of_rows, columns, share, i // (height // strip_rows)),
                lax.ScatterDimensionNumbers((0, 1, 2, 3), (), scatter_dims_to_operand_dims=(1,)),
                mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
            ), None

        # Zeros that are linear in what the tangent is linear in: plain ones would be kept for the backward pass.
        zero = jnp.where(False, dot, 0)[(slice(1),) * dot.ndim].reshape(())
        zero = _varying_with(jax.tree.leaves(rows)[0], zero)
        crops = jnp.broadcast_to(zero, (strip_boxes, count // strip_boxes * height, width, channels))
        places = jnp.arange(crops.shape[1] // strip_rows, dtype=jnp.int32)
        # Last strip first, so that the transpose reads its cotangent from first to last, as processors expect.
        crops, _ = lax.scan(add_strip, crops, (jax.tree.map(split_rows, rows), places), reverse=True)
        return crops.reshape(count, height, width, channels)

    return lax.platform_dependent(
        dot, image, rows, columns, share, cpu=strip_by_strip, default=lambda _, *arguments: of_all(*arguments)
    )


def _strip_shape(count: int, height: int, most: int) -> tuple[int, int]:
    """How many boxes, and how many rows of each, make a strip: at most that many rows, if equal strips allow it."""
    if not isinstance(count, int):  # a symbolic number has no divisors
        return 1, _divisor(height, most)
    # Rows of one box lie together. But devices that may share the boxes have an equal part of each strip.
    devices = math.gcd(count, jax.device_count())
    rows = _divisor(height, most // devices)
    return devices * _divisor(count // devices, most // devices // rows), rows


def _divisor(number: int, most: int) -> int:
    """The largest divisor up to a limit; at least 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(most, 1))
