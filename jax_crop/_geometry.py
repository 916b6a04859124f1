"""Where the samples of a box stand along one axis: box edges -> pixel index, fraction, inside.

A `Lattice` says how samples divide a box and where the image's pixels lie; `locate` applies it to boxes. Rows and
columns are independent, so that tables of shape ``[N, n]`` per axis are all that sampling needs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jax_crop import _exact
from jax_crop._calls import in_memory, in_one_loop
from jax_crop._exact import Integers
from jax_crop._light import Light, is_finite, maximum, minimum, where


class Lattice(NamedTuple):
    """The samples of a box from ``start`` to ``stop``, in integers, so that no rounding enters.

    With ``place = start * to_start + stop * to_stop``, a sample stands at pixel ``place * scale / steps + half_shift
    / 2``, pixel centres being whole numbers, and is inside where ``lower <= place <= upper``. ``steps`` is even.
    Integers are NumPy's or Python's where they are known while tracing, and broadcast to ``[N, n]``. Steps, and places
    inside, are no more than the two numbers of ``most``.
    """

    to_start: Integers
    to_stop: Integers
    steps: Integers
    scale: int
    half_shift: int
    lower: Integers
    upper: Integers
    most: tuple[int, int]


def corners(size: int, samples: int) -> Lattice:
    """First and last sample on the box's edges; 0 and 1 are the centres of the first and the last pixel."""
    a = np.arange(samples, dtype=np.int32)[None]
    # The factor 2 makes the number of steps even; a single sample stands in the middle.
    to_start, to_stop = (2 * a[:, ::-1], 2 * a) if samples > 1 else (a + 1, a + 1)
    steps = max(2 * (samples - 1), 2)
    # Of a single pixel the scale is 0: as in TensorFlow and ONNX Runtime, every finite coordinate is on it.
    return Lattice(to_start, to_stop, steps, size - 1, half_shift=0, lower=0, upper=steps, most=(steps, steps))


def centres(size: int, samples: int) -> Lattice:
    """Samples at the centres of equal bins; 0 and 1 are the outer edges of the first and the last pixel."""
    to_stop = 2 * np.arange(samples, dtype=np.int32)[None] + 1
    steps = 2 * samples
    return Lattice(steps - to_stop, to_stop, steps, size, half_shift=-1, lower=0, upper=steps, most=(steps, steps))


def bins(size: Integers, most_pixels: int, bins: int, samples: Integers, most: int, aligned: bool) -> Lattice:
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
        most=(2 * bins * most, (2 * most_pixels + 1) * bins * most),
    )


class Axis(NamedTuple):
    """Samples along one axis, ``[N, n]`` each: ``fraction`` of the way, below 1, from pixel ``index`` to the next one.

    On the last pixel, whose slope is that toward the inside, ``on_last`` is true; of a single pixel, it is not, nor
    where no slope is asked for. Of `unclamped`, ``index`` is any pixel, also the one before the first; ``scale`` is how
    much interpolation kernels are stretched, ``[N, 1]``.
    """

    index: Array  # type: ignore[assignment]  # which is a method of tuples, of no use here
    fraction: Array
    inside: Array
    on_last: Any = None
    scale: Any = None


def locate(
    boxes: Array, size: tuple[Integers, Integers], lattices: tuple[Lattice, Lattice], dtype: DTypeLike
) -> tuple[Axis, Axis]:
    """The samples of boxes along rows and columns.

    Args:
        boxes: ``[N, 4]`` float32 or float64, ``[y1, x1, y2, x2]``, any values: with ``y1 > y2`` the crop is flipped; of
            a box that is not finite along an axis, all samples along it are outside.
        size: the number of rows and of columns of pixels.
        lattices: how the samples lie along each.
        dtype: of the fractions.

    Returns:
        The samples. Between which pixels they stand and whether they are inside is decided as exact arithmetic
        decides it on the floats given. The fraction's derivative is that of the position: exactly on a pixel toward
        higher indices, at the last pixel toward the inside, and 0 where the position is clamped or outside.
    """
    edges, lattice = _edges(boxes), _joined(lattices)
    index, fraction, on_pixel, inside = _place(edges, lattice, dtype)

    # Beyond the centres of the first and the last pixel the position is clamped to them. A single pixel has no slope.
    last = Light(jnp.asarray(_stacked(*size))) - 1
    between = (index >= 0) & (index < last)
    moves = between | ((index == last) & on_pixel & (last > 0))
    # Kept beside the index, as its last bit: on the first pixel and on the last, the rest does not tell.
    code = minimum(maximum(index, 0), last) << 1 | moves.astype(jnp.int32)
    code, inside, fraction = in_one_loop(code, inside, where(between, fraction, 0).astype(dtype))
    index = code >> 1
    on_last = (index == last) & (last > 0)
    return _moving_axes(edges, lattices, (index, fraction, inside, on_last), moves=inside & ((code & 1) > 0))


