"""The transposes of sampling on a CPU: loops from sample to sample, each compiled to one function of one thread.

XLA would run a loop as a program of its own for each step, and a scatter or a sum as one that needs all that it adds in
memory. But a call that is marked as small is compiled as a whole, to machine code that adds in place.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata


class Taps(NamedTuple):
    """The pixels that samples weigh along one axis.

    Attributes:
        first: ``[N, n]``, the index of the first of them.
        weights: ``[N, n, taps]``, of that and the next.
        inside: ``[N, n]``, whether a sample has influence.
    """

    first: Array
    weights: Array
    inside: Array


def with_crops(crops: Array, image: Array, rows: Taps, columns: Taps, share: Array) -> Array:
    """Puts the crops of those boxes in place that have a sample inside.

    Args:
        crops: ``[N, h, w, C]``.
        image: ``[R, W, C]``.
        rows: ``[N, h * samples]``.
        columns: ``[N, w * samples]``.
        share: ``[N]``, what each sample of a bin counts.
    """
    channels = image.shape[2]
    window = rows.weights.shape[2], columns.weights.shape[2], channels

    def with_all(crops: Array, counts: Array, image: Array, rows: _Table, columns: _Table, share: Array) -> Array:
        boxes, height, width, _ = crops.shape
        down, across = rows.places.shape[1] // height, columns.places.shape[1] // width

        def with_bin(n: Array, i: Array, j: Array, crops: Array) -> Array:
            def add_sample(k: Array, total: Array) -> Array:
                row = _at(rows, n, i * down + lax.div(k, jnp.int32(across)))
                column = _at(columns, n, j * across + lax.rem(k, jnp.int32(across)))
                pixels = _take(image, _start(row, column, image), window).astype(total.dtype)
                lines = [_between(line, column.weights) for line in pixels]
                inside = (row.places[1] & column.places[1]) != 0
                return total + _only(inside, _between(lines, row.weights))

            total = _loop(down * across, add_sample, _zeros((channels,), rows, crops), unroll=down * across)
            return _put(crops, (total * _at(share, n)).astype(crops.dtype)[None, None, None], (n, i, j, 0))

        def with_row(n: Array, i: Array, crops: Array) -> Array:
            return _loop(width, lambda j, crops: with_bin(n, i, j, crops), crops)

        def with_box(n: Array, crops: Array) -> Array:
            return _loop(_at(counts, n), lambda i, crops: with_row(n, i, crops), crops)

        return _loop(boxes, with_box, crops)

    counts = _where_inside(rows, columns, crops.shape[1])
    return _small(with_all, crops, counts, image, _table(rows), _table(columns), share)


def image_cotangent(image: jax.ShapeDtypeStruct, crops: Array, rows: Taps, columns: Taps) -> Array:
    """What all samples add to the pixels that they weigh.

    Args:
        image: the type of the image, ``[R, W, C]``, and of the result, which is summed in the type of the weights.
        crops: the cotangents ``[N, h, w, C]`` of samples, or of bins of several samples each.
        rows: ``[N, h * samples]``.
        columns: ``[N, w * samples]``.
    """
    window = _merged((rows.weights.shape[2], columns.weights.shape[2], image.shape[2]))

    def add_row(n: Array, i: Array, crops: Array, rows: _Table, columns: _Table, sums: Array, first: Any) -> Array:
        """Adds a row of samples to sums that begin at row ``first`` of the image."""
        row, columns = _at(rows, n, i), _at(columns, n)
        crop, inside = _row_of_samples(crops, n, i, rows.places.shape[1], row, columns)
        crop = _only(inside[:, None], crop)

        def add_sample(j: Array, sums: Array) -> Array:
            column, value = _at((columns, crop), j)
            weights = row.weights[:, None] * column.weights[None]
            added = (weights[..., None] * value[None, None]).reshape(window)
            start = _start(row, column, sums, first)
            return _put(sums, _take(sums, start, window) + added, start)

        return _loop(crop.shape[0], add_sample, sums, unroll=_MANY // image.shape[2])

    def at_once(sums: Array, crops: Array, counts: Array, rows: _Table, columns: _Table) -> Array:
        def add_box(n: Array, sums: Array) -> Array:
            return _loop(_at(counts, n), lambda i, sums: add_row(n, i, crops, rows, columns, sums, 0), sums)

        return _loop(crops.shape[0], add_box, sums)

    def in_blocks(result: Array, crops: Array, counts: Array, rows: _Table, columns: _Table) -> Array:
        """Sums a few rows of the image at a time, and one more to each side, which belong to other blocks."""
        height, *line = result.shape
        block = max(1, min(height, _BLOCK // math.prod(line)))
        margin = window[0] - 1

        def with_block(b: Array, result: Array) -> Array:
            start = jnp.minimum(b * block, height - block)
            first = start - margin

            def add_if_near(n: Array, i: Array, sums: Array) -> Array:
                row = _at(rows, n, i).places[0]
                near = ((row >= first) & (row < start + block)).astype(jnp.int32)
                return _loop(near, lambda _, sums: add_row(n, i, crops, rows, columns, sums, first), sums)

            def add_box(n: Array, sums: Array) -> Array:
                return _loop(_at(counts, n), lambda i, sums: add_if_near(n, i, sums), sums)

            sums = _loop(crops.shape[0], add_box, _zeros((block + 2 * margin, *line), rows, crops))
            own = _take(sums, (margin, *[0] * len(line)), (block, *line))
            return _put(result, own.astype(result.dtype), (start, *[0] * len(line)))

        return _loop(-(-height // block), with_block, result)

    counts = _where_inside(rows, columns, rows.first.shape[1])
    tables = _table(rows), _table(columns, image.shape)
    narrow = jnp.dtype(image.dtype).itemsize < jnp.dtype(rows.weights.dtype).itemsize  # too coarse to sum in
    program, dtype = (in_blocks, image.dtype) if narrow else (at_once, rows.weights.dtype)
    zeros = _zeros(_merged(image.shape), tables[0], crops).astype(dtype)  # set by all threads, each on pages of its own
    return _small(program, zeros, crops, counts, *tables).reshape(image.shape).astype(image.dtype)


def box_cotangent(crops: Array, image: Array, rows: Taps, columns: Taps) -> tuple[Array, Array]:
    """How much the samples of each row, or of each column, would gain in all if they moved by one pixel.

    Args:
        crops: the cotangents ``[N, h, w, C]`` of samples, or of bins of several samples each.
        image: ``[R, W, C]``.
        rows: ``[N, h * samples]``.
        columns: ``[N, w * samples]``.

    Returns:
        ``[N, h * samples]`` and ``[N, w * samples]``, in the type of the weights.
    """
    channels = image.shape[2]
    window = rows.weights.shape[2], columns.weights.shape[2], channels

    def cotangent(crops: Array, counts: Array, image: Array, rows: _Table, columns: _Table) -> tuple[Array, Array]:
        image = image.reshape(_merged(image.shape))
        (boxes, height, _), width = rows.places.shape, columns.places.shape[1]

        def add_row(n: Array, i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            row, own_columns = _at(rows, n, i), _at(columns, n)
            crop, inside = _row_of_samples(crops, n, i, height, row, own_columns)

            def add_sample(j: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                row_sum, column_sums = sums
                column, value, is_inside = _at((own_columns, crop, inside), j)
                pixels = _take(image, _start(row, column, image), _merged(window)).astype(value.dtype).reshape(window)
                down = sum((pixels[-1, k] - pixels[0, k]) * column.weights[k] for k in range(window[1]))
                across = sum((pixels[k, -1] - pixels[k, 0]) * row.weights[k] for k in range(window[0]))
                down, across = _only(is_inside, down * value), _only(is_inside, across * value)
                column_sum = _take(column_sums, (j, 0), (1, channels)) + across[None]
                return row_sum + down, _put(column_sums, column_sum, (j, 0))

            row_sums, column_sums = sums
            row_sum = _zeros((channels,), rows, crops)
            row_sum, column_sums = _loop(width, add_sample, (row_sum, column_sums), unroll=_MANY // channels)
            return _put(row_sums, _sum(row_sum[None]), (i,)), column_sums

        def of_box(n: Array, results: tuple[Array, Array]) -> tuple[Array, Array]:
            sums = _zeros((height,), rows, crops), _zeros((width, channels), rows, crops)
            row_sums, column_sums = _loop(_at(counts, n), lambda i, sums: add_row(n, i, sums), sums)
            of_rows, of_columns = results
            return _put(of_rows, row_sums[None], (n, 0)), _put(of_columns, _sum(column_sums)[None], (n, 0))

        return _loop(boxes, of_box, (_zeros((boxes, height), rows, crops), _zeros((boxes, width), rows, crops)))

    counts = _where_inside(rows, columns, rows.first.shape[1])
    return _small(cotangent, crops, counts, image, _table(rows), _table(columns, image.shape))


# How many floats a step of a loop should add at least: a few pixels, or many channels of one.
_MANY = 48
# How many floats to sum before they are rounded to a narrower type: 4 MiB, which stay in a cache.
_BLOCK = 2**20


class _Table(NamedTuple):
    """Taps in two parts, both in use whatever the shapes: XLA fails if an argument of a small call is not.

    Attributes:
        places: ``[N, n, 2]``, where the first pixel starts, and whether the sample is inside.
        weights: ``[N, n, taps]``.
    """

    places: Array
    weights: Array


def _table(taps: Taps, image: tuple[int, ...] = (1, 1, 1)) -> _Table:
    """Of places along rows, or along the columns of an image of some shape."""
    stride = _merged(image)[1] // image[1]
    return _Table(jnp.stack([taps.first * stride, taps.inside.astype(jnp.int32)], axis=-1), taps.weights)


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape ``(R, W, C)``, or that of one run of floats for each row: the faster one if channels are few."""
    rows, columns, channels = shape
    return (rows, columns * channels) if channels < 16 else shape


