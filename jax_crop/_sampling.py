"""Pixels -> crops: gather and interpolate, and the derivative of that.

The value is ``left + (right - left) * w``, which keeps constants exact. The derivative is that of the same surface
written ``left * (1 - w) + right * w``: linear in the pixels, so that its transpose is a scatter-add.

Two habits of XLA on CPUs count here. It computes what a gather needs anew for every element of the result, unless that
lies in memory before (`_in_memory`). And it forms in memory all that a scatter or a sum adds, and a copy of all images
that one gather is to read, before it begins; loops from sample to sample take their place there (`_loops.py`).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata
from jax.typing import ArrayLike

from jax_crop._geometry import Axis
from jax_crop._linear import linear
from jax_crop._loops import Taps, box_cotangent, image_cotangent, with_crops


def float_of(*dtypes: Any) -> Any:
    """The dtype to compute in: float64 where one of the dtypes is, else float32."""
    return jnp.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)


class Scheme(NamedTuple):
    """What is known of crops before their data is.

    Attributes:
        windows: of each image, how many (rows, columns) of pixels a sample weighs: 2 for linear interpolation, else 1.
        samples: how many samples an output pixel sums along (rows, columns): 1 but for pooling.
        dtype: of the crops.
    """

    windows: tuple[tuple[int, int], ...]
    samples: tuple[int, int]
    dtype: Any

    @property
    def window(self) -> tuple[int, int]:
        """The largest of any image."""
        rows, columns = zip(*self.windows, strict=True)
        return max(rows), max(columns)

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


class Samples(NamedTuple):
    """Where samples are taken.

    Attributes:
        rows: ``[N, h * samples]``, of the image that the box belongs to.
        columns: ``[N, w * samples]``.
        level: ``[N]``, which of several images that is; None if there is one.
        share: ``[N]``, what each of several samples of an output pixel counts.
    """

    rows: Axis
    columns: Axis
    level: Array | None
    share: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def sample(scheme: Scheme, images: tuple[Array, ...], samples: Samples, fill: Array) -> Array:
    """Crops of an image, or of several: each box of one of them.

    Args:
        scheme: see `Scheme`.
        images: ``[R, W, C]`` each, any real type; the rows of all images of a batch follow each other.
        samples: see `Samples`.
        fill: ``[C]``, the value of a sample outside; 0 if there are several images.

    Returns:
        ``[N, h, w, C]`` in the scheme's dtype, differentiable in images, fractions and fill.
    """
    if len(images) == 1:
        return _crops(scheme, images, samples, fill)
    return linear(functools.partial(_crops, scheme), images, samples, on_cpu=functools.partial(_crops_in_turn, scheme))


@functools.partial(sample.defjvp, symbolic_zeros=True)
def _sample_jvp(scheme: Scheme, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    images, samples, _ = primals
    images_dot, samples_dot, fill_dot = tangents
    axes = samples.rows, samples.columns
    fractions_dot = samples_dot.rows.fraction, samples_dot.columns.fraction
    crops_dot = jnp.zeros((), scheme.dtype)
    if _moves(images_dot):  # only what has a tangent is computed
        crops_dot += linear(
            functools.partial(_image_tangent, scheme),
            _dense(images_dot, images),
            samples,
            transpose_on_cpu=functools.partial(_image_cotangent, scheme, jax.eval_shape(lambda: images)),
        )
    if _moves(fractions_dot):
        crops_dot += linear(
            functools.partial(_box_tangent, scheme),
            _dense(fractions_dot, [axis.fraction for axis in axes]),
            (images, samples),
            transpose_on_cpu=functools.partial(_box_cotangent, scheme),
        )
    if _moves([fill_dot]):
        crops_dot += _fill_tangent(scheme, fill_dot, samples).astype(scheme.dtype)
    crops = sample(scheme, *primals)
    return crops, jnp.broadcast_to(crops_dot, crops.shape)


def _moves(dots: Sequence[Any]) -> bool:
    return not all(isinstance(dot, SymbolicZero) for dot in dots)


def _dense(dots: Sequence[Any], primals: Sequence[Array]) -> list[Array]:
    return [
        jnp.zeros_like(primal) if isinstance(dot, SymbolicZero) else dot
        for dot, primal in zip(dots, primals, strict=True)
    ]


def _crops(scheme: Scheme, images: Sequence[Array], samples: Samples, fill: ArrayLike = 0) -> Array:
    image, samples = _stacked(scheme, images, samples)
    # Under vmap, XLA would order an axis of one box so that it could not fuse the gather.
    if one := samples.share.shape == (1,):
        samples = jax.tree.map(lambda x: x[0], samples)
    neighbours = _neighbours(scheme.window[0], samples.rows), _neighbours(scheme.window[1], samples.columns)
    row_neighbours, column_neighbours = _in_memory(lax.optimization_barrier(neighbours))  # not anew for each channel

    def value(rows: Neighbours, columns: Neighbours) -> Array:
        return jnp.where(_inside(rows.inside, columns.inside), _interpolate(scheme, image, rows, columns), fill)

    crops = _sum_of_samples(scheme, row_neighbours, column_neighbours, samples.share, value).astype(scheme.dtype)
    return crops[None] if one else crops


def _crops_in_turn(scheme: Scheme, images: Sequence[Array], samples: Samples) -> Array:
    """The same on a CPU, image after image, for a stack would be a copy of them all."""
    (boxes, height), (_, width) = samples.rows.index.shape, samples.columns.index.shape
    down, across = scheme.samples
    shape = (boxes, height // down, width // across, images[0].shape[2])
    crops = jnp.zeros(shape, scheme.compute)
    for image, taps in zip(images, _taps_of_each(scheme, samples), strict=True):
        crops = with_crops(crops, image, *taps, samples.share)
    return crops.astype(scheme.dtype)


def _stacked(scheme: Scheme, images: Sequence[Array], samples: Samples) -> tuple[Array, Samples]:
    """Images one below the other, each as wide as the widest, so that one gather serves them all."""
    if len(images) == 1:
        return images[0], samples
    widest = max(image.shape[1] for image in images)
    # Of images of one row, each row is followed by one of zeros: whoever takes two must not see the next image's.
    spacing = [1 + scheme.window[0] - rows for rows, _ in scheme.windows]
    padded = [
        jnp.pad(image[:, None], ((0, 0), (0, space - 1), (0, widest - image.shape[1]), (0, 0)))
        for image, space in zip(images, spacing, strict=True)
    ]
    stack = jnp.concatenate([image.reshape(-1, widest, image.shape[3]) for image in padded])
    heights = [image.shape[0] * space for image, space in zip(images, spacing, strict=True)]
    first_rows = jnp.stack([jnp.asarray(n, jnp.int32) for n in itertools.accumulate(heights[:-1], initial=0)])
    space, first_row = (x[samples.level][:, None] for x in (jnp.asarray(spacing, jnp.int32), first_rows))
    rows = samples.rows._replace(index=samples.rows.index * space + first_row)
    return stack, samples._replace(rows=rows)


def _sum_of_samples(scheme: Scheme, rows: Any, columns: Any, share: Array, value: Callable[[Any, Any], Array]) -> Array:
    """The sum of ``value(row, column)``, ``[N, h, w, C]`` of one sample of each output pixel, over all its samples."""
    down, across = scheme.samples
    values = [value(row, column) for row in _every(down, rows) for column in _every(across, columns)]
    total = functools.reduce(jnp.add, values)
    return total if scheme.samples == (1, 1) else total * share[..., None, None, None]


def _every(samples: int, tables: Any) -> list[Any]:
    """The first sample of each output pixel, the second of each, and so on."""
    return [jax.tree.map(lambda table, i=i: table[..., i::samples], tables) for i in range(samples)]


def _inside(rows: Array, columns: Array) -> Array:
    """Whether samples are inside along rows ``[N, h]`` and along columns ``[N, w]``: ``[N, h, w, 1]``."""
    return (rows[..., :, None] & columns[..., None, :])[..., None]


def _interpolate(scheme: Scheme, image: Array, rows: Neighbours, columns: Neighbours) -> Array:
    """The surface at each sample, ``[N, h, w, C]``, or ``[h, w, C]`` of one box."""
    finite = jnp.issubdtype(image.dtype, jnp.integer)

    def across(row: Array) -> Array:
        pixels = [_pixels(image, row, column).astype(scheme.compute) for column in columns.indices]
        return _lerp(pixels, columns.weight[..., None, :, None], finite)

    return _lerp([across(row) for row in rows.indices], rows.weight[..., :, None, None], finite)


def _neighbours(window: int, axis: Axis) -> Neighbours:
    if window == 1:
        return Neighbours([axis.index], axis.fraction, axis.inside)
    on_second = axis.fraction == 1
    return Neighbours(
        [axis.index + on_second.astype(jnp.int32), axis.index + 1], jnp.where(on_second, 0, axis.fraction), axis.inside
    )


def _lerp(values: list[Array], weight: Array, finite: bool) -> Array:
    """Between the first value and the last; a value without weight has no influence, be it infinite or NaN."""
    left, right = values[0], values[-1]
    if left is right:
        return left
    between = left + (right - left) * weight
    return between if finite else jnp.where(weight == 0, left, between)


def _pixels(image: Array, rows: Array, columns: Array) -> Array:
    """The pixels at each of ``[N, h]`` rows and ``[N, w]`` columns: ``[N, h, w, C]``."""
    return _windows(image, (rows[..., :, None], columns[..., None, :]), (1, 1, image.shape[2])).squeeze((-3, -2))


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
def _fill_tangent(scheme: Scheme, fill_dot: Array, samples: Samples) -> Array:
    """The tangent of crops, linear in the fill's."""

    def value(row: Array, column: Array) -> Array:
        return jnp.where(_inside(row, column), 0, fill_dot)

    return _sum_of_samples(scheme, samples.rows.inside, samples.columns.inside, samples.share, value)


