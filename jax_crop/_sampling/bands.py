"""Sampling by an interpolation kernel on a CPU, and its gradients: loops over pixels that have weight, of one thread.

The matrices of `products` are bands: a sample's pixels follow one another. Of each box, the rows of samples are summed
first, of the columns that it reaches; then the columns, of what these sums leave. Both add runs of floats: what lies
between them is transposed, so that a column of samples is a run as well. As many pixels are read as the kernel reaches;
so no bound on the size of boxes is asked for. Gradients take the same way back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_crop._calls import small
from jax_crop._geometry import Axis
from jax_crop._kernels import Kernel, on_last
from jax_crop._sampling.steps import at, loop, only, put, restored, stored, summed, take
from jax_crop._sampling.tables import Samples, flat, float_of, items_of_all
from jax_crop._sampling.varying import zeros

# How many floats of a row of pixels are summed at once, and of a column of samples: these stay in the nearest cache.
_ACROSS = 256
_DOWN = 4096
# Of a sum of products: as many at a time as registers hold.
_LANES = 32


def can_compile(shape: tuple[Any, ...]) -> bool:
    """Whether a small call can take images ``[..., C]``: XLA would split work on very many channels over threads."""
    return isinstance(shape[-1], int) and shape[-1] <= 2**14


class _Bands(NamedTuple):
    """Which pixels samples weigh.

    Attributes:
        reach: ``[N, 3]``, the first row of a box's image; the first column of any sample, and the one after the last.
        row_taps: ``[N, h, 2]``, the first pixel of each sample and the one after its last, the same if outside.
        row_places: ``[N, h, 2]``, how far the first pixel is ahead, in units of the kernel, and one pixel in these.
        column_taps: ``[N, w, 2]``.
        column_places: ``[N, w, 2]``.
    """

    reach: Array
    row_taps: Array
    row_places: Array
    column_taps: Array
    column_places: Array


class _Memory(NamedTuple):
    """Changed in place.

    Attributes:
        between: ``[W + 1, rows, C]``, what is between the two sums. One more than is needed, for XLA fails if an
            argument is not in use, as is one that is written as a whole.
        weights: ``[max(H, W) + 1]``, those of a sample.
    """

    between: Array
    weights: Array


def values(kernel: Kernel, dtype: Any, of_groups: tuple[Array, Array], samples: Samples) -> Array:
    """As `products.values_of_kernel`."""
    image, fill = of_groups
    fills = jnp.broadcast_to(fill[:, None], (*samples.item.shape, image.shape[-1])).astype(float_of(dtype))
    return _crops(kernel, image, samples, flat(fills), dtype)


def crops(kernel: Kernel, dtype: Any, image: Array, samples: Samples) -> Array:
    """As `products.crops_of_kernel`."""
    return _crops(kernel, image, samples, jnp.zeros((samples.item.size, image.shape[-1]), dtype), dtype)


def _crops(kernel: Kernel, image: Array, samples: Samples, fills: Array, dtype: Any) -> Array:
    size = samples.rows.index.shape[-1], samples.columns.index.shape[-1]
    rows, bands, memory = _prepared(kernel, image, samples, size, fills.dtype)
    pixel = image.dtype

    def of_all(crops: Array, memory: _Memory, image: Array, bands: _Bands, fills: Array) -> Array:
        def of_part(n: Array, i: Array, state: tuple[Array, _Memory]) -> tuple[Array, _Memory]:
            crops, memory = state
            memory = _rows_summed(kernel, image, pixel, bands, n, i, memory)
            return _columns_summed(kernel, bands, fills, dtype, n, i, memory.between, crops), memory

        return _of_parts(of_part, bands, memory, crops)

    result = stored(zeros((fills.shape[0], *size, fills.shape[1]), dtype, image, fills, samples))
    result = restored(small(of_all, result, memory, rows, bands, fills), dtype)
    return result.reshape(*samples.item.shape, *result.shape[1:])


def images(kernel: Kernel, shape: tuple[Any, ...], crops: Array, samples: Samples) -> Array:
    """The cotangents of images ``[G, B, H, W, C]``, in the type of the fractions."""
    dtype, of_crops = samples.rows.fraction.dtype, crops.dtype
    start = zeros(shape, dtype, crops, samples)
    rows, bands, memory = _prepared(kernel, start, samples, crops.shape[2:4], dtype)

    def of_all(image: Array, memory: _Memory, crops: Array, bands: _Bands) -> Array:
        def of_part(n: Array, i: Array, state: tuple[Array, _Memory]) -> tuple[Array, _Memory]:
            image, memory = state
            memory = _spread_over_columns(kernel, crops, of_crops, bands, n, i, memory)
            return _spread_over_rows(kernel, bands, n, i, memory, image)

        return _of_parts(of_part, bands, memory, image)

    return small(of_all, rows, memory, stored(flat(crops)), bands).reshape(shape)


def moves(kernel: Kernel, crops: Array, image: Array, samples: Samples) -> tuple[tuple[Array, Array], ...]:
    """The cotangents of the fractions and the scales, of rows and of columns."""
    dtype, of_crops, pixel = samples.rows.fraction.dtype, crops.dtype, image.dtype
    rows, bands, memory = _prepared(kernel, image, samples, crops.shape[2:4], dtype)
    of_row = zeros((image.shape[3] * image.shape[4] + 1,), dtype, crops, image, samples)

    def of_all(sums: Any, of_row: Array, memory: _Memory, crops: Array, image: Array, bands: _Bands) -> Any:
        def of_part(n: Array, i: Array, state: Any) -> Any:
            (row_sums, column_sums, of_row), memory = state
            memory = _spread_over_columns(kernel, crops, of_crops, bands, n, i, memory)
            row_sums, of_row = _row_moves(kernel, image, pixel, bands, n, i, memory.between, row_sums, of_row)
            memory = _rows_summed(kernel, image, pixel, bands, n, i, memory, finite=True)
            column_sums = _column_moves(kernel, crops, of_crops, bands, n, i, memory.between, column_sums)
            return (row_sums, column_sums, of_row), memory

        return _of_parts(of_part, bands, memory, (*sums, of_row))[:2]

    sums = tuple(
        zeros(places.shape, dtype, crops, image, samples) for places in (bands.row_places, bands.column_places)
    )
    results = small(of_all, sums, of_row, memory, stored(flat(crops)), rows, bands)

    def of_axis(axis: Axis, size: int, taps: Array, places_bar: Array) -> tuple[Array, Array]:
        def places(fraction: Array, scale: Array) -> Array:
            return flat(_places(axis._replace(fraction=fraction, scale=scale), size, taps))

        bars: tuple[Array, Array] = jax.vjp(places, axis.fraction, axis.scale)[1](places_bar)
        return bars

    taps = (taps.reshape(*samples.item.shape, -1, 2) for taps in (bands.row_taps, bands.column_taps))
    return tuple(map(of_axis, samples[:2], image.shape[2:4], taps, results))


def _prepared(
    kernel: Kernel, image: Array, samples: Samples, size: tuple[int, ...], dtype: Any
) -> tuple[Array, _Bands, _Memory]:
    """All images' rows below each other, ``[R, W * C]``."""
    _, batch, height, width, channels = image.shape
    (row_taps, row_places), (column_taps, column_places) = (
        (taps := _taps(kernel, axis, pixels), _places(axis, pixels, taps))
        for axis, pixels in zip(samples[:2], (height, width), strict=True)
    )
    first_row = items_of_all(samples.item, batch) * height
    bands = _Bands(_reach(first_row, column_taps), row_taps, row_places, column_taps, column_places)
    # Parts of equal length, for what is added must not be added twice.
    down = max(d for d in range(1, size[0] + 1) if size[0] % d == 0 and (d == 1 or d * channels <= _DOWN))
    memory = _Memory(
        zeros((width + 1, down, channels), dtype, image, samples),
        zeros((max(height, width) + 1,), dtype, image, samples),
    )
    return stored(image.reshape(-1, width * channels)), jax.tree.map(flat, bands), memory


