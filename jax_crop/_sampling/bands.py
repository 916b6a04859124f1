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

from jax_crop._calls import small, to_be_written
from jax_crop._geometry import Axis
from jax_crop._kernels import Kernel, on_last
from jax_crop._sampling import jets
from jax_crop._sampling.bits import restored, stored
from jax_crop._sampling.jets import Jet
from jax_crop._sampling.meshes import vary_as, zeros
from jax_crop._sampling.steps import at, floats, loop, only, put, summed, take
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
    """

    taps: Array
    place: Jet

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

    between: Jet
    weights: Jet


def crops(kernel: Kernel, dtype: Any, image: Array, samples: Samples, dots: Any = None) -> Array:
    """As `products.values_of_kernel`, but that there may be no fill; or how these move if fractions and scales do."""
    channels = image.shape[-1]
    fills = zeros((samples.item.size, channels), float_of(dtype)) if samples.fill is None else flat(samples.fill)
    size = samples.rows.index.shape[-1], samples.columns.index.shape[-1]
    rows, bands, memory = _prepared(kernel, image, samples, size, fills.dtype, dots)

    def of_all(crops: Array, memory: _Memory, image: Array, bands: _Bands, fills: Array) -> Array:
        def of_part(part: _Part, crops: Array, memory: _Memory) -> tuple[Array, _Memory]:
            memory = _rows_summed(part, image, memory, finite=dots is not None)
            fill = jnp.broadcast_to(at(fills, part.n)[None], part.inside.shape)

            def write(j: Array, inside: Array, sums: Jet, crops: Array) -> Array:
                value = lax.select(inside, sums[-1], fill).astype(dtype)
                return put(crops, stored(value)[None, :, None], (part.n, part.i, j, 0))

            return _columns_summed(part, write, memory.between, crops), memory

        return _of_parts(of_part, kernel, bands, crops, memory)

    like = stored(jax.tree.leaves(rows if dots is None else dots)[0])  # of which XLA would convert all
    result = to_be_written((fills.shape[0], *size, fills.shape[1]), dtype, like)
    result = stored(vary_as([result], (image, fills, samples, dots))[0])
    result = restored(small(of_all, result, memory, rows, bands, fills), dtype)
    return result.reshape(*samples.item.shape, *result.shape[1:])


def images(kernel: Kernel, shape: tuple[Any, ...], crops: Array, samples: Samples, dots: Any = None) -> Array:
    """The cotangents of images ``[G, B, H, W, C]``, in the type of the fractions; or how they move, as above."""
    dtype = samples.rows.fraction.dtype
    start = zeros(shape, dtype, crops, samples, dots)
    rows, bands, memory = _prepared(kernel, start, samples, crops.shape[2:4], dtype, dots)

    def of_all(image: Array, memory: _Memory, crops: Array, bands: _Bands) -> Array:
        def of_part(part: _Part, image: Array, memory: _Memory) -> tuple[Array, _Memory]:
            memory = _spread_over_columns(part, crops, memory)
            return _spread_over_rows(part, memory, image)

        return _of_parts(of_part, kernel, bands, image, memory)

    return small(of_all, rows, memory, flat(crops), bands).reshape(shape)


def moves(kernel: Kernel, crops: Array, image: Array, samples: Samples, dots: Any = None) -> list[tuple[Array, Array]]:
    """The cotangents of fractions and scales, of rows and of columns; or how they move if those do as in dots."""
    dtype = samples.rows.fraction.dtype
    rows, bands, memory = _prepared(kernel, image, samples, crops.shape[2:4], dtype, dots)
    of_row = _zeros(memory.between, (image.shape[3] * image.shape[4] + 1,), crops, image)

    def of_all(sums: Any, of_row: Jet, memory: _Memory, crops: Array, image: Array, bands: _Bands) -> Any:
        def of_part(part: _Part, state: Any, memory: _Memory) -> Any:
            row_sums, column_sums, of_row = state
            memory = _spread_over_columns(part, crops, memory)
            row_sums, of_row = _row_moves(part, image, memory.between, row_sums, of_row)
            memory = _rows_summed(part, image, memory, finite=True)
            column_sums = _column_moves(part, crops, memory.between, column_sums)
            return (row_sums, column_sums, of_row), memory

        return _of_parts(of_part, kernel, bands, (*sums, of_row), memory)[:2]

    sums = tuple(
        zeros((*band.taps.shape[:-1], 2 * len(of_row)), dtype, crops, image, samples, dots)
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
        return _Band(taps, (place(*moving),) if dots is None else jax.jvp(place, moving, dots))

    of_rows, of_columns = map(band, samples[:2], (height, width), dots or (None, None))
    first_row = items_of_all(samples.item, batch) * height
    bands = _Bands(_reach(first_row, of_columns), of_rows, of_columns)
    # Parts of equal length, for what is added must not be added twice.
    down = max(d for d in range(1, size[0] + 1) if size[0] % d == 0 and (d == 1 or d * channels <= _DOWN))
    shapes = (width + 1, down, channels), (max(height, width) + 1,)
    memory = _Memory(*(_zeros(of_rows.place, shape, image, samples, dots) for shape in shapes))
    return image.reshape(-1, width * channels), jax.tree.map(flat, bands), memory


def _taps(kernel: Kernel, axis: Axis, size: int) -> Array:
    index, fraction, inside = axis[:3]
    radius = jnp.minimum(kernel.radius * axis.scale, 2.0**30)
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

    def at(self, between: Jet, x: Array) -> Jet:
        """Of what is between, that of one column of pixels: a run of floats."""
        return tuple(column.reshape(-1) for column in at(between, x))

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
    width, rows, channels = memory.between[0].shape

    def of_box(n: Array, state: Any) -> Any:
        def of_rows(part: Array, state: Any) -> Any:
            return of_part(_Part(kernel, bands, n, part * rows, width - 1, rows, channels), *state)

        return loop(h // rows, of_rows, state)

    return loop(boxes, of_box, (carry, memory))[0]


def _zeros(like: Jet, shape: tuple[int, ...], *others: Any) -> Jet:
    """As many arrays as a jet has, which vary as it and others do."""
    return tuple(zeros(shape, x.dtype, like, *others) for x in like)


def _put(memory: Jet, parts: Jet, start: tuple[Any, ...], shape: tuple[int, ...]) -> Jet:
    return tuple(put(x, part.reshape(shape), start) for x, part in zip(memory, parts, strict=True))


def _weighed(weight: Jet, values: Jet) -> Jet:
    """The product; what has no weight has no influence. Of what moves, all is finite."""
    weighed, *moves = jets.product(weight, values)
    return only(jnp.broadcast_to(weight[0] != 0, weighed.shape), weighed), *moves


def _ahead(place: Array, tap: Array) -> Array:
    return place[0] + tap.astype(place.dtype) * place[1]


def _weight(kernel: Kernel, band: _Band, tap: Array) -> Jet:
    """What a sample weighs of a pixel, before weights are divided by their sum."""
    return jets.applied(lambda place: kernel(_ahead(place, tap)), band.place)


def _in_memory(kernel: Kernel, band: _Band, weights: Jet) -> tuple[Jet, Jet]:
    """The inverse of the sum of a sample's weights, and these in memory."""

    def set_weight(tap: Array, state: tuple[Jet, Jet]) -> tuple[Jet, Jet]:
        total, weights = state
        weight = _weight(kernel, band, tap)
        return jets.plus(total, weight), _put(weights, weight, (tap,), (1,))

    total, weights = loop(band.length, set_weight, (jets.nothing(at(weights, 0)), weights))
    return jets.inverse(total), weights


