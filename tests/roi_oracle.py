"""What `roi_align` has to compute: positions in fractions, values and derivatives in float64 NumPy.

Nothing here is shared with the package. ROIAlign is separable: a bin averages every row sample at every column sample,
so it is one row of a matrix ``[h, H]`` times the feature map times one row of a matrix ``[w, W]``.

Source: K. He et al., "Mask R-CNN", 2017; Detectron2's ROIAlign for the shift of half a pixel and the adaptive rule.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """How bins weigh pixels along one axis, and how that changes with the edges of their boxes: ``[N, bins, size]``."""

    weights: np.ndarray
    by_start: np.ndarray
    by_stop: np.ndarray


def axis(start, stop, size, bins, sampling_ratio, aligned, max_sampling_ratio) -> Axis:
    """The bins of boxes with the edges ``[N]``, in pixels of the feature map."""
    tables = Axis(*np.zeros((3, len(start), bins, size)))
    for box, (first, last) in enumerate(zip(start, stop, strict=True)):
        if not (np.isfinite(first) and np.isfinite(last)):
            continue
        is_widened = not aligned and last < first + 1
        last = first + 1 if is_widened else last
        samples = sampling_ratio or min(math.ceil(Fraction(float(last - first)) / bins), max_sampling_ratio)
        first, last = Fraction(float(first)), Fraction(float(last))
        for k in range(bins * samples):
            along = Fraction(2 * k + 1, 2 * bins * samples)
            position = first * (1 - along) + last * along - (Fraction(1, 2) if aligned else 0)
            if not -1 <= position <= size:
                continue
            clamped = min(max(position, 0), size - 1)
            pixel = min(math.floor(clamped), max(size - 2, 0))  # at the last pixel, the slope toward the inside
            pair = [pixel, min(pixel + 1, size - 1)]
            fraction = float(clamped - pixel)
            bin_ = k // samples
            np.add.at(tables.weights[box, bin_], pair, np.array([1 - fraction, fraction]) / samples)
            if clamped == position:
                by_start, by_stop = (1, 0) if is_widened else (1 - along, along)
                slope = np.array([-1, 1]) / samples
                np.add.at(tables.by_start[box, bin_], pair, slope * float(by_start))
                np.add.at(tables.by_stop[box, bin_], pair, slope * float(by_stop))
    return tables


class Problem(NamedTuple):
    """One call: the tables of both axes, the map that each box is read from ``[N, H, W, C]``, and the rest of it."""

    rows: Axis
    columns: Axis
    maps: np.ndarray
    item: np.ndarray
    features: np.ndarray
    spatial_scale: float


def problem(
    features,
    boxes,
    box_indices,
    output_size,
    *,
    spatial_scale=1.0,
    sampling_ratio=2,
    aligned=True,
    max_sampling_ratio=None,
) -> Problem:
    """Prepares ``[B, H, W, C]``, ``[N, 4]``, ``[N]``; as everywhere, boxes are scaled in their own precision."""
    features = np.asarray(features)
    boxes = np.asarray(boxes).astype(
        np.float64 if np.float64 in (features.dtype, np.asarray(boxes).dtype) else np.float32
    )
    with np.errstate(over="ignore", invalid="ignore"):
        y1, x1, y2, x2 = (boxes * boxes.dtype.type(spatial_scale)).T
    features = features.astype(np.float64)
    item = np.asarray(box_indices)
    exists = (item >= 0) & (item < len(features))
    item = np.where(exists, item, 0).astype(np.int64)
    rule = sampling_ratio, aligned, max_sampling_ratio
    rows = axis(y1, y2, features.shape[1], output_size[0], *rule)
    columns = axis(x1, x2, features.shape[2], output_size[1], *rule)
    rows = Axis(*(table * exists[:, None, None] for table in rows))
    return Problem(rows, columns, features[item], item, features, spatial_scale)


def roi_align(*arguments, **options):
    """``[N, *output_size, C]``; NaN in a pixel reaches the bins that weigh it."""
    p = problem(*arguments, **options)
    weigh = "nhi,nijc,nwj->nhwc"
    marked = np.einsum(weigh, p.rows.weights > 0, ~np.isfinite(p.maps), p.columns.weights > 0, optimize=True)
    maps = np.where(np.isfinite(p.maps), p.maps, 0)
    pooled = np.einsum(weigh, p.rows.weights, maps, p.columns.weights, optimize=True)
    return np.where(marked, np.nan, pooled)


def cotangents(pooled_bar, *arguments, **options):
    """Of the features ``[B, H, W, C]`` and the boxes ``[N, 4]``, from the one of the result."""
    p = problem(*arguments, **options)
    pooled_bar = np.asarray(pooled_bar).astype(np.float64)
    features_bar = np.zeros_like(p.features)
    maps_bar = np.einsum("nhi,nhwc,nwj->nijc", p.rows.weights, pooled_bar, p.columns.weights, optimize=True)
    np.add.at(features_bar, p.item, maps_bar)

    def change(rows, columns):
        return np.einsum("nhi,nijc,nwj,nhwc->n", rows, p.maps, columns, pooled_bar, optimize=True)

    by_y1, by_y2 = (change(table, p.columns.weights) for table in (p.rows.by_start, p.rows.by_stop))
    by_x1, by_x2 = (change(p.rows.weights, table) for table in (p.columns.by_start, p.columns.by_stop))
    return features_bar, np.stack([by_y1, by_x1, by_y2, by_x2], axis=1) * p.spatial_scale


def hessian_in_boxes(pooled_bar, *arguments, **options):
    """Of the result times ``pooled_bar``, ``[N, 4, 4]``: the surface is linear along each axis, not in both."""
    p = problem(*arguments, **options)
    hessian = np.zeros((len(p.item), 4, 4))
    for y, rows in ((0, p.rows.by_start), (2, p.rows.by_stop)):
        for x, columns in ((1, p.columns.by_start), (3, p.columns.by_stop)):
            mixed = np.einsum("nhi,nijc,nwj,nhwc->n", rows, p.maps, columns, pooled_bar, optimize=True)
            hessian[:, y, x] = hessian[:, x, y] = mixed * p.spatial_scale**2
    return hessian