def _taps(kernel: Kernel, axis: Axis, size: int) -> Array:
    index, fraction, inside, scale = axis
    radius = jnp.minimum(kernel.radius * scale, 2.0**30)
    first = jnp.maximum(index - jnp.floor(radius - fraction).astype(jnp.int32), 0)
    after = jnp.minimum(index + jnp.floor(radius + fraction).astype(jnp.int32) + 1, size)
    return jnp.where(inside[..., None], jnp.stack([first, after], axis=-1), 0)


def _places(axis: Axis, size: int, taps: Array) -> Array:
    ahead = (taps[..., 0] - axis.index).astype(axis.fraction.dtype) - axis.fraction
    step = jnp.where(on_last(axis, size), -1, 1) / axis.scale
    return jnp.stack([ahead * step, jnp.broadcast_to(step, ahead.shape)], axis=-1)


def _reach(first_row: Array, taps: Array) -> Array:
    first, after = taps[..., 0], taps[..., 1]
    end = jnp.max(after, axis=-1)
    start = jnp.min(jnp.where(first < after, first, end[..., None]), axis=-1)  # the end, if no column is reached
    return jnp.stack([first_row, start, end], axis=-1)


# ---- What small calls do; of box n, the samples of rows i, i + 1, ..., as many as there is memory for. Images and
# crops are `stored`: what pixels and cotangents are of is said beside.