def nearest(
    boxes: Array, size: tuple[Integers, Integers], lattices: tuple[Lattice, Lattice], dtype: DTypeLike
) -> tuple[Axis, Axis]:
    """As `locate`, with the pixel nearest to each sample, halves rounded up, as the index and 0 as the fraction."""
    # The nearest pixel is the one below what stands half a pixel further on.
    lattice = _joined(lattices)
    lattice = lattice._replace(half_shift=lattice.half_shift + 1)
    index, fraction, _, inside = _place(_edges(boxes), lattice, dtype)
    index = minimum(maximum(index, 0), jnp.asarray(_stacked(*size)) - 1)
    index, inside, fraction = in_one_loop(index, inside, fraction.astype(dtype) * 0)
    return _axes(_apart(lattices, index, fraction, inside))


def unclamped(
    boxes: Array,
    size: tuple[Integers, Integers],
    lattices: tuple[Lattice, Lattice],
    dtype: DTypeLike,
    *,
    antialias: bool,
) -> tuple[Axis, Axis]:
    """As `locate`, but also beyond the centres of the border's pixels, and with the scale of kernels.

    The scale is 1, or with ``antialias`` the distance of two samples in pixels where that is more than 1; of a single
    sample, the box's length. Where the distance is exactly 1, the scale's derivative is 0.
    """
    edges, lattice = _edges(boxes), _joined(lattices)
    index, fraction, _, inside = _place(edges, lattice, dtype)
    index, inside, fraction = in_one_loop(index + 1, inside, fraction.astype(dtype))
    rows, columns = _moving_axes(edges, lattices, (index - 1, fraction, inside), moves=inside)

    scale = jnp.ones_like(edges[..., :1], dtype)
    if antialias:
        in_use = jnp.any(inside.array, axis=2, keepdims=True)  # then edges are finite
        # Far beyond any image, so that no difference is infinite.
        edges = jnp.clip(jnp.where(in_use, edges, 0), -(2.0**30), 2.0**30).astype(dtype)
        of_pixels = jnp.asarray(2 * lattice.scale, dtype) / jnp.asarray(lattice.steps, dtype)
        distance = jnp.abs(edges[..., 1:] - edges[..., :1]) * of_pixels
        scale = jnp.where(distance > 1, distance, scale)
    return rows._replace(scale=scale[0]), columns._replace(scale=scale[1])


def _moving_axes(
    edges: Array, lattices: tuple[Lattice, Lattice], samples: tuple[Light, ...], moves: Light
) -> tuple[Axis, Axis]:
    """The samples along each axis, of tables of both; where they move with the box, fractions have that derivative.

    Where one axis has fewer samples, to each alone: else the transpose of taking them apart would pad that axis, and
    XLA on CPUs reads beyond the end of what it pads (seen with jaxlib 0.10.2 and 0.12.0.1, as a segmentation fault).
    """
    index, fraction, *others = samples
    if len({np.shape(lattice.to_stop)[1] for lattice in lattices}) == 1:
        return _axes(_apart(lattices, index, _moving(fraction, edges, _joined(lattices), moves), *others))
    each = zip(_apart(lattices, moves, *samples), edges, lattices, strict=True)
    return _axes(
        (index, _moving(fraction, edges, lattice, moves), *others)
        for (moves, index, fraction, *others), edges, lattice in each
    )


def _moving(fraction: Light, edges: Array, lattice: Any, moves: Light) -> Light:
    """The same fractions, with the derivative of the position where it moves with the box."""
    of_start, of_stop = (
        Light(jnp.asarray(weight * lattice.scale, fraction.dtype)) / jnp.asarray(lattice.steps, fraction.dtype)
        for weight in (lattice.to_start, lattice.to_stop)
    )
    return Light(_with_slope(fraction.array, edges, of_start.array, of_stop.array, moves.array))


