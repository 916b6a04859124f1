"""What `crop_and_resize` has to compute: positions in exact arithmetic, values and derivatives in float64 NumPy.

Nothing here is shared with the package. Rational numbers of one denominator are Python's integers in arrays of objects,
so that a million decisions take seconds.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

IMAGE_DTYPES = ["uint8", "uint16", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


class Samples(NamedTuple):
    """The samples of boxes along one axis, ``[N, n]`` each; 0 where outside.

    ``pixel`` is the one below, at most the last but one; ``fraction`` how far from it the sample is: 1 on the last
    pixel, and 0 where there is one pixel only. ``nearest`` is the nearest one, halves up. ``by_start`` and ``by_stop``
    are the derivatives of the position, 0 where it is clamped to the centres of the border's pixels.
    """

    pixel: np.ndarray
    fraction: np.ndarray
    nearest: np.ndarray
    inside: np.ndarray
    by_start: np.ndarray
    by_stop: np.ndarray


def samples(start, stop, size, n, align_corners=True) -> Samples:
    """Where ``n`` samples of boxes with the edges ``[N]`` stand among ``size`` pixels."""
    a = np.arange(n)
    if not align_corners:  # bins of equal size, whose centres are odd multiples of half a bin
        to_start, to_stop, steps, scale = 2 * (n - a) - 1, 2 * a + 1, 2 * n, size
    elif n > 1:
        to_start, to_stop, steps, scale = n - 1 - a, a, n - 1, size - 1
    else:
        to_start, to_stop, steps, scale = a + 1, a + 1, 2, size - 1

    start, stop = np.asarray(start)[:, None], np.asarray(stop)[:, None]
    finite = np.isfinite(start) & np.isfinite(stop)
    one = int(1 / float(np.finfo(np.float32).smallest_subnormal)) if start.dtype == np.float32 else 2**1074
    place = _times(np.where(finite, start, 0), one) * to_start + _times(np.where(finite, stop, 0), one) * to_stop
    within = (place >= 0).astype(bool) & (place <= steps * one).astype(bool)
    only_pixel = align_corners and size == 1  # where every coordinate is, times size - 1
    inside = finite & (within | only_pixel)

    # The position in units of 1 / denominator.
    denominator = 2 * steps * one
    position = np.where(inside, place, 0) * (2 * scale) - (0 if align_corners else steps * one)
    last = (size - 1) * denominator
    moves = inside & (position >= 0).astype(bool) & (position <= last).astype(bool)
    position = np.clip(position, 0, last) * inside
    pixel = np.minimum(position // denominator, max(size - 2, 0))
    nearest = np.minimum((2 * position + denominator) // (2 * denominator), size - 1)
    return Samples(
        pixel.astype(np.int64),
        ((position - pixel * denominator) / denominator).astype(np.float64),
        nearest.astype(np.int64),
        inside,
        moves * to_start * scale / steps,
        moves * to_stop * scale / steps,
    )


def _times(values, one):
    """Floats times a power of two that makes them integers, as Python's integers."""
    ratios = [value.as_integer_ratio() for value in values.ravel().tolist()]
    return np.array([n * (one // d) for n, d in ratios] or [0], object)[: values.size].reshape(values.shape)


def _axes(image, boxes, crop_size, align_corners):
    boxes = np.asarray(boxes)
    rows = samples(boxes[:, 0], boxes[:, 2], image.shape[1], crop_size[0], align_corners)
    columns = samples(boxes[:, 1], boxes[:, 3], image.shape[2], crop_size[1], align_corners)
    return rows, columns


def _inside(image, rows, columns, box_indices):
    """``[N, h, w, 1]``, and the image of each box, ``[N, 1, 1]``: the first for a box without one."""
    box_indices = np.asarray(box_indices).astype(object)  # no index is too large for it
    exists = ((box_indices >= 0) & (box_indices < image.shape[0])).astype(bool)
    inside = exists[:, None, None] & rows.inside[:, :, None] & columns.inside[:, None, :]
    return inside[..., None], np.where(exists, box_indices, 0).astype(np.int64)[:, None, None]


def _taps(axis, size, method):
    """The pixels that a sample weighs, and their weights, ``[N, n]`` each."""
    if method == "nearest":
        return [(axis.nearest, np.ones_like(axis.fraction))]
    return [(axis.pixel, 1 - axis.fraction), (np.minimum(axis.pixel + 1, size - 1), axis.fraction)]


def _weighed(image, rows, columns, box_indices, method):
    """All the pixels that samples weigh: image, row, column, and the weight, ``[N, h, w]`` each."""
    inside, item = _inside(image, rows, columns, box_indices)
    for row, row_weight in _taps(rows, image.shape[1], method):
        for column, column_weight in _taps(columns, image.shape[2], method):
            weight = row_weight[:, :, None] * column_weight[:, None, :] * inside[..., 0]
            yield item, row[:, :, None], column[:, None, :], weight


def crop_and_resize(
    image, boxes, box_indices, crop_size, method="bilinear", extrapolation_value=0.0, align_corners=True
):
    """TensorFlow's form: ``[B, H, W, C]``, ``[N, 4]``, ``[N]`` to ``[N, *crop_size, C]``, in float64."""
    image = np.asarray(image)
    crops = np.zeros((len(boxes), *crop_size, image.shape[3]))
    if image.size == 0:
        return crops + extrapolation_value
    rows, columns = _axes(image, boxes, crop_size, align_corners)
    for item, row, column, weight in _weighed(image, rows, columns, box_indices, method):
        weight = weight[..., None]
        crops += np.where(weight == 0, 0, image[item, row, column].astype(np.float64)) * weight
    return np.where(_inside(image, rows, columns, box_indices)[0], crops, extrapolation_value)


def inside(image, boxes, box_indices, crop_size, align_corners=True):
    """Which samples are inside the image, ``[N, *crop_size]``."""
    return _inside(image, *_axes(image, boxes, crop_size, align_corners), box_indices)[0][..., 0]


def weighs(marked, boxes, box_indices, crop_size, method="bilinear", align_corners=True):
    """Which samples weigh a marked pixel: ``[B, H, W, C]`` to ``[N, *crop_size, C]``, both boolean."""
    rows, columns = _axes(marked, boxes, crop_size, align_corners)
    taps = _weighed(marked, rows, columns, box_indices, method)
    return np.any([marked[item, row, column] & (weight > 0)[..., None] for item, row, column, weight in taps], axis=0)


class Cotangents(NamedTuple):
    """Of the image ``[B, H, W, C]``, the boxes ``[N, 4]`` and the fill value of each channel ``[C]``."""

    image: np.ndarray
    boxes: np.ndarray
    fill: np.ndarray


def cotangents(crops_bar, image, boxes, box_indices, method="bilinear", align_corners=True) -> Cotangents:
    """What the cotangent of the crops, ``[N, h, w, C]``, makes of those of the arguments, in float64."""
    image, crops_bar = np.asarray(image).astype(np.float64), np.asarray(crops_bar).astype(np.float64)
    rows, columns = _axes(image, boxes, crops_bar.shape[1:3], align_corners)
    inside, item = _inside(image, rows, columns, box_indices)
    image_bar = np.zeros_like(image)
    for _, row, column, weight in _weighed(image, rows, columns, box_indices, method):
        np.add.at(image_bar, (item, row, column), crops_bar * weight[..., None])

    boxes_bar = np.zeros((len(boxes), 4))
    if method == "bilinear":
        row_taps, column_taps = _taps(rows, image.shape[1], method), _taps(columns, image.shape[2], method)

        def pixels(row, column):
            return np.where(inside, image[item, row[:, :, None], column[:, None, :]], 0)

        (above, _), (below, _) = row_taps
        (left, _), (right, _) = column_taps
        by_row = sum((pixels(below, c) - pixels(above, c)) * w[:, None, :, None] for c, w in column_taps)
        by_column = sum((pixels(r, right) - pixels(r, left)) * w[:, :, None, None] for r, w in row_taps)
        by_row, by_column = (by_row * crops_bar).sum((2, 3)), (by_column * crops_bar).sum((1, 3))
        y1, y2 = ((by_row * by_edge).sum(1) for by_edge in (rows.by_start, rows.by_stop))
        x1, x2 = ((by_column * by_edge).sum(1) for by_edge in (columns.by_start, columns.by_stop))
        boxes_bar = np.stack([y1, x1, y2, x2], axis=1)
    return Cotangents(image_bar, boxes_bar, np.where(inside, 0, crops_bar).sum((0, 1, 2)))


def random_image(rng, shape, dtype):
    """Over all of an integer type's range; from -1 to 1 in a floating one."""
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.uniform(-1, 1, shape).astype(jnp.dtype(dtype))


def misleading_boxes(rng, n_boxes, size, crop_size, dtype=np.float32):
    """Boxes ``[N, 4]`` with samples where rounding would decide, on borders, on pixels and next to both; or far off."""
    (y1, y2), (x1, x2) = (misleading_edges(rng, n_boxes, size[i], crop_size[i], dtype) for i in range(2))
    return np.stack([y1, x1, y2, x2], axis=1)


@np.errstate(invalid="ignore")  # some bits are signalling NaNs
def misleading_edges(rng, n_boxes, size, n, dtype=np.float32):
    """As `misleading_boxes`, along one axis: ``[N]`` starts and ``[N]`` stops."""
    info = np.finfo(dtype)

    def neighbour(values):
        return np.nextafter(values, rng.choice([-np.inf, np.inf], n_boxes).astype(dtype))

    def edges():
        parts = rng.choice([1, 2, 3, 10, 255, max(size - 1, 1), size, 2 * size, max(n - 1, 1), 2 * n], n_boxes)
        fraction = (rng.integers(-parts, 2 * parts + 1) / parts).astype(dtype)
        border = rng.choice([0, 1], n_boxes).astype(dtype)
        bits = rng.integers(0, 2**info.bits, n_boxes, dtype=f"u{info.bits // 8}").view(dtype)
        choices = [
            rng.uniform(0, 1, n_boxes),
            rng.uniform(-0.5, 1.5, n_boxes),
            fraction,
            neighbour(fraction),
            border,
            neighbour(border),
            neighbour(neighbour(border)),
            rng.integers(-9, 10, n_boxes) * info.smallest_subnormal,
            rng.choice([-1, 1], n_boxes) * 2.0 ** rng.integers(-60, -20, n_boxes),
            np.ldexp(rng.choice([-1.0, 1.0], n_boxes), rng.integers(info.minexp, info.maxexp, n_boxes)),
            rng.choice([1e38, -1e38, np.inf, np.nan], n_boxes),
            bits,
        ]
        return np.choose(rng.integers(0, len(choices), n_boxes), [np.asarray(c).astype(dtype) for c in choices])

    # Sample k of n on a border, exactly or but for the rounding of the edges.
    k = rng.integers(0, n, n_boxes)
    border = rng.integers(0, 2, n_boxes)
    length = rng.choice([1, 3, 1 / 3, 0.7], n_boxes) * 2.0 ** rng.integers(-30, 3, n_boxes)
    length = length.astype(dtype).astype(np.float64)
    hits = (border - k * length).astype(dtype), (border + (n - 1 - k) * length).astype(dtype)

    start, stop = edges(), edges()
    kind = rng.integers(0, 4, n_boxes)
    start = np.select([kind == 0, kind == 1, kind == 2], [hits[0], -stop, neighbour(-stop)], start)
    stop = np.where(kind == 0, hits[1], stop)
    flip = rng.random(n_boxes) < 0.3
    return np.where(flip, stop, start), np.where(flip, start, stop)
