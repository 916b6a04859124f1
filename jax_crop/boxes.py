"""Boxes and points: formats, coordinates, pyramid levels, and checks of their data.

Pure functions on boxes `[..., 4]`, with any number of leading axes; they jit, vmap and differentiate, and what they
compute is one compiled program each. Lists, NumPy and JAX arrays are taken; floating types are kept (the first
argument's, where there are two) and integers become float32.

Convention:
    A box is `[y1, x1, y2, x2]`, a point `(y, x)`, a size `(height, width)`; y counts down from the top, x right from
    the left. A box may be flipped (`y2 < y1`): its crop is mirrored, and it stays flipped. *Normalized* coordinates are
    those of `jax_crop.crop_and_resize`, and `align_corners`, given as it is given there, says what they count from:

    | `align_corners` | 0 and 1 are | pixel `i` is | the whole image, in pixels | `pixel =` |
    |---|---|---|---|---|
    | `True` | the centres of the first and last pixel | the point `i` | `[0, 0, H-1, W-1]` | `normalized * (size-1)` |
    | `False` | the outer edges of those pixels | the span `[i, i+1]` | `[0, 0, H, W]` | `normalized * size` |

    Pixels of a *crop* are counted from their centres in both cases: pixel 0 stands at 0, the last of `n` at `n - 1`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify
from jax.typing import ArrayLike

from jax_crop import _arguments

Values = ArrayLike | Sequence[Any]
Format = Literal["yxyx", "xyxy", "xywh", "cxcywh"]

_TO_YXYX: dict[str, Callable[..., tuple[Array, ...]]] = {
    "yxyx": lambda y1, x1, y2, x2: (y1, x1, y2, x2),
    "xyxy": lambda x1, y1, x2, y2: (y1, x1, y2, x2),
    "xywh": lambda x, y, w, h: (y, x, y + h, x + w),
    "cxcywh": lambda x, y, w, h: (y - h / 2, x - w / 2, y + h / 2, x + w / 2),
}
_FROM_YXYX: dict[str, Callable[..., tuple[Array, ...]]] = {
    "yxyx": lambda y1, x1, y2, x2: (y1, x1, y2, x2),
    "xyxy": lambda y1, x1, y2, x2: (x1, y1, x2, y2),
    "xywh": lambda y1, x1, y2, x2: (x1, y1, x2 - x1, y2 - y1),
    "cxcywh": lambda y1, x1, y2, x2: ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
}


def convert(boxes: Values, source: Format, target: Format) -> Array:
    """Rewrite boxes from one format in another.

    Args:
        boxes: `[..., 4]`, in any unit.
        source: the format of `boxes`: `"yxyx"` `[y1, x1, y2, x2]` (this library's), `"xyxy"` `[x1, y1, x2, y2]`,
            `"xywh"` `[x1, y1, width, height]` (COCO's) or `"cxcywh"` `[centre x, centre y, width, height]` (YOLO's).
        target: the format of the result, likewise.

    Raises:
        ValueError: if a format is unknown.

    Examples:
        >>> convert([10, 20, 30, 40], "xywh", "yxyx")
        Array([20., 10., 60., 40.], dtype=float32)
    """
    for name, value in (("source", source), ("target", target)):
        _arguments.choice(name, value, list(_TO_YXYX))
    boxes = _floats(boxes, "boxes", (4,))
    return boxes if source == target else _convert(boxes, source, target)  # to the bit


@functools.partial(jax.jit, static_argnums=(1, 2))
def _convert(boxes: Array, source: Format, target: Format) -> Array:
    return jnp.stack(_FROM_YXYX[target](*_TO_YXYX[source](*jnp.unstack(boxes, axis=-1))), axis=-1)


def normalize(boxes: Values, image_size: Values, *, align_corners: bool = True) -> Array:
    """Pixel coordinates to the normalized coordinates that `jax_crop.crop_and_resize` takes.

    Convention:
        With `align_corners=True`, `pixel / (size - 1)`, pixel centres at whole numbers; with `align_corners=False`,
        `pixel / size`, pixel edges at whole numbers. Annotated boxes mostly count from edges: subtract 0.5 from them
        for `align_corners=True`. On an axis of one pixel, where `size - 1` is 0, the divisor is 1.

    Args:
        boxes: boxes `[..., 4]` or points `[..., 2]`, in pixels.
        image_size: `(height, width)` in pixels, or one number for a square; a JAX array of shape `[2]` may be traced.
        align_corners: as for the crop.

    Examples:
        >>> normalize([0, 0, 239, 319], image_size=(240, 320))
        Array([0., 0., 1., 1.], dtype=float32)
        >>> normalize([0, 0, 120, 320], image_size=(240, 320), align_corners=False)
        Array([0. , 0. , 0.5, 1. ], dtype=float32)
    """
    return _normalize(_floats(boxes, "boxes", (4, 2)), _length(image_size, align_corners))


@jax.jit
def _normalize(boxes: Array, length: Array) -> Array:
    return _fraction(boxes, _per_coordinate(jnp.maximum(length, 1), boxes))


def denormalize(boxes: Values, image_size: Values, *, align_corners: bool = True) -> Array:
    """Normalized coordinates to pixel coordinates: the inverse of `normalize`, with its convention and arguments.

    With `align_corners=True`, on an axis of one pixel, every coordinate is 0: crops read that one centre everywhere.

    Examples:
        >>> denormalize([0.0, 0.5, 1.0, 1.0], image_size=(241, 321))
        Array([  0., 160., 240., 320.], dtype=float32)
    """
    return _denormalize(_floats(boxes, "boxes", (4, 2)), _length(image_size, align_corners))


@jax.jit
def _denormalize(boxes: Array, length: Array) -> Array:
    return boxes * _per_coordinate(length, boxes)


def scale(boxes: Values, factor: Values) -> Array:
    """Scale boxes about their centres.

    Args:
        boxes: `[..., 4]`, in any unit.
        factor: a number, or `(factor_y, factor_x)`; may be traced. A negative one flips.

    Examples:
        >>> scale([10, 10, 20, 30], 2)
        Array([ 5.,  0., 25., 40.], dtype=float32)
    """
    boxes = _floats(boxes, "boxes", (4,))
    return _scale(boxes, _pair("factor", factor, boxes.dtype))


@jax.jit
def _scale(boxes: Array, factor: Array) -> Array:
    first, last = jnp.split(boxes, 2, axis=-1)
    return _grow(boxes, (last - first) * ((_per_coordinate(factor, first) - 1) / 2))


def make_square(boxes: Values) -> Array:
    """Widen the shorter side to the length of the longer one, about the same centre.

    The result is square in the unit of the boxes: for a crop that is square on the image, call it before `normalize`.

    Args:
        boxes: `[..., 4]`, in any unit.

    Examples:
        >>> make_square([10, 10, 20, 30])
        Array([ 5., 10., 25., 30.], dtype=float32)
    """
    return _make_square(_floats(boxes, "boxes", (4,)))


@jax.jit
def _make_square(boxes: Array) -> Array:
    first, last = jnp.split(boxes, 2, axis=-1)
    direction = jnp.where(last < first, -1, 1).astype(boxes.dtype)
    sides = (last - first) * direction
    return _grow(boxes, direction * (jnp.max(sides, axis=-1, keepdims=True) - sides) / 2)


def clip(boxes: Values, upper: Values = 1.0) -> Array:
    """Limit boxes to the image, from 0 to `upper` on each axis.

    Args:
        boxes: boxes `[..., 4]` or points `[..., 2]`.
        upper: a number, or `(upper_y, upper_x)`; may be traced. The default is for normalized boxes; boxes in pixels
            take the image size, `(H, W)`, where they count from edges, and `(H-1, W-1)` where they count from centres.

    Examples:
        >>> clip([-0.5, 0.25, 0.5, 1.5])
        Array([0.  , 0.25, 0.5 , 1.  ], dtype=float32)
    """
    boxes = _floats(boxes, "boxes", (4, 2))
    return _clip(boxes, _pair("upper", upper, boxes.dtype))


@jax.jit
def _clip(boxes: Array, upper: Array) -> Array:
    return jnp.clip(boxes, 0, _per_coordinate(upper, boxes))


def to_crop(points: Values, boxes: Values, crop_size: int | Sequence[int], *, align_corners: bool = True) -> Array:
    """Where points of the image are in its crops.

    Convention:
        Sample `a` of `n` along an axis stands at `(y1 * (n-1-a) + y2 * a) / (n-1)` in the image, and at
        `y1 + (y2 - y1) * (a + 1/2) / n` with `align_corners=False`, or where `n` is 1. A box without height (width)
        shows one line only, and every point is put on the middle row (column) of its crop.

    Args:
        points: normalized points `[*N, ..., 2]`, or boxes `[*N, ..., 4]`: for each crop, any number of them.
        boxes: the normalized boxes `[*N, 4]` that were cut out. Leading axes broadcast: `points[None]` and `[N, 4]` put
            all points into all crops.
        crop_size: `(height, width)` in pixels, or one number for a square.
        align_corners: as for the crop.

    Returns:
        The points (or boxes) in pixels of the crop, whose centres are at whole numbers; also those beyond its borders.

    Raises:
        ValueError: if the leading axes of `points` and `boxes` do not fit.

    Examples:
        >>> to_crop([0.5, 0.25], [0.0, 0.0, 1.0, 0.5], crop_size=(5, 5))
        Array([2., 2.], dtype=float32)
    """
    return _to_crop(*_in_crops(points, boxes), *_pixels(crop_size, align_corners))


@jax.jit
def _to_crop(points: Array, boxes: Array, offset: Array, length: Array) -> Array:
    first, last, offset, length = _frame(points, boxes, offset, length)
    is_flat = first == last
    fraction = (points - first) / jnp.where(is_flat, 1, last - first)
    return jnp.where(is_flat, 0.5, fraction) * length - offset


def from_crop(points: Values, boxes: Values, crop_size: int | Sequence[int], *, align_corners: bool = True) -> Array:
    """Where pixels of crops are in the image: the inverse of `to_crop`, with its convention and arguments.

    Takes points (or boxes) in pixels of the crop and returns them in normalized coordinates of the image.

    Examples:
        >>> from_crop([2, 2], [0.0, 0.0, 1.0, 0.5], crop_size=(5, 5))
        Array([0.5 , 0.25], dtype=float32)
    """
    return _from_crop(*_in_crops(points, boxes), *_pixels(crop_size, align_corners))


@jax.jit
def _from_crop(points: Array, boxes: Array, offset: Array, length: Array) -> Array:
    first, last, offset, length = _frame(points, boxes, offset, length)
    fraction = _fraction(points + offset, length)
    return first * (1 - fraction) + last * fraction


def invert(boxes: Values) -> Array:
    """The boxes that, cut out of crops, give back whole images: each crop in its place, and fill around it.

    `[-y1, -x1, 1 - y1, 1 - x1] / [h, w, h, w]`, where `h = y2 - y1` and `w = x2 - x1`: the image as its crop sees it.
    This pastes: a mask that was predicted for a box is put into the image by a crop of the *mask*.

    Convention:
        Normalized, and the same for both values of `align_corners`; cut with the value that the crop was cut with.
        A flipped box has a flipped inverse, which mirrors the crop back. A box without height or width, and one that
        is not finite, has no inverse: its result is NaN on that axis, so that all of its image is fill.

    Args:
        boxes: normalized boxes `[..., 4]`.

    Returns:
        `[..., 4]`, each coordinate rounded three times in the dtype of the boxes. A pixel of the image that stands just
        on the edge of its box may therefore be found inside the crop, or beside it. The derivative by an axis that has
        no inverse is 0.

    Examples:
        >>> invert([0.25, 0.0, 0.75, 0.5])  # the image is twice as high and wide as the crop
        Array([-0.5,  0. ,  1.5,  2. ], dtype=float32)
        >>> from jax_crop import crop_and_resize
        >>> whole_image = invert([[0.25, 0.0, 0.75, 0.5]])
        >>> crop_and_resize(jnp.ones((2, 2, 1)), whole_image, None, (4, 4), align_corners=False)[0, ..., 0]
        Array([[0., 0., 0., 0.],
               [1., 1., 0., 0.],
               [1., 1., 0., 0.],
               [0., 0., 0., 0.]], dtype=float32)
    """
    return _invert(_floats(boxes, "boxes", (4,)))


@jax.jit
def _invert(boxes: Array) -> Array:
    first, last = jnp.split(boxes, 2, axis=-1)
    sides = last - first
    has_inverse = jnp.isfinite(sides) & (sides != 0)
    # Replaced before the division: what is selected away after it would still put NaN into derivatives.
    first, sides = jnp.where(has_inverse, first, 0), jnp.where(has_inverse, sides, 1)
    edges = [jnp.where(has_inverse, (edge - first) / sides, jnp.nan) for edge in (0, 1)]  # of the image
    return jnp.concatenate(edges, axis=-1)


def random_resized(
    key: Array,
    count: int,
    image_size: Values,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    align_corners: bool = True,
) -> Array:
    """Boxes of random area, aspect ratio and place: those of torchvision's `RandomResizedCrop`.

    A box has a share of the image's area that is uniform in `area`, and an aspect ratio whose logarithm is uniform;
    its sides are rounded to whole pixels, and of all places within the image each is equally likely. A box that does
    not fit is drawn again, ten times at most. What never fits, most often in a long image, becomes the largest box in
    the centre whose aspect ratio is within `aspect`.

    Convention:
        Normalized. A box of the pixels `top` to `top + h - 1` goes with `align_corners=False` from the outer edge of
        the first to that of the last, `top / H` to `(top + h) / H`; with `align_corners=True` from centre to centre,
        `top / (H-1)` to `(top + h - 1) / (H-1)`, and is 0 on an axis of one pixel.

    Args:
        key: of `jax.random`, of either style.
        count: how many boxes, known while tracing.
        image_size: `(height, width)` in pixels; a JAX array of shape `[2]` may be traced.
        area: the least and the largest share of the image, from 0 to 1, known while tracing.
        aspect: the least and the largest width divided by height, in pixels, known while tracing.
        align_corners: as for the crop.

    Returns:
        float32 `[count, 4]`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if it is of the wrong shape or value.

    Source:
        `get_params` of torchvision's `RandomResizedCrop`
        (<https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.RandomResizedCrop.html>); the method
        is that of Szegedy et al., "Going Deeper with Convolutions", 2015, section 6
        (<https://arxiv.org/abs/1409.4842>).

    Examples:
        >>> random_resized(jax.random.key(0), 2, (480, 640)).shape
        (2, 4)
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> sizes = jnp.array([[480, 640], [320, 320], [1080, 1920]])  # of three images
        >>> jax.vmap(random_resized, in_axes=(0, None, 0))(keys, 1, sizes).shape
        (3, 1, 4)
    """
    if not isinstance(count, int | np.integer) or count < 0:
        raise ValueError(f"count must be a number of boxes, known while tracing, got {count!r}")
    size = image_size if isinstance(image_size, Array) else jnp.array(_arguments.size("image_size", image_size))
    if size.shape != (2,) or not jnp.issubdtype(size.dtype, jnp.integer):
        raise ValueError(f"image_size must be two integers, (height, width), got {size.dtype}{list(size.shape)}")
    area, aspect = _range("area", area, 1), _range("aspect", aspect, math.inf)
    keys = jax.random.split(key, int(count))
    align_corners = _arguments.flag("align_corners", align_corners)
    return _random_resized(keys, size.astype(jnp.int32), area=area, aspect=aspect, align_corners=align_corners)


@functools.partial(jax.jit, static_argnames=("area", "aspect", "align_corners"))
def _random_resized(
    keys: Array, size: Array, *, area: tuple[float, float], aspect: tuple[float, float], align_corners: bool
) -> Array:
    height, width = jnp.unstack(size.astype(jnp.float32))
    central = jnp.stack([width / aspect[0], height * aspect[1]])
    central = jnp.clip(jnp.round(central), 1, size.astype(jnp.float32)).astype(jnp.int32)

    def pixels(key: Array) -> Array:
        """One box, counted from the edges of pixels."""
        key_area, key_aspect, key_place = jax.random.split(key, 3)
        share = jax.random.uniform(key_area, (10,), jnp.float32, *area)  # one for each try
        ratio = jnp.exp(jax.random.uniform(key_aspect, (10,), jnp.float32, *map(math.log, aspect)))
        h = jnp.round(jnp.sqrt(share * height * width / ratio))
        w = jnp.round(jnp.sqrt(share * height * width * ratio))
        fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        first = jnp.argmax(fits)
        sides = jnp.where(fits[first], jnp.stack([h[first], w[first]]).astype(jnp.int32), central)
        anywhere = jax.random.randint(key_place, (2,), 0, size - sides + 1, jnp.int32)
        place = jnp.where(fits[first], anywhere, (size - sides) // 2)
        return jnp.concatenate([place, place + sides])

    edges = jax.vmap(pixels)(keys)
    # The centre of the last pixel is one before its outer edge.
    ends = edges - jnp.array([[0, 0, 1, 1]], jnp.int32) if align_corners else edges
    return normalize(ends, size, align_corners=align_corners)


def assign_levels(
    boxes: Values, min_level: int, max_level: int, *, canonical_level: int = 4, canonical_size: float = 224.0
) -> Array:
    """The level of a feature pyramid that each box is to be read from.

    `floor(canonical_level + log2(sqrt(area) / canonical_size))`, limited to the levels there are. No logarithm is
    rounded: areas are compared with each level's least, so a box of just 112 x 112 is on level 3.

    Args:
        boxes: `[..., 4]` in pixels of the input image, `area = (y2 - y1) * (x2 - x1)`. Boxes that are empty, flipped
            or not finite are on `min_level`.
        min_level: the finest level.
        max_level: the coarsest level.
        canonical_level: the level of a box of `canonical_size` squared.
        canonical_size: in pixels.

    Returns:
        int32 `[...]`.

    Raises:
        ValueError: if `min_level > max_level`, if `canonical_size` is not positive, or if a level's boxes would be
            larger or smaller than floats can tell.

    Source:
        Lin et al., "Feature Pyramid Networks for Object Detection", 2017, equation 1
        (<https://arxiv.org/abs/1612.03144>).

    Examples:
        >>> assign_levels([[0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 9, 9]], 2, 5)
        Array([3, 4, 2], dtype=int32)
    """
    min_level, max_level = _arguments.integer("min_level", min_level), _arguments.integer("max_level", max_level)
    if min_level > max_level:
        raise ValueError(f"min_level must not exceed max_level, got {min_level} and {max_level}")
    canonical_level = _arguments.integer("canonical_level", canonical_level)
    canonical_size = _arguments.positive("canonical_size", canonical_size)
    for level in (min_level + 1, max_level) if min_level < max_level else ():
        side = math.log2(canonical_size) + level - canonical_level
        if abs(side) > 60:  # so that areas are far within float32's range
            raise ValueError(
                f"level {level} must have boxes of 2^-60 to 2^60 pixels, got 2^{side:.0f}, for boxes of canonical_size "
                f"{canonical_size:g} are on canonical_level {canonical_level}"
            )
    upper_levels = np.arange(min_level + 1, max_level + 1)
    least_areas = (canonical_size * 2.0 ** (upper_levels - canonical_level)) ** 2
    return _assign_levels(_floats(boxes, "boxes", (4,)), min_level, tuple(least_areas.tolist()))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _assign_levels(boxes: Array, min_level: int, least_areas: tuple[float, ...]) -> Array:
    boxes = boxes if boxes.dtype == jnp.float64 else boxes.astype(jnp.float32)  # float16 has no areas beyond 65504
    boxes = jnp.where(jnp.all(jnp.isfinite(boxes), axis=-1, keepdims=True), boxes, 0)
    y1, x1, y2, x2 = jnp.unstack(boxes, axis=-1)
    area = jnp.where((y2 > y1) & (x2 > x1), (y2 - y1) * (x2 - x1), 0)
    least = jnp.asarray(least_areas, area.dtype).reshape(*[1] * area.ndim, -1)
    return min_level + jnp.sum(area[..., None] >= least, axis=-1, dtype=jnp.int32)


def check(boxes: Values, box_indices: Values | None = None, batch: int | None = None) -> Array:
    """The same boxes, having checked under `jax.experimental.checkify` that they are finite and their images exist.

    Crops of boxes that are not finite, and of images that are not there, are fill, so that both may be padding. Where
    neither should be, put this around the boxes and `checkify.checkify` around the function that is jitted. The checks
    are `checkify.check`'s: they raise at once where nothing is traced, and jitted without `checkify` they are refused.
    On an Explicit mesh, check after the crops are cut: JAX cannot carry a check into the `jax.shard_map` in which that
    happens.

    Args:
        boxes: `[..., 4]`, in any format and unit.
        box_indices: integers of any shape, each of which must be in `[0, batch)`.
        batch: the number of images, `image.shape[0]`; needed with `box_indices`.

    Raises:
        ValueError: if one of `box_indices` and `batch` is given without the other.

    Examples:
        >>> from jax.experimental import checkify
        >>> import jax
        >>> import jax_crop
        >>> @jax.jit
        ... @checkify.checkify
        ... def crop(images, boxes, indices):
        ...     boxes = jax_crop.boxes.check(boxes, indices, len(images))
        ...     return jax_crop.crop_and_resize(images, boxes, indices, (2, 2))
        >>> error, crops = crop(jnp.ones((3, 8, 8, 1)), jnp.zeros((2, 4)), jnp.array([0, 3]))
        >>> print(error.get())  # doctest: +ELLIPSIS
        box_indices must be in [0, 3), but they reach from 0 to 3 (`check` failed)
    """
    if (box_indices is None) is not (batch is None):
        raise ValueError(f"box_indices and batch go together, got box_indices={box_indices!r:.80} and batch={batch!r}")
    boxes = _floats(boxes, "boxes", (4,))
    # Sums and extremes need no data from elsewhere where boxes are sharded.
    finite = jnp.isfinite(boxes).all(axis=-1)
    checkify.check(finite.all(), "boxes must be finite, but {} are not", jnp.sum(~finite))
    indices = jnp.asarray(_arguments.integers("box_indices", [] if box_indices is None else box_indices))
    if batch is not None and indices.size:
        lowest, highest = indices.min(), indices.max()
        message = f"box_indices must be in [0, {batch}), but they reach from {{}} to {{}}"
        checkify.check((lowest >= 0) & (highest < batch), message, lowest, highest)
    return boxes


def _floats(values: Values, name: str, last_axis: tuple[int, ...]) -> Array:
    """The values as a floating array, of which the last axis has one of the given lengths."""
    try:
        array = jnp.asarray(_arguments.native(values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {values!r:.80}") from error
    if not (jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)):
        raise TypeError(f"{name} must be of an integer or floating type, got {array.dtype}")
    if array.ndim == 0 or array.shape[-1] not in last_axis:
        raise ValueError(f"{name} must be {' or '.join(f'[..., {n}]' for n in last_axis)}, got shape {array.shape}")
    return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.integer) else array


def _pair(name: str, values: Values, dtype: Any) -> Array:
    """One number, or one for y and one for x."""
    pair = jnp.asarray(values, dtype)
    if pair.shape not in ((), (2,)):
        raise ValueError(f"{name} must be one number or two, (y, x), got shape {pair.shape}")
    return pair


def _per_coordinate(pair: Array, like: Array) -> Array:
    """Such a pair laid out as the `[..., (y, x)]` or `[..., (y, x, y, x)]` of `like`."""
    pair = jnp.broadcast_to(pair.astype(like.dtype), (2,))
    return jnp.broadcast_to(jnp.tile(pair, like.shape[-1] // 2), like.shape)


def _length(image_size: Values, align_corners: bool) -> Array:
    """The pixels from normalized 0 to 1, `[2]`."""
    size = image_size if isinstance(image_size, Array) else np.array(_arguments.size("image_size", image_size))
    return _pair("image_size", size - int(_arguments.flag("align_corners", align_corners)), None)


def _fraction(position: Array, length: Array) -> Array:
    """`position / length`, exactly 1 at the end though XLA may multiply with a rounded reciprocal instead."""
    return jnp.where(2 * position > length, 1 - (length - position) / length, position / length)


def _range(name: str, value: Sequence[float], upper: float) -> tuple[float, float]:
    """The least and the largest of positive numbers up to `upper`."""
    try:
        least, most = (float(n) for n in value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of numbers (least, most), known while tracing, got {value!r}") from None
    if not (0 < least <= most <= upper and most < math.inf):
        raise ValueError(f"{name} must be a pair (least, most), 0 < least <= most <= {upper:g}, got {value!r}")
    return least, most


def _grow(boxes: Array, margin: Array) -> Array:
    """Move the first corner out by the margin `[..., 2]`, and the last one as far the other way."""
    return boxes + jnp.concatenate([-margin, margin], axis=-1)


def _in_crops(points: Values, boxes: Values) -> tuple[Array, Array]:
    """Points and boxes, `[*N, 1, ..., 4]`."""
    points, boxes = _floats(points, "points", (2, 4)), _floats(boxes, "boxes", (4,))
    inner = points.ndim - boxes.ndim
    if inner < 0 or any(n != m and 1 not in (n, m) for n, m in zip(boxes.shape[:-1], points.shape[:-1], strict=False)):
        raise ValueError(
            "points must begin with the axes of boxes, or with 1 to put all points into all crops (points[None]), "
            f"got points of shape {points.shape} and boxes of shape {boxes.shape}"
        )
    return points, boxes.reshape(*boxes.shape[:-1], *[1] * inner, 4)


def _pixels(crop_size: int | Sequence[int], align_corners: bool) -> tuple[Array, Array]:
    """`(offset, length)`: pixel `a` of a crop is the fraction `(a + offset) / length` of the way along its box."""
    # One sample stands in the middle of its box, as if pixel edges were aligned.
    sizes = _arguments.size("crop_size", crop_size)
    align_corners = _arguments.flag("align_corners", align_corners)
    pairs = [(0.0, n - 1) if align_corners and n > 1 else (0.5, n) for n in sizes]
    offset, length = map(jnp.asarray, np.transpose(pairs))
    return offset, length


def _frame(points: Array, boxes: Array, offset: Array, length: Array) -> tuple[Array, Array, Array, Array]:
    """Laid out like the points: their boxes' first and last edges, and what turns a pixel into a fraction."""
    boxes = boxes.astype(points.dtype)
    first, last = (jnp.tile(edges, points.shape[-1] // 2) for edges in jnp.split(boxes, 2, axis=-1))
    return first, last, _per_coordinate(offset, points), _per_coordinate(length, points)
