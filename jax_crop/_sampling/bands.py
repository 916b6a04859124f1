"""Sampling by an interpolation kernel on a CPU, and its derivatives: loops over pixels that have weight, of one thread.

The matrices of `products` are bands: a sample's pixels follow one another. Of each box, the rows of samples are summed
first, of the columns that it reaches; then the columns, of what these sums leave. Both add runs of floats: what lies
between them is transposed, so that a column of samples is a run as well. As many pixels are read as the kernel reaches;
so no bound on the size of boxes is asked for. Gradients take the same way back.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_crop._calls import small
from jax_crop._geometry import Axis
from jax_crop._kernels import Kernel, on_last
from jax_crop._sampling.meshes import zeros
from jax_crop._sampling.steps import at, floats, loop, only, put, restored, stored, summed, take
from jax_crop._sampling.tables import Samples, flat, float_of, items_of_all

# How many floats of a row of pixels are summed at once, and of a column of samples: these stay in the nearest cache.
_ACROSS = 256
_DOWN = 4096
# Of a sum of products: so many at a time that none of them waits for the one before it.
_LANES = 128


def can_compile(shape: tuple[Any, ...]) -> bool:
    """Whether a small call can take images ``[..., C]``: XLA would split work on very many channels over threads."""
    return isinstance(shape[-1], int) and shape[-1] <= 2**14


class _Band(NamedTuple):
    """Which pixels samples weigh along one axis; of all boxes, or of one sample.

    Attributes:
        taps: ``[..., 2]``, the first pixel of each sample and the one after its last, the same if outside.
        place: ``[..., 2]``, how far the first pixel is ahead, in units of the kernel, and one pixel in these.
        move: ``[..., 2]``, how the place moves; None if nothing is derived along a direction.
    """

    taps: Array
    place: Array
    move: Any

    @property
    def length(self) -> Array:
        """How many pixels."""
        return self.taps[..., 1] - self.taps[..., 0]

    @property
    def inside(self) -> Array:
        return self.length > 0


class _Bands(NamedTuple):
    """Those of all boxes.

    Attributes:
        reach: ``[N, 3]``, the first row of a box's image; the first column of any sample, and the one after the last.
        rows: ``[N, h, 2]`` each.
        columns: ``[N, w, 2]`` each.
    """

    reach: Array
    rows: _Band
    columns: _Band


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


def crops(kernel: Kernel, dtype: Any, image: Array, samples: Samples, dots: Any = None) -> Array:
    """As `products.crops_of_kernel`; or how these move if fractions and scales do as in dots."""
    fills = jnp.zeros((samples.item.size, image.shape[-1]), float_of(dtype))
    return _crops(kernel, image, samples, fills, dtype, dots)


def _crops(kernel: Kernel, image: Array, samples: Samples, fills: Array, dtype: Any, dots: Any = None) -> Array:
    size = samples.rows.index.shape[-1], samples.columns.index.shape[-1]
    rows, bands, memory = _prepared(kernel, image, samples, size, fills.dtype, dots)
    steps = [(_weights, _weights)] if dots is None else [(_moves, _weights), (_weights, _moves)]

    def of_all(crops: Array, memory: _Memory, image: Array, bands: _Bands, fills: Array) -> Array:
        def of_part(part: _Part, crops: Array, memory: _Memory) -> tuple[Array, _Memory]:
            fill = jnp.broadcast_to(at(fills, part.n)[None], part.inside.shape)

            def write(place: tuple[Any, ...], inside: Array, value: Array, crops: Array) -> Array:
                value = lax.select(inside, value, fill).astype(dtype)
                return put(crops, stored(value)[None, :, None], place)

            def add(place: tuple[Any, ...], inside: Array, value: Array, crops: Array) -> Array:
                value = only(inside, value)[None, :, None]
                total = restored(take(crops, place, value.shape), dtype).astype(value.dtype) + value
                return put(crops, stored(total.astype(dtype)), place)

            for (of_rows, of_columns), to_crops in zip(steps, (write, add), strict=False):
                memory = _rows_summed(part, of_rows, image, memory, finite=dots is not None)
                crops = _columns_summed(part, of_columns, to_crops, memory.between, crops)
            return crops, memory

        return _of_parts(of_part, kernel, bands, crops, memory)

    result = stored(zeros((fills.shape[0], *size, fills.shape[1]), dtype, image, fills, samples, dots))
    result = restored(small(of_all, result, memory, rows, bands, fills), dtype)
    return result.reshape(*samples.item.shape, *result.shape[1:])


def images(kernel: Kernel, shape: tuple[Any, ...], crops: Array, samples: Samples) -> Array:
    """The cotangents of images ``[G, B, H, W, C]``, in the type of the fractions."""
    dtype = samples.rows.fraction.dtype
    start = zeros(shape, dtype, crops, samples)
    rows, bands, memory = _prepared(kernel, start, samples, crops.shape[2:4], dtype)

    def of_all(image: Array, memory: _Memory, crops: Array, bands: _Bands) -> Array:
        def of_part(part: _Part, image: Array, memory: _Memory) -> tuple[Array, _Memory]:
            memory = _spread_over_columns(part, _weights, crops, memory)
            return _spread_over_rows(part, memory, image)

        return _of_parts(of_part, kernel, bands, image, memory)

    return small(of_all, rows, memory, flat(crops), bands).reshape(shape)


def moves(kernel: Kernel, crops: Array, image: Array, samples: Samples, dots: Any = None) -> list[tuple[Array, Array]]:
    """The cotangents of fractions and scales, of rows and of columns; or how they move if those do as in dots."""
    dtype = samples.rows.fraction.dtype
    rows, bands, memory = _prepared(kernel, image, samples, crops.shape[2:4], dtype, dots)
    of_row = zeros((image.shape[3] * image.shape[4] + 1,), dtype, crops, image, samples)
    steps: list[tuple[Factors, Slopes]] = [(_weights, _slopes)]
    if dots is not None:
        steps = [(_weights, _slopes_and_their_moves), (_moves, _slopes_as_moves)]

    def of_all(sums: Any, of_row: Array, memory: _Memory, crops: Array, image: Array, bands: _Bands) -> Any:
        def of_part(part: _Part, state: Any, memory: _Memory) -> Any:
            row_sums, column_sums, of_row = state
            for factors, slopes in steps:
                memory = _spread_over_columns(part, factors, crops, memory)
                row_sums, of_row = _row_moves(part, slopes, image, memory.between, row_sums, of_row)
                memory = _rows_summed(part, factors, image, memory, finite=True)
                column_sums = _column_moves(part, slopes, crops, memory.between, column_sums)
            return (row_sums, column_sums, of_row), memory

        return _of_parts(of_part, kernel, bands, (*sums, of_row), memory)[:2]

    sums = tuple(
        zeros((*band.taps.shape[:-1], 2 * len(steps)), dtype, crops, image, samples, dots)
        for band in (bands.rows, bands.columns)
    )
    sums = small(of_all, sums, of_row, memory, flat(crops), rows, bands)

    def of_axis(axis: Axis, size: int, band: _Band, sums: Array, dots: Any) -> Any:
        taps, sums = (x.reshape(*samples.item.shape, *x.shape[1:]) for x in (band.taps, sums))

        def cotangents(moving: tuple[Array, Array], place_bar: Array) -> tuple[Array, Array]:
            return jax.vjp(functools.partial(_place, axis, size, taps), *moving)[1](place_bar)

        moving = axis.fraction, axis.scale
        if dots is None:
            return cotangents(moving, sums)
        place_bar, place_bar_dot = jnp.split(sums, 2, axis=-1)
        return jax.jvp(cotangents, (moving, place_bar), (dots, place_bar_dot))[1]

    return list(map(of_axis, samples[:2], image.shape[2:4], bands[1:], sums, dots or (None, None)))


def _prepared(
    kernel: Kernel, image: Array, samples: Samples, size: tuple[int, ...], dtype: Any, dots: Any = None
) -> tuple[Array, _Bands, _Memory]:
    """All images' rows below each other, ``[R, W * C]``."""
    _, batch, height, width, channels = image.shape

    def band(axis: Axis, size: int, dots: Any) -> _Band:
        taps, moving = _taps(kernel, axis, size), (axis.fraction, axis.scale)
        place = functools.partial(_place, axis, size, taps)
        return _Band(taps, *((place(*moving), None) if dots is None else jax.jvp(place, moving, dots)))

    of_rows, of_columns = map(band, samples[:2], (height, width), dots or (None, None))
    first_row = items_of_all(samples.item, batch) * height
    bands = _Bands(_reach(first_row, of_columns), of_rows, of_columns)
    # Parts of equal length, for what is added must not be added twice.
    down = max(d for d in range(1, size[0] + 1) if size[0] % d == 0 and (d == 1 or d * channels <= _DOWN))
    memory = _Memory(
        zeros((width + 1, down, channels), dtype, image, samples),
        zeros((max(height, width) + 1,), dtype, image, samples),
    )
    return image.reshape(-1, width * channels), jax.tree.map(flat, bands), memory


