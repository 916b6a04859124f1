"""The operation: canonical form -> geometry -> sampling -> caller's form."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jax_crop import _arguments, _geometry
from jax_crop._sampling import Scheme, float_of, sample


def crop_and_resize(
    image: ArrayLike,
    boxes: ArrayLike,
    box_indices: ArrayLike | None,
    crop_size: tuple[int, int],
    method: str = "bilinear",
    extrapolation_value: ArrayLike = 0.0,
    *,
    align_corners: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """Cuts boxes out of images and resamples each to one size.

    TODO docstring
    """
    image = _arguments.image("image", image)
    boxes = _arguments.boxes(boxes)
    box_indices = _arguments.box_indices(box_indices, image.shape, boxes.shape)
    crop_size = _arguments.size("crop_size", crop_size)
    _arguments.extent("crop_size", crop_size, image.shape[-3:-1], 2**30)
    method = _arguments.choice("method", method, ("bilinear", "nearest"))
    dtype = _arguments.floating("dtype", dtype)
    fill = _arguments.fill(extrapolation_value, image.shape[-1])

    crop = functools.partial(_crop, crop_size=crop_size, method=method, align_corners=bool(align_corners), dtype=dtype)
    if box_indices is not None:
        return crop(image, boxes, box_indices, fill)
    if boxes.ndim == 2:
        return crop(image[None], boxes, None, fill)
    return jax.vmap(lambda image, boxes: crop(image[None], boxes, None, fill))(image, boxes)


@functools.partial(jax.jit, static_argnames=("crop_size", "method", "align_corners", "dtype"))
def _crop(
    image: Array,
    boxes: Array,
    box_indices: Array | None,
    fill: Array,
    *,
    crop_size: tuple[int, int],
    method: str,
    align_corners: bool,
    dtype: Any,
) -> Array:
    """``[B, H, W, C]``, ``[N, 4]`` and ``[N]`` (or None: all of the first image) to ``[N, *crop_size, C]``."""
    batch, height, width, channels = image.shape
    compute = float_of(dtype)
    fill = jnp.broadcast_to(jnp.asarray(fill).astype(compute), (channels,))
    if 0 in (batch, channels, boxes.shape[0]):  # nothing to gather from or to
        return jnp.broadcast_to(fill.astype(dtype), (boxes.shape[0], *crop_size, channels))
    boxes = boxes.astype(float_of(boxes.dtype, compute))
    lattice = _geometry.corners if align_corners else _geometry.centres
    locate = _geometry.nearest if method == "nearest" else _geometry.locate
    rows = locate(boxes[:, 0], boxes[:, 2], height, lattice(height, crop_size[0]), compute)
    columns = locate(boxes[:, 1], boxes[:, 3], width, lattice(width, crop_size[1]), compute)
    if box_indices is not None:
        rows = _geometry.of_items(rows, box_indices, batch, height)
    taps = (1, 1) if method == "nearest" else (min(height, 2), min(width, 2))
    scheme = Scheme(taps=taps, samples=(1, 1), dtype=dtype)
    return sample(scheme, image.reshape(-1, width, channels), rows, columns, fill, jnp.ones(boxes.shape[0], compute))