@jax.custom_jvp
def _with_slope(fraction: Array, edges: Array, of_start: Array, of_stop: Array, moves: Array) -> Array:
    return fraction


@_with_slope.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    # The position is linear in the box. Its slope is that of a term which is 0, so that what is returned can be derived
    # again without this rule, which before JAX 0.11 `lax.scan` forgets in derivatives of derivatives.
    fraction, edges, of_start, of_stop, moves = map(Light, primals)

    def moved(edges: Array) -> Array:
        finite = where(is_finite(Light(edges)), edges, 0)
        zeros = (finite - lax.stop_gradient(finite.array)).astype(fraction.dtype)
        slope = where(moves, zeros[..., :1] * of_start + zeros[..., 1:] * of_stop, 0)
        return in_memory((fraction + slope).array)

    return jax.jvp(moved, (edges.array,), tangents[1:2])


def _edges(boxes: Array) -> Array:
    """``[2, N, 2]``: start and stop along rows and along columns."""
    return boxes.reshape(-1, 2, 2).transpose(2, 0, 1)


def _joined(lattices: tuple[Lattice, Lattice]) -> Any:
    """Both as one, with integers ``[2, 1 or N, 1 or n]``, where n is the most samples along an axis."""
    integers = {name: _stacked(getattr(lattices[0], name), getattr(lattices[1], name)) for name in Lattice._fields[:-1]}
    steps, place = map(max, zip(lattices[0].most, lattices[1].most, strict=True))
    return Lattice(**integers, most=(steps, place))


def _stacked(along_rows: Integers, along_columns: Integers) -> Any:
    """``[2, 1 or N, 1 or n]``; what an axis with fewer samples has beyond them is of no meaning."""
    xp: Any = jnp if isinstance(along_rows, Array) or isinstance(along_columns, Array) else np
    pair = [xp.atleast_2d(xp.asarray(x, xp.int32)) for x in (along_rows, along_columns)]
    n = max(x.shape[1] for x in pair)
    pair = [x if x.shape[1] == n else xp.pad(x, ((0, 0), (0, n - x.shape[1])), mode="edge") for x in pair]
    return xp.stack(xp.broadcast_arrays(*pair))


def _apart(lattices: tuple[Lattice, Lattice], *tables: Light) -> Iterator[list[Light]]:
    """For each axis its own of tables of both."""
    for i, lattice in enumerate(lattices):
        yield [table[i, :, : np.shape(lattice.to_stop)[1]] for table in tables]


def _axes(parts: Iterable[Sequence[Light]]) -> tuple[Axis, Axis]:
    rows, columns = (Axis(*(table.array for table in tables)) for tables in parts)
    return rows, columns


def _place(edges: Array, lattice: Any, dtype: DTypeLike) -> tuple[Light, Light, Light, Light]:
    """Of each sample: the pixel below, the fraction beyond, whether that is 0, whether the sample is inside."""
    dtype = jnp.promote_types(edges.dtype, dtype)
    steps, bound = lattice.most
    scale = max(int(np.max(lattice.scale)), 1)
    window = _exact.Window.of(steps, scale, bound, dtype)
    xp: Any = np if isinstance(lattice.to_stop, np.ndarray) else jnp
    weights = xp.stack([lattice.to_start, lattice.to_stop], axis=2)
    place = _exact.weighted_sums(lax.stop_gradient(edges), weights, lattice.scale, window)
    lower, upper = (jnp.asarray(x * lattice.scale, window.dtype) for x in (lattice.lower, lattice.upper))
    inside = (place.whole >= lower) & (place.whole < upper + place.is_whole.astype(window.dtype))

    position = where(inside, place.whole, 0).astype(jnp.int32) + lattice.half_shift * (lattice.steps // 2)  # in steps
    index, remainder = _exact.divide(position, lattice.steps, bound * scale + steps)
    beyond = remainder.astype(dtype) + place.rest  # 0 on a pixel, or so near to the first that no float tells
    return index, beyond / jnp.asarray(lattice.steps, dtype), beyond == 0, inside