def _rows_summed(part: _Part, pixels: Array, memory: _Memory, finite: bool = False) -> _Memory:
    """The sums of rows, in memory between; of finite pixels only, if that is asked for."""
    count = part.across * part.channels

    def of_row(k: Array, memory: _Memory) -> _Memory:
        band = part.row(k)
        inverse, weights = _in_memory(part.kernel, band, memory.weights)

        def of_block(start: Array, _: Array, between: Jet) -> Jet:
            def add(tap: Array, sums: Jet) -> Jet:
                run = part.run(pixels, band.taps[0] + tap, start * part.channels, count, between[0].dtype, finite)
                return jets.plus(sums, _weighed(at(weights, tap), (run,)))

            sums = jets.product(loop(band.length, add, _zeros(between, (count,), pixels)), inverse)
            return _put(between, sums, (start, k, 0), (part.across, 1, part.channels))

        return _Memory(part.over_blocks(of_block, band, memory.between), weights)

    return loop(part.rows, of_row, memory)


def _columns_summed(part: _Part, write: Callable[..., Array], between: Jet, crops: Array) -> Array:
    """Crops after ``write(j, inside, sums, crops)`` of each column of these rows."""

    def of_column(j: Array, crops: Array) -> Array:
        band = part.column(j)

        def add(tap: Array, state: tuple[Jet, Jet]) -> tuple[Jet, Jet]:
            total, sums = state
            weight = _weight(part.kernel, band, tap)
            return jets.plus(total, weight), jets.plus(sums, _weighed(weight, part.at(between, band.taps[0] + tap)))

        none = jets.nothing(tuple(x[0, 0, 0] for x in between)), jets.nothing(part.at(between, band.taps[0]))
        total, sums = loop(band.length, add, none)
        sums = tuple(x.reshape(part.inside.shape) for x in jets.product(sums, jets.inverse(total)))
        return write(j, part.inside & band.inside, sums, crops)

    return loop(crops.shape[2], of_column, crops)