def _where_inside(rows: Taps, columns: Taps, count: int) -> Array:
    """``[N]``, the count for boxes that have samples inside; 0 for others."""
    inside = jnp.any(rows.inside, axis=1) & jnp.any(columns.inside, axis=1)
    return count * inside.astype(jnp.int32)


def _start(row: _Table, column: _Table, image: Array, first: Any = 0) -> tuple[Any, ...]:
    """Where the pixels of a sample begin in an image whose first row has the index ``first``."""
    return (row.places[0] - first, column.places[0], 0)[: image.ndim]


def _row_of_samples(crops: Array, n: Array, i: Array, height: int, row: _Table, columns: _Table) -> tuple[Array, Array]:
    """The cotangents of the samples of one of ``height`` rows of a box, ``[w * samples, C]``, and which are inside."""
    _, bins, width, channels = crops.shape
    down, across = height // bins, columns.places.shape[0] // width
    of_bins = _take(crops, (n, lax.div(i, jnp.int32(down)), 0, 0), (1, 1, width, channels))
    of_bins = of_bins.astype(row.weights.dtype).reshape(width, 1, channels)
    of_samples = jnp.broadcast_to(of_bins, (width, across, channels)).reshape(-1, channels)
    return of_samples, (row.places[1] & columns.places[:, 1]) != 0


