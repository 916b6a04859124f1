"""Pixels -> crops: gather and interpolate, and the derivative of that.

The value is ``left + (right - left) * w``, which keeps constants exact. The derivative is that of the same surface
written ``left * (1 - w) + right * w``: linear in the pixels, so that its transpose is a scatter-add.

Two habits of XLA on CPUs count here. It computes what a gather needs anew for every element of the result, unless that
lies in memory before (`_in_memory`). And it forms in memory all that a scatter or a sum adds before it begins; so there
the transposes are loops from sample to sample instead (`_loops.py`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata

from jax_crop._geometry import Axis
from jax_crop._linear import linear
from jax_crop._loops import Taps, box_cotangent, image_cotangent


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


class Neighbours(NamedTuple):
    """The pixels that samples lie between along one axis, the weight of the second in [0, 1), and if they are inside.

    ``[N, n]`` each. Of a sample that needs one pixel only, that is the first, and the weight is 0.
    """

    indices: list[Array]
    weight: Array
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
    image_dot, row_dot, column_dot, fill_dot = (
        None if isinstance(dot, SymbolicZero) else dot  # only what has a tangent is computed
        for dot in (tangents[0], tangents[1].fraction, tangents[2].fraction, tangents[3])
    )
    crops_dot = jnp.zeros((), scheme.dtype)
    if image_dot is not None:
        image_dot = image_dot.astype(scheme.compute)  # so that its cotangent is summed in the type of interpolation
        crops_dot += linear(
            functools.partial(_image_tangent, scheme),
            functools.partial(_image_cotangent, scheme, image.shape),
            image_dot,
            (rows, columns, share),
        )
    if row_dot is not None or column_dot is not None:
        crops_dot += linear(
            functools.partial(_box_tangent, scheme),
            functools.partial(_box_cotangent, scheme),
            [
                jnp.zeros_like(axis.fraction) if dot is None else dot
                for axis, dot in ((rows, row_dot), (columns, column_dot))
            ],
            (image, rows, columns, share),
        )
    if fill_dot is not None:
        crops_dot += _fill_tangent(scheme, fill_dot, rows, columns, share).astype(scheme.dtype)
    crops = sample(scheme, *primals)
    return crops, jnp.broadcast_to(crops_dot, crops.shape)


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


def _in_memory(tables: Any) -> Any:
    """The same tables; on a CPU in memory."""
    same = functools.partial(jax.tree.map, lax.optimization_barrier)  # JAX would skip a call that does nothing
    return lax.platform_dependent(tables, cpu=functools.partial(_call, same), default=lambda tables: tables)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA does not inline."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)


@functools.partial(jax.checkpoint, static_argnums=0)  # keeps no mask for the backward pass
def _fill_tangent(scheme: Scheme, fill_dot: Array, rows: Axis, columns: Axis, share: Array) -> Array:
    """The tangent of crops, linear in the fill's."""
    return _sum_of_samples(
        scheme, rows.inside, columns.inside, share, lambda row, column: jnp.where(_inside(row, column), 0, fill_dot)
    )


def _taps(scheme: Scheme, rows: Axis, columns: Axis) -> tuple[Taps, Taps]:
    def taps(count: int, axis: Axis) -> Taps:
        weights = jnp.stack([1 - axis.fraction, axis.fraction][:count], axis=-1)
        return Taps(axis.index, weights, axis.inside)

    return taps(scheme.taps[0], rows), taps(scheme.taps[1], columns)


def _image_tangent(scheme: Scheme, image_dot: Array, tables: tuple[Axis, Axis, Array]) -> Array:
    """The tangent of crops, linear in the image's ``[R, W, C]``: its transpose is one scatter-add of windows."""
    *axes, share = tables
    rows, columns = _taps(scheme, *axes)
    starts = rows.first[:, :, None], columns.first[:, None, :]
    windows = _windows(image_dot, starts, (*scheme.taps, image_dot.shape[2]))
    weights = rows.weights[:, :, None, :, None] * columns.weights[:, None, :, None]
    tangent = jnp.sum(windows * weights[..., None], axis=(3, 4))
    return _pool(scheme, jnp.where(_inside(rows.inside, columns.inside), tangent, 0), share)


def _image_cotangent(scheme: Scheme, shape: tuple[int, ...], crops: Array, tables: tuple[Axis, Axis, Array]) -> Array:
    """Its transpose on a CPU."""
    *axes, share = tables
    rows, columns = _taps(scheme, *axes)
    if scheme.samples != (1, 1):
        rows = rows._replace(weights=rows.weights * share[:, None, None])
    return image_cotangent(shape, crops, rows, columns)


def _box_tangent(scheme: Scheme, dots: list[Array], tables: tuple[Array, Axis, Axis, Array]) -> Array:
    """The tangent of crops, linear in the fractions': slopes of the surface times how far each sample moves."""
    row_dot, column_dot = dots
    image, rows, columns, share = tables
    inside = _inside(rows.inside, columns.inside)
    down, across = (jnp.where(inside, _slope(scheme, axis, image, rows, columns), 0) for axis in (0, 1))
    return _pool(scheme, down * row_dot[:, :, None, None] + across * column_dot[:, None, :, None], share)


def _box_cotangent(scheme: Scheme, crops: Array, tables: tuple[Array, Axis, Axis, Array]) -> list[Array]:
    """Its transpose on a CPU."""
    image, *axes, share = tables
    sums = box_cotangent(crops, image, *_taps(scheme, *axes))
    return list(sums) if scheme.samples == (1, 1) else [of_axis * share[:, None] for of_axis in sums]


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


def _pool(scheme: Scheme, values: Array, share: Array) -> Array:
    """As `_sum_of_samples`, of all samples at once: ``[N, h * samples, w * samples, C]``."""
    if scheme.samples != (1, 1):
        boxes, height, width, channels = values.shape
        down, across = scheme.samples
        bins = values.reshape(boxes, height // down, down, width // across, across, channels)
        values = bins.sum((2, 4)) * share[:, None, None, None]
    return values.astype(scheme.dtype)