def _spread_over_columns(part: _Part, bars: Array, memory: _Memory) -> _Memory:
    """What columns of crops add to what is between: the transpose of `_columns_summed`."""
    between, weights = memory
    _, first, after = part.reach
    none = jets.nothing(part.at(between, first))

    def clear(x: Array, between: Jet) -> Jet:
        return _put(between, none, (first + x, 0, 0), (1, part.rows, part.channels))

    between = loop(after - first, clear, between)

    def of_column(j: Array, memory: _Memory) -> _Memory:
        band = part.column(j)
        inverse, weights = _in_memory(part.kernel, band, memory.weights)
        column = jets.product((part.of_crops(bars, j, memory.between[0].dtype),), inverse)

        def add(tap: Array, between: Jet) -> Jet:
            x = band.taps[0] + tap
            new = jets.plus(at(between, x), jets.product(column, at(weights, tap)))
            return _put(between, new, (x, 0, 0), (1, part.rows, part.channels))

        return _Memory(loop(band.length, add, memory.between), weights)

    return loop(bars.shape[2], of_column, _Memory(between, weights))


def _spread_over_rows(part: _Part, memory: _Memory, image: Array) -> tuple[Array, _Memory]:
    """The image with what is between added to it: the transpose of `_rows_summed`."""
    first_row, _, after = part.reach

    def of_row(k: Array, state: tuple[Array, Jet]) -> tuple[Array, Jet]:
        image, weights = state
        band = part.row(k)
        inverse, weights = _in_memory(part.kernel, band, weights)

        def of_block(start: Array, new: Array, image: Array) -> Array:
            x = lax.broadcasted_iota(jnp.int32, (part.across, part.channels), 0) + start
            runs = tuple(take(plane, (start, k, 0), (part.across, 1, part.channels))[:, 0] for plane in memory.between)
            runs = tuple(only((x >= new) & (x < after), run).reshape(1, -1) for run in jets.product(runs, inverse))

            def add(tap: Array, image: Array) -> Array:
                place = first_row + band.taps[0] + tap, start * part.channels
                added = jets.product(runs, at(weights, tap))[-1]
                return put(image, take(image, place, added.shape) + added, place)

            return loop(band.length, add, image)

        return part.over_blocks(of_block, band, image), weights

    image, weights = loop(part.rows, of_row, (image, memory.weights))
    return image, memory._replace(weights=weights)