def _at(arrays: Any, *indices: Array) -> Any:
    """Element ``indices`` of arrays' first axes."""

    def element(array: Array) -> Array:
        shape = array.shape[len(indices) :]
        return _take(array, (*indices, *[0] * len(shape)), (*[1] * len(indices), *shape)).reshape(shape)

    return jax.tree.map(element, arrays)


def _take(array: Array, start: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    return lax.dynamic_slice(array, [jnp.int32(i) for i in start], shape, allow_negative_indices=False)


def _put(array: Array, part: Array, start: tuple[Any, ...]) -> Array:
    return lax.dynamic_update_slice(array, part, [jnp.int32(i) for i in start], allow_negative_indices=False)


def _only(inside: Array, values: Array) -> Array:
    """The values, 0 where not inside."""
    inside = inside if inside.ndim == 0 else jnp.broadcast_to(inside, values.shape)
    return lax.select(inside, values, jnp.zeros_like(values))  # jnp.where would remain a call


def _between(values: Any, weights: Array) -> Array:
    """Between the first value and the last; a value without weight has no influence, be it infinite or NaN."""
    first, last, weight = values[0], values[-1], weights[-1]
    if len(values) == 1:
        return first
    on_first, on_last = (jnp.broadcast_to(weight == whole, first.shape) for whole in (0, 1))
    return lax.select(on_last, last, lax.select(on_first, first, first + (last - first) * weight))


def _sum(values: Array) -> Array:
    """``[n, C]`` to ``[n]``; not by a reduction: XLA leaves large ones to a library, which a small call cannot use."""
    count, channels = values.shape
    lanes = math.gcd(channels, 16)  # so many sums at once, which are then folded

    def add(k: Array, sums: Array) -> Array:
        return sums + _take(values, (0, k * lanes), (count, lanes))

    sums = _loop(channels // lanes - 1, lambda k, sums: add(k + 1, sums), values[:, :lanes])
    while lanes > 1:
        lanes //= 2
        sums = sums[:, :lanes] + sums[:, lanes:]
    return sums[:, 0]


def _zeros(shape: tuple[int, ...], rows: _Table, crops: Array) -> Array:
    """Zeros; within `jax.shard_map` of a type that differs between devices as the crops do."""
    zero, _ = lax.optimization_barrier((jnp.zeros((), rows.weights.dtype), crops))
    return jnp.broadcast_to(zero, shape)


def _loop(count: Any, body: Callable[[Array, Any], Any], carry: Any, unroll: int = 1) -> Any:
    unroll = max(1, unroll)  # only of a count that is known
    return lax.fori_loop(0, count, lambda i, carry: body(i.astype(jnp.int32), carry), carry, unroll=unroll)


def _small(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA compiles as a whole."""
    arguments = lax.optimization_barrier(arguments)  # a constant would move into the loops, and be in use no longer
    with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
        return jax.jit(function)(*arguments)
