"""ROIAlign: the parts of `crop_and_resize` with other positions, and an average; of one feature map or of a pyramid."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_crop import _arguments, _geometry
from jax_crop._exact import Integers
from jax_crop._forms import in_form
from jax_crop._geometry import Axis
from jax_crop._sampling import Samples, Scheme, each_group, float_of, in_items, sample
from jax_crop.boxes import assign_levels


class Pooling(NamedTuple):
    """How the samples of a box lie and are averaged; static.

    Attributes:
        size: bins along rows and columns.
        samples: samples of a bin along each axis, at most that many if adaptive.
        adaptive: one sample for each pixel that a bin has, begun ones included, along each axis.
        aligned: whether pixel centres stand at half integers.
        scales: from input pixels to the pixels of each feature map.
        canonical: level and box size of the rule that assigns boxes to levels.
    """

    size: tuple[int, int]
    samples: int
    adaptive: bool
    aligned: bool
    scales: tuple[float, ...]
    canonical: tuple[int, float] = (0, 1.0)


def roi_align(
    features: ArrayLike,
    boxes: ArrayLike,
    box_indices: ArrayLike | None,
    output_size: int | Sequence[int],
    *,
    spatial_scale: ArrayLike = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    max_sampling_ratio: int | None = None,
) -> Array:
    """Pools boxes of a feature map to one size by averaging bilinear samples (ROIAlign of Mask R-CNN).

    Convention:
        - Layout: channels last.
        - Box order: ``[y1, x1, y2, x2]``.
        - Origin: the top left corner.
        - Alignment: boxes are in pixels of the input image, of which ``spatial_scale`` makes pixels of the feature map.
          With ``aligned=True`` pixel (0, 0) covers ``[0, 1]`` and its centre is at (0.5, 0.5); with ``aligned=False``
          its centre is at (0, 0), and boxes are at least 1 feature pixel high and wide.
        - Fill: a sample more than one pixel beyond the centres of the border pixels (beyond -1 or beyond the size)
          counts as 0, a nearer one takes the border's value.

    Args:
        features: ``[B, H, W, C]`` or ``[H, W, C]``, of any integer or floating type.
        boxes: ``[N, 4]``, or ``[B, N, 4]`` for boxes of their own for each image. A box that is not finite gives 0.
        box_indices: integers ``[N]``, which image each box belongs to; one outside ``[0, B)`` gives 0. None for
            ``[H, W, C]`` features and for ``[B, N, 4]`` boxes.
        output_size: bins along ``(height, width)``, or one number for both, known while tracing.
        spatial_scale: feature pixels for each input pixel, 1/16 (and not 16) for a stride of 16; known while tracing.
        sampling_ratio: samples of a bin along each axis; 0 for as many as the bin has pixels, begun ones included,
            which is ``ceil(box size / output size)`` and differs from box to box.
        aligned: see *Alignment*. True is what Detectron2's ROIAlignV2 does, False what its predecessor did.
        max_sampling_ratio: the most samples along an axis, needed with ``sampling_ratio=0``. The bins of boxes too
            large for it are sampled that many times.

    Returns:
        ``[N, *output_size, C]``, or ``[B, N, *output_size, C]`` for ``[B, N, 4]`` boxes, in the type of floating
        features and in float32 for integers. Differentiable in features and boxes, to any order; the derivative by a
        box is the slope of the bilinear surface, one-sided on pixels as in `crop_and_resize`, and 0 where a sample is
        clamped to the border.

    Raises:
        TypeError: while tracing, for an argument of the wrong type.
        ValueError: while tracing, for one of the wrong shape or value. For what only the data can tell, see
            `jax_crop.boxes.check`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jax_crop
        >>> features = jnp.arange(64.0).reshape(8, 8, 1)
        >>> box = [[0.0, 0.0, 64.0, 64.0]]
        >>> jax_crop.roi_align(features, box, None, (2, 2), spatial_scale=1 / 8)[0, ..., 0]
        Array([[13.5, 17.5],
               [45.5, 49.5]], dtype=float32)

    Source:
        He et al., "Mask R-CNN", 2017, section 3 (<https://arxiv.org/abs/1703.06870>); the rules at the border are those
        of torchvision and Detectron2.
    """
    scales = (_arguments.positive("spatial_scale", spatial_scale),)
    samples = _arguments.sampling_ratio(sampling_ratio, max_sampling_ratio)
    size, aligned = _arguments.size("output_size", output_size), _arguments.flag("aligned", aligned)
    pooling = Pooling(size, samples, not sampling_ratio, aligned, scales)
    return _checked_pool((_arguments.image("features", features),), boxes, box_indices, pooling)


def multilevel_roi_align(
    features: Sequence[ArrayLike],
    boxes: ArrayLike,
    box_indices: ArrayLike | None,
    output_size: int | Sequence[int],
    *,
    strides: ArrayLike | Sequence[int] | None = None,
    canonical_level: int = 4,
    canonical_size: float = 224.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    max_sampling_ratio: int | None = None,
) -> Array:
    """Pools each box from the level of a feature pyramid that suits its size, as `roi_align` does.

    Convention:
        That of `roi_align`, with the scale of each level: 1 / stride.

    Args:
        features: the levels, fine to coarse, each ``[B, H, W, C]`` or each ``[H, W, C]``; they differ in height and
            width only.
        boxes: ``[N, 4]`` or ``[B, N, 4]``, in pixels of the input image.
        box_indices: as for `roi_align`.
        output_size: bins along ``(height, width)``, or one number for both, known while tracing.
        strides: input pixels to a feature pixel, for each level: powers of two, each twice the one before. There are
            no gaps, as boxes of every size between have a level. If None, the finest is 4, as in a Feature Pyramid
            Network.
        canonical_level: the level of a box of canonical size; the level of stride 2^k is k.
        canonical_size: in input pixels. A box of half that size is one level down; boxes too small or too large for the
            pyramid are on its first or last level.
        sampling_ratio: as for `roi_align`.
        aligned: as for `roi_align`.
        max_sampling_ratio: as for `roi_align`.

    Returns:
        As `roi_align` of each box on its level, to the last bit.

    Raises:
        TypeError: while tracing, for an argument of the wrong type.
        ValueError: while tracing, for one of the wrong shape or value. For what only the data can tell, see
            `jax_crop.boxes.check`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jax_crop
        >>> pyramid = [jnp.full((size, size, 1), float(size)) for size in (64, 32, 16, 8)]
        >>> boxes = jnp.array([[0.0, 0.0, 50.0, 50.0], [0.0, 0.0, 240.0, 240.0]])
        >>> jax_crop.multilevel_roi_align(pyramid, boxes, None, (1, 1)).ravel()
        Array([64., 16.], dtype=float32)

    Source:
        Lin et al., "Feature Pyramid Networks for Object Detection", 2017, equation 1
        (<https://arxiv.org/abs/1612.03144>).
    """
    maps = _arguments.pyramid("features", features)
    scales = tuple(1 / stride for stride in _arguments.strides(strides, len(maps)))
    samples = _arguments.sampling_ratio(sampling_ratio, max_sampling_ratio)
    size, aligned = _arguments.size("output_size", output_size), _arguments.flag("aligned", aligned)
    canonical_level = _arguments.integer("canonical_level", canonical_level)
    canonical = canonical_level, _arguments.positive("canonical_size", canonical_size)
    pooling = Pooling(size, samples, not sampling_ratio, aligned, scales, canonical)
    return _checked_pool(maps, boxes, box_indices, pooling)


def _checked_pool(
    maps: tuple[_arguments.Values, ...], boxes: ArrayLike, box_indices: ArrayLike | None, pooling: Pooling
) -> Array:
    boxes = _arguments.boxes(boxes, "convert them, boxes.astype(jnp.float32)")
    box_indices = _arguments.box_indices(box_indices, maps[0].shape, boxes.shape, image="features")
    _arguments.extent(
        "output_size times sampling_ratio",
        [n * pooling.samples for n in pooling.size],
        [max(m.shape[axis] for m in maps) for axis in (-3, -2)],
        2**23,
    )
    return in_form(_pool, maps, boxes, box_indices, None, pooling=pooling)


def _pool(maps: tuple[Array, ...], boxes: Array, box_indices: Array | None, fill: None, *, pooling: Pooling) -> Array:
    """``[G, B, H, W, C]`` each, ``[G, N, 4]`` and ``[G, N]`` (or None: of the first image) to ``[G, N, *size, C]``."""
    _, batch, *_, channels = maps[0].shape
    dtype = maps[0].dtype if jnp.issubdtype(maps[0].dtype, jnp.floating) else jnp.dtype(jnp.float32)
    compute = float_of(dtype)
    if 0 in (*maps[0].shape, *boxes.shape):  # nothing to gather from or to
        return jnp.zeros((*boxes.shape[:2], *pooling.size, channels), dtype)
    sizes = [(m.shape[2], m.shape[3]) for m in maps]
    positions = functools.partial(_positions, sizes=sizes, pooling=pooling, dtype=compute)
    rows, columns, level, share = each_group(positions)(boxes)
    item, rows = in_items(rows, box_indices, batch)
    windows = tuple((min(height, 2), min(width, 2)) for height, width in sizes)
    scheme = Scheme(windows, (pooling.samples, pooling.samples), dtype)
    return sample(scheme, maps, Samples(rows, columns, item, level, share))


def _positions(
    boxes: Array, *, sizes: Sequence[tuple[int, int]], pooling: Pooling, dtype: Any
) -> tuple[Axis, Axis, Array | None, Array | None]:
    """Of boxes ``[N, 4]``: rows, columns, the level of each, and what each of its samples counts."""
    level = _levels(boxes, pooling)
    boxes = boxes.astype(float_of(boxes.dtype, dtype))
    finite = jnp.isfinite(boxes)
    boxes = jnp.where(finite, boxes, 0) * _of_level(level, np.asarray(pooling.scales, boxes.dtype))
    # A box that is not finite is one far outside. (The choice also keeps a compiler from contracting the product with
    # a sum to come, whose rounding then decides how many samples a bin has.)
    boxes = jnp.where(finite & jnp.isfinite(boxes), boxes, jnp.finfo(boxes.dtype).max)
    heights, widths = (np.asarray(size, np.int32) for size in zip(*sizes, strict=True))
    size = _of_level(level, heights), _of_level(level, widths)
    (*begun,), (start_y, start_x), (stop_y, stop_x) = zip(
        _extent(boxes[:, 0], boxes[:, 2], pooling.size[0], pooling),
        _extent(boxes[:, 1], boxes[:, 3], pooling.size[1], pooling),
        strict=True,
    )
    down, across = (jnp.maximum(n, 1) if pooling.adaptive else n for n in begun)
    lattices = (
        _geometry.bins(size[0], int(heights.max()), pooling.size[0], down, pooling.samples, pooling.aligned),
        _geometry.bins(size[1], int(widths.max()), pooling.size[1], across, pooling.samples, pooling.aligned),
    )
    boxes = jnp.stack([start_y, start_x, stop_y, stop_x], axis=1)
    rows, columns = _geometry.locate(boxes, size, lattices, dtype)
    share = None
    if pooling.adaptive:
        rows, columns = _in_use(rows, begun[0], pooling), _in_use(columns, begun[1], pooling)
    if pooling.samples > 1:
        share = jnp.broadcast_to(1 / jnp.ravel(down * across).astype(dtype), boxes.shape[0])
    return rows, columns, level, share


def _levels(boxes: Array, pooling: Pooling) -> Array | None:
    """Which map each box is read from, ``[N]``; None if there is but one."""
    if len(pooling.scales) == 1:
        return None
    canonical_level, canonical_size = pooling.canonical
    finest, coarsest = (round(-math.log2(scale)) for scale in (pooling.scales[0], pooling.scales[-1]))
    level = assign_levels(boxes, finest, coarsest, canonical_level=canonical_level, canonical_size=canonical_size)
    return level - finest


def _of_level(level: Array | None, values: np.ndarray) -> Any:
    """The value of each box's level, ``[N, 1]``; a plain number if there is but one level."""
    return values[0] if level is None else jnp.asarray(values)[level][:, None]


def _extent(start: Array, stop: Array, bins: int, pooling: Pooling) -> tuple[Integers, Array, Array]:
    """Along one axis: how many samples a bin has (``[N, 1]`` if that differs), none perhaps, and the box's edges."""
    extent = stop - start
    if not pooling.aligned:
        stop = jnp.where(extent < 1, start + 1, stop)
        extent = jnp.maximum(extent, 1)
    if not pooling.adaptive:
        return pooling.samples, start, stop
    # As many as begin in the bin: ceil(extent / bins), without a division to round.
    begun = bins * jnp.arange(pooling.samples, dtype=start.dtype)[None]
    samples = jnp.sum(extent[:, None] > begun, axis=1, keepdims=True, dtype=jnp.int32)
    return samples, start, stop


def _in_use(axis: Axis, samples: Integers, pooling: Pooling) -> Axis:
    """Of the samples of each bin, the first ones."""
    part = np.arange(axis.index.shape[1], dtype=np.int32)[None] % pooling.samples
    return axis._replace(inside=axis.inside & (part < samples))