def _row_moves(part: _Part, pixels: Array, between: Jet, sums: Array, of_row: Jet) -> tuple[Array, Jet]:
    """The cotangents of the places of rows, added; of what is between, as `_spread_over_columns` leaves it."""
    across, channels = part.across, part.channels
    lanes = min(_LANES, part.width * channels)
    _, first, after = part.reach * jnp.array([1, channels, channels], jnp.int32)

    def of_sample(k: Array, state: tuple[Array, Jet]) -> tuple[Array, Jet]:
        sums, of_row = state
        band = part.row(k)

        def copy(start: Array, _: Array, of_row: Jet) -> Jet:
            runs = tuple(take(plane, (start, k, 0), (across, 1, channels)) for plane in between)
            return _put(of_row, runs, (start * channels,), (across * channels,))

        of_row = part.over_blocks(copy, band, of_row)

        def product(tap: Array) -> Jet:
            def of_lanes(start: Array) -> Jet:
                run = part.run(pixels, band.taps[0] + tap, start, lanes, of_row[0].dtype, finite=True)
                return tuple(run * take(x, (start,), (lanes,)) for x in of_row)

            whole = lax.div(after - first, jnp.int32(lanes))
            none = _zeros(of_row, (lanes,), pixels)
            total = loop(whole, lambda block, total: jets.plus(total, of_lanes(first + block * lanes)), none)
            rest = first + whole * lanes
            start = jnp.minimum(rest, part.width * channels - lanes)
            x = lax.iota(jnp.int32, lanes) + start
            of_rest = tuple(only((x >= rest) & (x < after), products) for products in of_lanes(start))
            return tuple(summed(sums[None])[0] for sums in jets.plus(total, of_rest))

        new = at(sums, part.n, part.i + k) + _slopes(part.kernel, band, product)
        return put(sums, new[None, None], (part.n, part.i + k, 0)), of_row

    return loop(part.rows, of_sample, (sums, of_row))


def _column_moves(part: _Part, bars: Array, between: Jet, sums: Array) -> Array:
    """The cotangents of the places of columns, added; of what is between, as `_rows_summed` leaves it."""

    def of_sample(j: Array, sums: Array) -> Array:
        band = part.column(j)
        column = part.of_crops(bars, j, between[0].dtype).reshape(-1)

        def product(tap: Array) -> Jet:
            return tuple(summed((column * x)[None])[0] for x in part.at(between, band.taps[0] + tap))

        new = at(sums, part.n, j) + _slopes(part.kernel, band, product)
        return put(sums, new[None, None], (part.n, j, 0))

    return loop(bars.shape[2], of_sample, sums)


def _slopes(kernel: Kernel, band: _Band, product: Callable[[Array], Jet]) -> Array:
    """The cotangents of a sample's place, ``[2]``, of its pixels' products with that of the sum: ``product(tap)``.

    Weights are divided by their sum; so are their slopes, without what all of them gain. If bands move, ``[4]``: after
    the cotangents, how they move.
    """

    def terms(tap: Array, place: Array, of_tap: Array) -> tuple[Array, ...]:
        weight, slope = jax.jvp(kernel.__call__, (_ahead(place, tap),), (jnp.ones_like(place[0]),))
        step = tap.astype(place.dtype)
        return weight, slope, slope * step, weight * of_tap, slope * of_tap, slope * step * of_tap

    def add(tap: Array, sums: Jet) -> Jet:
        return jets.plus(sums, jets.applied(functools.partial(terms, tap), band.place, product(tap)))

    def of_sums(sums: tuple[Array, ...]) -> Array:
        weight, slope, slope_steps, value, gain, gain_steps = sums
        mean = value / weight
        return jnp.stack([(gain - mean * slope) / weight, (gain_steps - mean * slope_steps) / weight])

    none = tuple((jnp.zeros_like(x[0]),) * 6 for x in band.place)
    cotangents = jnp.concatenate(jets.applied(of_sums, loop(band.length, add, none)))
    return only(jnp.broadcast_to(band.inside, cotangents.shape), cotangents)