def _of_parts(
    of_part: Callable[[Array, Array, tuple[Any, _Memory]], tuple[Any, _Memory]],
    bands: _Bands,
    memory: _Memory,
    carry: Any,
) -> Any:
    """The carry after all parts of all boxes: ``of_part(n, i, (carry, memory))``."""
    boxes, h, _ = bands.row_taps.shape
    down = memory.between.shape[1]

    def of_box(n: Array, state: Any) -> Any:
        return loop(h // down, lambda part, state: of_part(n, part * down, state), state)

    return loop(boxes, of_box, (carry, memory))[0]


def _rows_summed(
    kernel: Kernel, image: Array, pixel: Any, bands: _Bands, n: Array, i: Array, memory: _Memory, finite: bool = False
) -> _Memory:
    """The sums of rows, in memory between; of finite pixels only, if that is asked for."""
    _, down, channels = memory.between.shape

    def of_row(k: Array, memory: _Memory) -> _Memory:
        taps, inverse, weights = _weighed(kernel, bands.row_taps, bands.row_places, n, i + k, memory.weights)

        def of_block(start: Array, _: Array, between: Array) -> Array:
            across = _across(image, channels)

            def add(tap: Array, sums: Array) -> Array:
                run = _run(
                    image, pixel, bands, n, taps[0] + tap, start * channels, across * channels, sums.dtype, finite
                )
                weight = at(weights, tap)
                return sums + only(jnp.broadcast_to(weight != 0, sums.shape), run * weight)

            sums = loop(taps[1] - taps[0], add, zeros((across * channels,), between.dtype, between, image))
            return put(between, (sums * inverse).reshape(across, 1, channels), (start, k, 0))

        return _Memory(_of_blocks(of_block, bands, n, taps, image, channels, memory.between), weights)

    return loop(down, of_row, memory)


def _columns_summed(
    kernel: Kernel, bands: _Bands, fills: Array, dtype: Any, n: Array, i: Array, between: Array, crops: Array
) -> Array:
    """Crops with the samples of these rows written."""
    _, down, channels = between.shape

    def of_column(j: Array, crops: Array) -> Array:
        taps, place = at(bands.column_taps, n, j), at(bands.column_places, n, j)

        def add(tap: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            total, sums = state
            new = kernel(place[0] + tap.astype(place.dtype) * place[1])
            run = at(between, taps[0] + tap).reshape(-1)
            return total + new, sums + only(jnp.broadcast_to(new != 0, sums.shape), run * new)

        start = jnp.zeros_like(between[0, 0, 0]), jnp.zeros_like(between[0]).reshape(-1)
        total, sums = loop(taps[1] - taps[0], add, start)
        inside = _inside_rows(bands, n, i, between) & (taps[0] < taps[1])
        fill = jnp.broadcast_to(at(fills, n)[None], (down, channels))
        value = lax.select(inside, (sums * (1 / total)).reshape(down, channels), fill)
        return put(crops, stored(value.astype(dtype))[None, :, None], (n, i, j, 0))

    return loop(crops.shape[2], of_column, crops)


def _spread_over_columns(
    kernel: Kernel, crops: Array, of_crops: Any, bands: _Bands, n: Array, i: Array, memory: _Memory
) -> _Memory:
    """What columns of crops add to what is between: the transpose of `_columns_summed`."""
    between, weights = memory
    _, first, after = at(bands.reach, n)
    none = jnp.zeros_like(between[:1])
    between = loop(after - first, lambda x, between: put(between, none, (first + x, 0, 0)), between)

    def of_column(j: Array, memory: _Memory) -> _Memory:
        between, weights = memory
        taps, inverse, weights = _weighed(kernel, bands.column_taps, bands.column_places, n, j, weights)
        column = _column(crops, of_crops, bands, n, i, j, between) * inverse

        def add(tap: Array, between: Array) -> Array:
            x = taps[0] + tap
            return put(between, (at(between, x) + column * at(weights, tap))[None], (x, 0, 0))

        return _Memory(loop(taps[1] - taps[0], add, between), weights)

    return loop(crops.shape[2], of_column, _Memory(between, weights))


def _spread_over_rows(
    kernel: Kernel, bands: _Bands, n: Array, i: Array, memory: _Memory, image: Array
) -> tuple[Array, _Memory]:
    """The image with what is between added to it: the transpose of `_rows_summed`."""
    between, _ = memory
    _, down, channels = between.shape
    _, _, after = at(bands.reach, n)
    across = _across(image, channels)

    def of_row(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        image, weights = state
        taps, inverse, weights = _weighed(kernel, bands.row_taps, bands.row_places, n, i + k, weights)

        def of_block(start: Array, new: Array, image: Array) -> Array:
            x = lax.broadcasted_iota(jnp.int32, (across, channels), 0) + start
            run = take(between, (start, k, 0), (across, 1, channels))[:, 0]
            run = only((x >= new) & (x < after), run * inverse).reshape(1, -1)

            def add(tap: Array, image: Array) -> Array:
                place = at(bands.reach, n)[0] + taps[0] + tap, start * channels
                return put(image, take(image, place, run.shape) + run * at(weights, tap), place)

            return loop(taps[1] - taps[0], add, image)

        return _of_blocks(of_block, bands, n, taps, image, channels, image), weights

    image, weights = loop(down, of_row, (image, memory.weights))
    return image, _Memory(between, weights)


def _row_moves(
    kernel: Kernel,
    image: Array,
    pixel: Any,
    bands: _Bands,
    n: Array,
    i: Array,
    between: Array,
    sums: Array,
    of_row: Array,
) -> tuple[Array, Array]:
    """The cotangents of the places of rows, written; of what is between, as `_spread_over_columns` leaves it."""
    _, down, channels = between.shape
    across, lanes = _across(image, channels), min(_LANES, image.shape[1])
    _, first, after = at(bands.reach, n) * jnp.array([1, channels, channels], jnp.int32)

    def of_sample(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, of_row = state
        taps, place = at(bands.row_taps, n, i + k), at(bands.row_places, n, i + k)

        def copy(start: Array, _: Array, of_row: Array) -> Array:
            return put(of_row, take(between, (start, k, 0), (across, 1, channels)).reshape(-1), (start * channels,))

        of_row = _of_blocks(copy, bands, n, taps, image, channels, of_row)

        def product(tap: Array) -> Array:
            def of_lanes(start: Array) -> Array:
                run = _run(image, pixel, bands, n, taps[0] + tap, start, lanes, of_row.dtype, finite=True)
                return run * take(of_row, (start,), (lanes,))

            whole = lax.div(after - first, jnp.int32(lanes))
            start = zeros((lanes,), of_row.dtype, of_row, image)
            total = loop(whole, lambda block, total: total + of_lanes(first + block * lanes), start)
            rest = first + whole * lanes
            start = jnp.minimum(rest, image.shape[1] - lanes)
            x = lax.iota(jnp.int32, lanes) + start
            return summed((total + only((x >= rest) & (x < after), of_lanes(start)))[None])[0]

        return put(sums, _moves_of_sample(kernel, taps, place, product)[None, None], (n, i + k, 0)), of_row

    return loop(down, of_sample, (sums, of_row))


def _column_moves(
    kernel: Kernel, crops: Array, of_crops: Any, bands: _Bands, n: Array, i: Array, between: Array, sums: Array
) -> Array:
    """The cotangents of the places of columns, added; of what is between, as `_rows_summed` leaves it."""

    def of_sample(j: Array, sums: Array) -> Array:
        taps, place = at(bands.column_taps, n, j), at(bands.column_places, n, j)
        column = _column(crops, of_crops, bands, n, i, j, between).reshape(1, -1)

        def product(tap: Array) -> Array:
            return summed(column * at(between, taps[0] + tap).reshape(1, -1))[0]

        new = at(sums, n, j) + _moves_of_sample(kernel, taps, place, product)
        return put(sums, new[None, None], (n, j, 0))

    return loop(crops.shape[2], of_sample, sums)


def _moves_of_sample(kernel: Kernel, taps: Array, place: Array, product: Callable[[Array], Array]) -> Array:
    """The cotangents of a sample's place, ``[2]``, of its pixels' products with that of the sum: ``product(tap)``.

    Weights are divided by their sum; so are their slopes, without what all of them gain.
    """

    def add(tap: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        step = tap.astype(place.dtype)
        weight, slope = jax.jvp(kernel.__call__, (place[0] + step * place[1],), (jnp.ones_like(place[0]),))
        of_tap = product(tap)
        new = weight, slope, slope * step, weight * of_tap, slope * of_tap, slope * step * of_tap
        return tuple(total + x for total, x in zip(sums, new, strict=True))

    none = jnp.zeros_like(place[0])
    weight, slope, slope_steps, value, gain, gain_steps = loop(taps[1] - taps[0], add, (none,) * 6)
    mean = value / weight
    moves = jnp.stack([(gain - mean * slope) / weight, (gain_steps - mean * slope_steps) / weight])
    return only(jnp.broadcast_to(taps[0] < taps[1], (2,)), moves)


def _weighed(
    kernel: Kernel, taps: Array, places: Array, n: Array, k: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """A sample's taps, the inverse of the sum of its weights, and these in memory."""
    own, place = at(taps, n, k), at(places, n, k)

    def set_weight(tap: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        total, weights = state
        new = kernel(place[0] + tap.astype(place.dtype) * place[1])
        return total + new, put(weights, new[None], (tap,))

    total, weights = loop(own[1] - own[0], set_weight, (jnp.zeros_like(weights[0]), weights))
    return own, 1 / total, weights


def _of_blocks(
    of_block: Callable[[Array, Array, Any], Any],
    bands: _Bands,
    n: Array,
    taps: Array,
    image: Array,
    channels: int,
    carry: Any,
) -> Any:
    """A loop over blocks of the columns in reach: ``of_block(start, new, carry)``, new from some column on."""
    _, first, after = at(bands.reach, n)
    across = _across(image, channels)
    blocks = lax.div(after - first + (across - 1), jnp.int32(across))

    def of_one(block: Array, carry: Any) -> Any:
        new = first + block * across
        return of_block(jnp.minimum(new, image.shape[1] // channels - across), new, carry)

    return loop(jnp.where(taps[0] < taps[1], blocks, 0), of_one, carry)


def _across(image: Array, channels: int) -> int:
    """How many columns of images ``[R, W * C]`` a block has."""
    return min(image.shape[1] // channels, max(1, _ACROSS // channels))


def _run(
    image: Array, pixel: Any, bands: _Bands, n: Array, row: Array, start: Array, count: int, dtype: Any, finite: bool
) -> Array:
    """So many floats of a row of a box's image."""
    run = restored(take(image, (at(bands.reach, n)[0] + row, start), (1, count))[0], pixel).astype(dtype)
    return only(jnp.isfinite(run), run) if finite else run


def _column(crops: Array, of_crops: Any, bands: _Bands, n: Array, i: Array, j: Array, between: Array) -> Array:
    """A column of crops ``[rows, C]``, 0 where samples are outside."""
    _, down, channels = between.shape
    column = restored(take(crops, (n, i, j, 0), (1, down, 1, channels)), of_crops).reshape(down, channels)
    return only(_inside_rows(bands, n, i, between), column.astype(between.dtype))


def _inside_rows(bands: _Bands, n: Array, i: Array, between: Array) -> Array:
    _, down, channels = between.shape
    taps = take(bands.row_taps, (n, i, 0), (1, down, 2))[0]
    return jnp.broadcast_to((taps[:, 0] < taps[:, 1])[:, None], (down, channels))