def _taps(window: tuple[int, int], rows: Axis, columns: Axis) -> tuple[Taps, Taps]:
    def along(count: int, axis: Axis) -> Taps:
        weights = jnp.stack([1 - axis.fraction, axis.fraction][:count], axis=-1)
        return Taps(axis.index, weights, axis.inside)

    return along(window[0], rows), along(window[1], columns)


def _taps_of_each(scheme: Scheme, samples: Samples) -> list[tuple[Taps, Taps]]:
    """What the samples weigh of each image."""
    of_each = []
    for k, window in enumerate(scheme.windows):
        rows, columns = _taps(window, samples.rows, samples.columns)
        if samples.level is not None:
            rows = rows._replace(inside=rows.inside & (samples.level == k)[:, None])
        of_each.append((rows, columns))
    return of_each


def _image_tangent(scheme: Scheme, images_dot: Sequence[Array], samples: Samples) -> Array:
    """The tangent of crops, linear in the images': its transpose is one scatter-add of windows."""
    image_dot, samples = _stacked(scheme, [image.astype(scheme.compute) for image in images_dot], samples)
    rows, columns = _taps(scheme.window, samples.rows, samples.columns)
    starts = rows.first[:, :, None], columns.first[:, None, :]
    windows = _windows(image_dot, starts, (*scheme.window, image_dot.shape[2]))
    weights = rows.weights[:, :, None, :, None] * columns.weights[:, None, :, None]
    tangent = jnp.sum(windows * weights[..., None], axis=(3, 4))
    return _pool(scheme, jnp.where(_inside(rows.inside, columns.inside), tangent, 0), samples.share)


