"""The operation: canonical form -> geometry -> sampling -> caller's form."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jax_crop import _arguments, _geometry
from jax_crop._forms import in_form
from jax_crop._kernels import KERNELS
from jax_crop._sampling import Samples, Scheme, each_group, float_of, in_items, sample, sample_by_kernel


def crop_and_resize(
    image: ArrayLike,
    boxes: ArrayLike,
    box_indices: ArrayLike | None,
    crop_size: int | Sequence[int],
    method: str = "bilinear",
    extrapolation_value: ArrayLike = 0.0,
    *,
    align_corners: bool = True,
    antialias: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """Cuts boxes out of images, or feature maps, and resamples each to one size.

    Convention:
        - Layout: channels last.
        - Box order: ``[y1, x1, y2, x2]``; ``y1 > y2`` flips the crop upside down, ``x1 > x2`` left to right.
        - Origin: the top left corner.
        - Alignment: boxes are normalized; 0 and 1 are the centres of the first and the last pixel, and a crop's first
          and last samples stand on the box's edges (``align_corners=True``); or 0 and 1 are the outer edges of the
          image, and samples stand at the centres of equal bins (``align_corners=False``).
        - Fill: a sample outside ``[0, 1]`` is ``extrapolation_value``; but of one pixel along an axis, with
          ``align_corners=True``, every finite coordinate reads it, as in TensorFlow.

    Args:
        image: ``[B, H, W, C]`` or ``[H, W, C]``, of any integer or floating type.
        boxes: ``[N, 4]``, or ``[B, N, 4]`` for boxes of their own for each image; float32, or float64 where that is
            enabled. A box with a coordinate that is not finite is outside everywhere.
        box_indices: integers ``[N]``, which image each box is cut from. An index outside ``[0, B)``, say -1 to pad to a
            fixed number of boxes, makes the whole crop fill. None for ``[H, W, C]`` images and for ``[B, N, 4]`` boxes.
        crop_size: ``(height, width)`` of the crops in pixels, or one number for a square, known while tracing.
        method: ``"nearest"``, with halves rounded away from zero, or an interpolation kernel: ``"bilinear"``, a
            triangle; ``"cubic"``, or ``"bicubic"``, Keys' with a = -0.5; ``"lanczos3"``; ``"lanczos5"``. A sample
            weighs a pixel by the kernel at their distance, divided by the sum of that over the pixels that exist.
        extrapolation_value: the fill, a scalar or one value for each channel, ``[C]``.
        align_corners: see *Alignment*. With False, a sample within half a pixel of the border takes the border's value
            if bilinear.
        antialias: whether to stretch the kernel by the distance of two samples in pixels where that is more than 1, for
            each box and axis; for one sample, by the box's length. It looks beyond the box, into the image. So with
            ``align_corners=False`` a crop is what `jax.image.scale_and_translate` and Pillow's ``resize(size, resample,
            box=box)`` give. Not for ``"nearest"``.
        dtype: the floating type of the crops, of JAX's default width for Python's ``float``. Interpolation runs in
            float32, in float64 if dtype is float64.

    Returns:
        ``[N, crop_height, crop_width, C]``, or ``[B, N, crop_height, crop_width, C]`` for ``[B, N, 4]`` boxes.

        Whether a sample is inside, and between which pixels it stands, is decided as exact arithmetic on the boxes
        decides it. Constants stay constant: to the last bit if bilinear without antialias or nearest, else to float32's
        precision. A pixel that has no weight in a sample does not reach it, be it NaN or infinite.

        Differentiable to any order in image, boxes and fill. The derivative by a box is the slope of the surface that
        the kernel interpolates: exactly on a pixel the slope toward higher indices, on the last pixel toward the
        inside, and 0 outside and of ``"nearest"``. With antialias, a box that grows also stretches the kernel, as soon
        as its samples are more than a pixel apart, and that slope is included.

    Raises:
        TypeError: while tracing, for an argument of the wrong type.
        ValueError: while tracing, for one of the wrong shape or value; also for boxes in lists and NumPy arrays that
            are whole numbers far beyond 1, in pixels that is. For what only the data of traced and of JAX arrays can
            tell, see `jax_crop.boxes.check`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jax_crop
        >>> image = jnp.arange(16.0).reshape(4, 4, 1)
        >>> boxes = [[0, 0, 1, 1], [1, 0, 0, 1]]  # the whole image, and flipped
        >>> jax_crop.crop_and_resize(image, boxes, None, (2, 2))[..., 0]
        Array([[[ 0.,  3.],
                [12., 15.]],
        <BLANKLINE>
               [[12., 15.],
                [ 0.,  3.]]], dtype=float32)

    Source:
        The operation is TensorFlow's CropAndResize
        (<https://www.tensorflow.org/api_docs/python/tf/raw_ops/CropAndResize>), whose positional arguments these are.
    """
    image = _arguments.image("image", image)
    boxes = _arguments.normalized(boxes)
    box_indices = _arguments.box_indices(box_indices, image.shape, boxes.shape)
    crop_size = _arguments.size("crop_size", crop_size)
    _arguments.extent("crop_size", crop_size, image.shape[-3:-1], 2**30)
    method = _arguments.choice("method", method, ("nearest", *KERNELS))
    antialias = _arguments.flag("antialias", antialias)
    if antialias and method == "nearest":
        raise ValueError('antialias=True needs a kernel to stretch, which method "nearest" has not')
    dtype = _arguments.floating("dtype", dtype)
    fill = _arguments.fill(extrapolation_value, image.shape[-1])

    options = {
        "crop_size": crop_size,
        "method": method,
        "align_corners": _arguments.flag("align_corners", align_corners),
        "antialias": antialias,
        "dtype": dtype,
    }
    return in_form(_crop, (image,), boxes, box_indices, fill, **options)


def _crop(
    images: tuple[Array],
    boxes: Array,
    box_indices: Array | None,
    fill: Array,
    *,
    crop_size: tuple[int, int],
    method: str,
    align_corners: bool,
    antialias: bool,
    dtype: Any,
) -> Array:
    """``[G, B, H, W, C]``, ``[G, N, 4]`` and ``[G, N]`` (or None: of the first image) to ``[G, N, *crop_size, C]``."""
    (image,) = images
    _, batch, height, width, channels = image.shape
    compute = float_of(dtype)
    fill = jnp.broadcast_to(jnp.asarray(fill).astype(compute), (channels,))
    if 0 in (*image.shape, *boxes.shape):  # nothing to gather from or to
        return jnp.broadcast_to(fill.astype(dtype), (*boxes.shape[:2], *crop_size, channels))
    by_kernel = antialias or method not in ("bilinear", "nearest")
    locate: Any
    if by_kernel:
        locate = functools.partial(_geometry.unclamped, antialias=antialias)
    else:
        locate = _geometry.nearest if method == "nearest" else _geometry.locate
    lattice = _geometry.corners if align_corners else _geometry.centres
    lattices = lattice(height, crop_size[0]), lattice(width, crop_size[1])
    rows, columns = each_group(lambda boxes: locate(boxes, (height, width), lattices, compute))(boxes)
    item, rows = in_items(rows, box_indices, batch)
    fills = jnp.broadcast_to(fill, (*boxes.shape[:2], channels))
    samples = Samples(rows, columns, item, level=None, share=None, fill=fills)
    window = (1, 1) if method == "nearest" else (min(height, 2), min(width, 2))
    scheme = Scheme(windows=(window,), samples=(1, 1), dtype=dtype)
    if by_kernel:
        return sample_by_kernel(KERNELS[method], scheme, image, samples)
    return sample(scheme, (image,), samples)