def _taps(kernel: Kernel, axis: Axis, size: int) -> Array:
    index, fraction, inside, scale = axis
    radius = jnp.minimum(kernel.radius * scale, 2.0**30)
    first = jnp.maximum(index - jnp.floor(radius - fraction).astype(jnp.int32), 0)
    after = jnp.minimum(index + jnp.floor(radius + fraction).astype(jnp.int32) + 1, size)
    return jnp.where(inside[..., None], jnp.stack([first, after], axis=-1), 0)


def _place(axis: Axis, size: int, taps: Array, fraction: Array, scale: Array) -> Array:
    ahead = (taps[..., 0] - axis.index).astype(fraction.dtype) - fraction
    step = jnp.where(on_last(axis, size), -1, 1) / scale
    return jnp.stack([ahead * step, jnp.broadcast_to(step, ahead.shape)], axis=-1)


def _reach(first_row: Array, columns: _Band) -> Array:
    first, after = columns.taps[..., 0], columns.taps[..., 1]
    end = jnp.max(after, axis=-1)
    start = jnp.min(jnp.where(columns.inside, first, end[..., None]), axis=-1)  # the end, if no column is reached
    return jnp.stack([first_row, start, end], axis=-1)


# ---- What small calls do


class _Part(NamedTuple):
    """The samples of box n in rows i, i + 1, ..., as many as there is memory for between the two sums.

    Attributes:
        kernel: see `Kernel`.
        bands: see `_Bands`.
        n: which box.
        i: its first row.
        width: of an image.
        rows: how many.
        channels: of a pixel.
    """

    kernel: Kernel
    bands: _Bands
    n: Array
    i: Array
    width: int
    rows: int
    channels: int

    @property
    def reach(self) -> Array:
        """Of the box, see `_Bands`."""
        return at(self.bands.reach, self.n)

    @property
    def inside(self) -> Array:
        """Whether samples are inside along rows, ``[rows, C]``."""
        taps = take(self.bands.rows.taps, (self.n, self.i, 0), (1, self.rows, 2))[0]
        return jnp.broadcast_to((taps[:, 0] < taps[:, 1])[:, None], (self.rows, self.channels))

    @property
    def across(self) -> int:
        """How many columns of pixels are summed at once."""
        return min(self.width, max(1, _ACROSS // self.channels))

    def row(self, k: Array) -> _Band:
        """Of row k of these."""
        return at(self.bands.rows, self.n, self.i + k)

    def column(self, j: Array) -> _Band:
        return at(self.bands.columns, self.n, j)

    def over_blocks(self, of_block: Callable[[Array, Array, Any], Any], band: _Band, carry: Any) -> Any:
        """A loop over blocks of the columns in reach: ``of_block(start, new, carry)``, new from some column on."""
        _, first, after = self.reach
        blocks = lax.div(after - first + (self.across - 1), jnp.int32(self.across))

        def of_one(block: Array, carry: Any) -> Any:
            new = first + block * self.across
            return of_block(jnp.minimum(new, self.width - self.across), new, carry)

        return loop(jnp.where(band.inside, blocks, 0), of_one, carry)

    def run(self, pixels: Array, row: Array, start: Array, count: int, dtype: Any, finite: bool) -> Array:
        """So many floats of a row of the box's image."""
        run = floats(pixels, (self.reach[0] + row, start), (1, count), dtype)[0]
        return only(jnp.isfinite(run), run) if finite else run

    def of_crops(self, bars: Array, j: Array, dtype: Any) -> Array:
        """Column j of crops, ``[rows, C]``; 0 where samples are outside."""
        column = floats(bars, (self.n, self.i, j, 0), (1, self.rows, 1, self.channels), dtype)
        return only(self.inside, column.reshape(self.rows, self.channels))


def _of_parts(
    of_part: Callable[[_Part, Any, _Memory], tuple[Any, _Memory]],
    kernel: Kernel,
    bands: _Bands,
    carry: Any,
    memory: _Memory,
) -> Any:
    """The carry after all parts of all boxes."""
    boxes, h, _ = bands.rows.taps.shape
    width, rows, channels = memory.between.shape

    def of_box(n: Array, state: Any) -> Any:
        def of_rows(part: Array, state: Any) -> Any:
            return of_part(_Part(kernel, bands, n, part * rows, width - 1, rows, channels), *state)

        return loop(h // rows, of_rows, state)

    return loop(boxes, of_box, (carry, memory))[0]


# Of a kernel and a sample: what each pixel weighs, and its factor. Factors are divided by the sum of weights.
Factors = Callable[[Kernel, _Band], Callable[[Array], tuple[Array, Array]]]
Slopes = Callable[[Kernel, _Band, Callable[[Array], Array]], Array]


def _weights(kernel: Kernel, band: _Band) -> Callable[[Array], tuple[Array, Array]]:
    """The weights themselves."""

    def of_tap(tap: Array) -> tuple[Array, Array]:
        weight = kernel(_ahead(band.place, tap))
        return weight, weight

    return of_tap


def _moves(kernel: Kernel, band: _Band) -> Callable[[Array], tuple[Array, Array]]:
    """How the weights move, without what all of them gain."""

    def weight_and_move(tap: Array) -> tuple[Array, Array]:
        return jax.jvp(kernel.__call__, (_ahead(band.place, tap),), (_ahead(band.move, tap),))

    def add(tap: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        weight, move = weight_and_move(tap)
        return sums[0] + weight, sums[1] + move

    none = jnp.zeros_like(band.place[0])
    total, gain = loop(band.length, add, (none, none))

    def of_tap(tap: Array) -> tuple[Array, Array]:
        weight, move = weight_and_move(tap)
        return weight, move - gain / total * weight

    return of_tap


def _in_memory(factors: Callable[[Array], tuple[Array, Array]], length: Array, weights: Array) -> tuple[Array, Array]:
    """The inverse of the sum of a sample's weights, and the factors of its taps in memory."""

    def set_factor(tap: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        total, weights = state
        weight, factor = factors(tap)
        return total + weight, put(weights, factor[None], (tap,))

    total, weights = loop(length, set_factor, (jnp.zeros_like(weights[0]), weights))
    return 1 / total, weights


def _ahead(place: Array, tap: Array) -> Array:
    return place[0] + tap.astype(place.dtype) * place[1]


def _rows_summed(part: _Part, factors: Factors, pixels: Array, memory: _Memory, finite: bool = False) -> _Memory:
    """The sums of rows, in memory between; of finite pixels only, if that is asked for."""
    count = part.across * part.channels

    def of_row(k: Array, memory: _Memory) -> _Memory:
        between, weights = memory
        band = part.row(k)
        inverse, weights = _in_memory(factors(part.kernel, band), band.length, weights)

        def of_block(start: Array, _: Array, between: Array) -> Array:
            def add(tap: Array, sums: Array) -> Array:
                run = part.run(pixels, band.taps[0] + tap, start * part.channels, count, sums.dtype, finite)
                weight = at(weights, tap)
                return sums + only(jnp.broadcast_to(weight != 0, sums.shape), run * weight)

            sums = loop(band.length, add, zeros((count,), between.dtype, between, pixels))
            return put(between, (sums * inverse).reshape(part.across, 1, part.channels), (start, k, 0))

        return _Memory(part.over_blocks(of_block, band, between), weights)

    return loop(part.rows, of_row, memory)


def _columns_summed(part: _Part, factors: Factors, write: Callable[..., Array], between: Array, crops: Array) -> Array:
    """Crops after ``write(place, inside, value, crops)`` of each column of these rows."""

    def of_column(j: Array, crops: Array) -> Array:
        band = part.column(j)
        of_tap = factors(part.kernel, band)

        def add(tap: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            total, sums = state
            weight, factor = of_tap(tap)
            run = at(between, band.taps[0] + tap).reshape(-1)
            return total + weight, sums + only(jnp.broadcast_to(factor != 0, sums.shape), run * factor)

        start = jnp.zeros_like(between[0, 0, 0]), jnp.zeros_like(between[0]).reshape(-1)
        total, sums = loop(band.length, add, start)
        value = (sums * (1 / total)).reshape(part.inside.shape)
        return write((part.n, part.i, j, 0), part.inside & band.inside, value, crops)

    return loop(crops.shape[2], of_column, crops)


def _spread_over_columns(part: _Part, factors: Factors, bars: Array, memory: _Memory) -> _Memory:
    """What columns of crops add to what is between: the transpose of `_columns_summed`."""
    between, weights = memory
    _, first, after = part.reach
    none = jnp.zeros_like(between[:1])
    between = loop(after - first, lambda x, between: put(between, none, (first + x, 0, 0)), between)

    def of_column(j: Array, memory: _Memory) -> _Memory:
        between, weights = memory
        band = part.column(j)
        inverse, weights = _in_memory(factors(part.kernel, band), band.length, weights)
        column = part.of_crops(bars, j, between.dtype) * inverse

        def add(tap: Array, between: Array) -> Array:
            x = band.taps[0] + tap
            return put(between, (at(between, x) + column * at(weights, tap))[None], (x, 0, 0))

        return _Memory(loop(band.length, add, between), weights)

    return loop(bars.shape[2], of_column, _Memory(between, weights))


def _spread_over_rows(part: _Part, memory: _Memory, image: Array) -> tuple[Array, _Memory]:
    """The image with what is between added to it: the transpose of `_rows_summed`."""
    between, _ = memory
    first_row, _, after = part.reach

    def of_row(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        image, weights = state
        band = part.row(k)
        inverse, weights = _in_memory(_weights(part.kernel, band), band.length, weights)

        def of_block(start: Array, new: Array, image: Array) -> Array:
            x = lax.broadcasted_iota(jnp.int32, (part.across, part.channels), 0) + start
            run = take(between, (start, k, 0), (part.across, 1, part.channels))[:, 0]
            run = only((x >= new) & (x < after), run * inverse).reshape(1, -1)

            def add(tap: Array, image: Array) -> Array:
                place = first_row + band.taps[0] + tap, start * part.channels
                return put(image, take(image, place, run.shape) + run * at(weights, tap), place)

            return loop(band.length, add, image)

        return part.over_blocks(of_block, band, image), weights

    image, weights = loop(part.rows, of_row, (image, memory.weights))
    return image, _Memory(between, weights)


def _row_moves(
    part: _Part, slopes: Slopes, pixels: Array, between: Array, sums: Array, of_row: Array
) -> tuple[Array, Array]:
    """The cotangents of the places of rows, added; of what is between, as `_spread_over_columns` leaves it."""
    across, channels = part.across, part.channels
    lanes = min(_LANES, part.width * channels)
    _, first, after = part.reach * jnp.array([1, channels, channels], jnp.int32)

    def of_sample(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, of_row = state
        band = part.row(k)

        def copy(start: Array, _: Array, of_row: Array) -> Array:
            return put(of_row, take(between, (start, k, 0), (across, 1, channels)).reshape(-1), (start * channels,))

        of_row = part.over_blocks(copy, band, of_row)

        def product(tap: Array) -> Array:
            def of_lanes(start: Array) -> Array:
                run = part.run(pixels, band.taps[0] + tap, start, lanes, of_row.dtype, finite=True)
                return run * take(of_row, (start,), (lanes,))

            whole = lax.div(after - first, jnp.int32(lanes))
            start = zeros((lanes,), of_row.dtype, of_row, pixels)
            total = loop(whole, lambda block, total: total + of_lanes(first + block * lanes), start)
            rest = first + whole * lanes
            start = jnp.minimum(rest, part.width * channels - lanes)
            x = lax.iota(jnp.int32, lanes) + start
            return summed((total + only((x >= rest) & (x < after), of_lanes(start)))[None])[0]

        new = at(sums, part.n, part.i + k) + slopes(part.kernel, band, product)
        return put(sums, new[None, None], (part.n, part.i + k, 0)), of_row

    return loop(part.rows, of_sample, (sums, of_row))


def _column_moves(part: _Part, slopes: Slopes, bars: Array, between: Array, sums: Array) -> Array:
    """The cotangents of the places of columns, added; of what is between, as `_rows_summed` leaves it."""

    def of_sample(j: Array, sums: Array) -> Array:
        band = part.column(j)
        column = part.of_crops(bars, j, between.dtype).reshape(1, -1)

        def product(tap: Array) -> Array:
            return summed(column * at(between, band.taps[0] + tap).reshape(1, -1))[0]

        new = at(sums, part.n, j) + slopes(part.kernel, band, product)
        return put(sums, new[None, None], (part.n, j, 0))

    return loop(bars.shape[2], of_sample, sums)


def _slopes(kernel: Kernel, band: _Band, product: Callable[[Array], Array]) -> Array:
    """The cotangents of a sample's place, ``[2]``, of its pixels' products with that of the sum: ``product(tap)``.

    Weights are divided by their sum; so are their slopes, without what all of them gain.
    """
    place = band.place

    def add(tap: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        weight, slope = jax.jvp(kernel.__call__, (_ahead(place, tap),), (jnp.ones_like(place[0]),))
        step, of_tap = tap.astype(place.dtype), product(tap)
        new = weight, slope, slope * step, weight * of_tap, slope * of_tap, slope * step * of_tap
        return tuple(total + x for total, x in zip(sums, new, strict=True))

    none = jnp.zeros_like(place[0])
    weight, slope, slope_steps, value, gain, gain_steps = loop(band.length, add, (none,) * 6)
    mean = value / weight
    moves = jnp.stack([(gain - mean * slope) / weight, (gain_steps - mean * slope_steps) / weight])
    return only(jnp.broadcast_to(band.inside, (2,)), moves)


def _slopes_and_their_moves(kernel: Kernel, band: _Band, product: Callable[[Array], Array]) -> Array:
    """``[4]``, of a sample whose place moves."""

    def of_place(place: Array) -> Array:
        return _slopes(kernel, band._replace(place=place), product)

    return jnp.concatenate(jax.jvp(of_place, (band.place,), (band.move,)))


def _slopes_as_moves(kernel: Kernel, band: _Band, product: Callable[[Array], Array]) -> Array:
    """``[4]``, of products that are themselves how others move."""
    slopes = _slopes(kernel, band, product)
    return jnp.concatenate([jnp.zeros_like(slopes), slopes])