def _image_cotangent(scheme: Scheme, images: Sequence[Any], crops: Array, samples: Samples) -> list[Array]:
    """Its transpose on a CPU."""

    def of_image(image: Any, rows: Taps, columns: Taps) -> Array:
        if scheme.samples != (1, 1):
            rows = rows._replace(weights=rows.weights * samples.share[:, None, None])
        return image_cotangent(image.shape, crops, rows, columns).astype(image.dtype)

    return [of_image(image, *taps) for image, taps in zip(images, _taps_of_each(scheme, samples), strict=True)]


def _box_tangent(scheme: Scheme, dots: list[Array], tables: tuple[Sequence[Array], Samples]) -> Array:
    """The tangent of crops, linear in the fractions': slopes of the surface times how far each sample moves."""
    row_dot, column_dot = dots
    image, samples = _stacked(scheme, *tables)
    rows, columns = samples.rows, samples.columns
    inside = _inside(rows.inside, columns.inside)
    down, across = (jnp.where(inside, _slope(scheme, axis, image, rows, columns), 0) for axis in (0, 1))
    return _pool(scheme, down * row_dot[:, :, None, None] + across * column_dot[:, None, :, None], samples.share)


def _box_cotangent(scheme: Scheme, crops: Array, tables: tuple[Sequence[Array], Samples]) -> list[Array]:
    """Its transpose on a CPU."""
    images, samples = tables
    of_each = [
        box_cotangent(crops, image, *taps)  # 0 for boxes of other images
        for image, taps in zip(images, _taps_of_each(scheme, samples), strict=True)
    ]
    sums = jax.tree.map(lambda *sums: functools.reduce(jnp.add, sums), *of_each)
    return list(sums) if scheme.samples == (1, 1) else [of_axis * samples.share[:, None] for of_axis in sums]


def _slope(scheme: Scheme, axis: int, image: Array, rows: Axis, columns: Axis) -> Array:
    """The slope of the surface along rows (axis 0) or columns (1) at each sample, ``[N, h, w, C]``."""
    (above_left, above_right), (below_left, below_right) = (
        [_pixels(image, rows.index + i, columns.index + j).astype(scheme.compute) for j in (0, scheme.window[1] - 1)]
        for i in (0, scheme.window[0] - 1)
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
