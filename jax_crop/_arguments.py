"""What callers pass, checked and as arrays; messages name the argument, what came and what is expected."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

_NORMALIZE = "if these are pixel coordinates, jax_crop.boxes.normalize makes them normalized ones"

# NumPy's arrays are left to `jax.jit` to convert: it does not look for NaN in its arguments when told to debug them.
Values = Array | np.ndarray


def image(name: str, value: ArrayLike) -> Values:
    """An array of real numbers, ``[H, W, C]`` or ``[B, H, W, C]``, of static height and width."""
    value = _array(name, value, ": a batch has one size; pad smaller images, or crop each by itself")
    if not _is_real(value):
        hint = ": convert masks, .astype(jnp.float32), and compare the result with 0.5" if value.dtype == bool else ""
        raise TypeError(f"{name} must be of an integer or floating type, got {value.dtype}{hint}")
    if value.ndim not in (3, 4):
        hint = {
            2: f": a grey image is {name}[..., None]",
            5: f": fold the time of videos [B, T, H, W, C] into the batch, {name}.reshape(-1, *{name}.shape[2:])",
        }.get(value.ndim, "")
        raise ValueError(f"{name} must be [H, W, C] or [B, H, W, C], got shape {value.shape}{hint}")
    height_width = value.shape[-3:-1]
    if not all(isinstance(size, int) for size in height_width):
        raise ValueError(
            f"{name} must have a static height and width (other dimensions may be symbolic), got shape {value.shape}"
        )
    if 0 in height_width:
        raise ValueError(f"{name} must be at least one pixel high and wide, got shape {value.shape}")
    if isinstance(value.shape[-1], int) and value.shape[-2] * value.shape[-1] >= 2**31:
        raise ValueError(f"{name} must hold fewer than 2^31 values in a row, got shape {value.shape}")
    return _without_wide_integers(value)


def boxes(value: ArrayLike, integers: str) -> Values:
    """``[N, 4]`` or ``[B, N, 4]``, float32 (float64 arrays stay); ``integers`` says how to mend an array of these."""
    ragged = ": pad the boxes of each image to one number with NaN, or box_indices with -1"
    array = _array("boxes", value, ragged)
    if array.ndim not in (2, 3) or array.shape[-1] != 4:
        hint = {
            (1, 4): ": one box is boxes[None]",
            (2, 5): ": of [image, x1, y1, x2, y2], the first is box_indices and jax_crop.boxes.convert orders the rest",
        }.get((array.ndim, array.shape[-1] if array.ndim else 0), "")
        raise ValueError(f"boxes must be [N, 4] or [B, N, 4], each [y1, x1, y2, x2], got shape {array.shape}{hint}")
    # A list of whole numbers, [[0, 0, 1, 1]], is as good as one of floats; an array of integers may well count pixels.
    is_list = isinstance(value, list | tuple)
    if not jnp.issubdtype(array.dtype, jnp.floating) and not (is_list and jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"boxes must be of a floating type, got {array.dtype}: {integers}")
    stays = array.dtype == jnp.float32 or (array.dtype == jnp.float64 and not is_list)
    return array if stays else array.astype(jnp.float32)


def normalized(value: ArrayLike) -> Values:
    """As `boxes`, refused if the host can see that they count pixels; what is on a device is not fetched to look at.

    They count pixels for certain if all are natural numbers, none is one unit high or wide as the whole image is, and a
    box with an area reaches beyond 10. Boxes far larger than the image begin before it: boxes with negative edges pass.
    """
    array = boxes(value, _NORMALIZE)
    if not isinstance(array, np.ndarray):
        return array
    finite = array[np.isfinite(array).all(axis=-1)]
    if not np.any(finite > 10) or np.any(finite < 0) or np.any(finite != np.floor(finite)):
        return array
    sides = np.abs(finite[:, 2:] - finite[:, :2])
    large = finite[np.all(sides > 1, axis=1) & np.any(finite > 10, axis=1)]
    if len(large) and not np.any(sides == 1):
        raise ValueError(
            "boxes must be normalized, 0 and 1 being the borders of the image, got whole numbers far beyond, as "
            f"{[int(edge) for edge in large[0]]}: {_NORMALIZE}"
        )
    return array


def box_indices(
    value: ArrayLike | None, image_shape: tuple[Any, ...], boxes_shape: tuple[Any, ...], image: str = "image"
) -> Values | None:
    """int32 ``[N]`` for boxes that share a batch of images, else None."""
    forms = (
        f"{image} [B, H, W, C], boxes [N, 4] and box_indices [N]; {image} [H, W, C], boxes [N, 4] and None; "
        f"or {image} [B, H, W, C], boxes [B, N, 4] and None"
    )
    got = f"got {image} {image_shape}, boxes {boxes_shape} and box_indices"
    if value is None:
        if len(boxes_shape) != len(image_shape) - 1 or (len(boxes_shape) == 3 and boxes_shape[0] != image_shape[0]):
            raise ValueError(f"box_indices says which image each box is cut from: expected {forms}; {got} None")
        return None
    value = integers("box_indices", value)
    if len(image_shape) != 4 or len(boxes_shape) != 2 or value.shape != boxes_shape[:1]:
        raise ValueError(f"box_indices must be one index for each box: expected {forms}; {got} {value.shape}")
    if isinstance(value, np.ndarray):
        # An index that is out of range stays so in int32; one beyond int64 becomes negative.
        value = np.clip(value.astype(np.int64), -1, 2**31 - 1)
    elif value.dtype.itemsize == 8 or value.dtype == jnp.uint32:
        value = jnp.clip(value, 0 if jnp.issubdtype(value.dtype, jnp.unsignedinteger) else -1, 2**31 - 1)
    return value.astype(jnp.int32)


def size(name: str, value: Any) -> tuple[int, int]:
    """Two positive integers, or one for both, known while tracing."""
    _known(name, value)
    expected = "(height, width), or one integer for a square"
    try:
        height, width = (operator.index(n) for n in ((value, value) if np.ndim(value) == 0 else value))
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of integers {expected}, got {value!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be a pair of positive integers {expected}, got {value!r}")
    return height, width


def extent(name: str, samples: Sequence[int], pixels: Sequence[int], most: int) -> None:
    """Refuses more samples and pixels along an axis than positions can be counted for."""
    for n, size in zip(samples, pixels, strict=True):
        if n * (size + 1) >= most:
            raise ValueError(f"{name} times pixels must stay below {most} along each axis, got {n} times {size}")


def positive(name: str, value: Any) -> float:
    """A positive number, or an array of one without axes, known while tracing."""
    _known(name, value)
    array = np.asarray(value)
    if array.ndim or not _is_real(array) or not 0 < array < np.inf:
        pyramid = name == "spatial_scale" and array.ndim
        hint = ": a scale for each level is multilevel_roi_align's, as strides=1 / scale" if pyramid else ""
        raise ValueError(f"{name} must be a positive number, known while tracing, got {value!r}{hint}")
    return float(array)


def sampling_ratio(ratio: Any, most: Any) -> int:
    """How many samples a bin has along each axis, at most."""
    ratio = _natural("sampling_ratio", ratio)
    if most is not None:
        most = _natural("max_sampling_ratio", most)
    if ratio == 0 and not most:
        raise ValueError(
            "sampling_ratio=0 takes as many samples as a bin has pixels, whose largest number must be known while "
            f"tracing: expected a positive max_sampling_ratio, got {most!r}"
        )
    if ratio and most is not None:
        raise ValueError(f"max_sampling_ratio goes with sampling_ratio=0 only, got sampling_ratio={ratio}")
    return ratio or most or 0


def flag(name: str, value: Any) -> bool:
    """True or False, known while tracing."""
    _known(name, value)
    if np.ndim(value):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def integer(name: str, value: Any) -> int:
    """Known while tracing."""
    _known(name, value)
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be of an integer type, got {value!r}") from None


def integers(name: str, value: Any) -> Values:
    """An array of any shape."""
    array = _array(name, value)
    if array.shape == (0,):  # an empty list has no type of its own
        array = array.astype(np.int32)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be of an integer type, got {array.dtype}")
    return array


def _natural(name: str, value: Any) -> int:
    number = integer(name, value)
    if number < 0:
        hint = ": adaptive sampling is 0 here, with a max_sampling_ratio" if number == -1 else ""
        raise ValueError(f"{name} must be an integer from 0 on, got {value!r}{hint}")
    return number


def _known(name: str, value: Any) -> None:
    """Refuses a traced value, or a list or tuple with one."""
    if any(isinstance(n, jax.core.Tracer) for n in (value if isinstance(value, list | tuple) else [value])):
        raise TypeError(
            f"{name} must be known while tracing, got the traced value {value}: mark it static (static_argnames) or "
            "close over it"
        )


def pyramid(name: str, values: Sequence[ArrayLike]) -> tuple[Values, ...]:
    """Feature maps that differ in height and width only."""
    if not isinstance(values, list | tuple) or not values:
        raise TypeError(f"{name} must be a sequence of feature maps, fine to coarse, got {type(values).__name__}")
    maps = tuple(image(f"{name}[{i}]", value) for i, value in enumerate(values))
    kinds = {(*m.shape[:-3], m.shape[-1], m.dtype) for m in maps}
    if len(kinds) > 1:
        shapes = ", ".join(f"{m.dtype}{list(m.shape)}" for m in maps)
        raise ValueError(f"{name} must all have the same type, batch and channels, got {shapes}")
    return maps


def strides(value: Any, levels: int) -> tuple[int, ...]:
    """Input pixels to a feature pixel for each level: powers of two, each twice the one before."""
    _known("strides", value)
    found = np.asarray([4 * 2**level for level in range(levels)] if value is None else value)
    hint = ""
    if _is_real(found) and found.ndim == 1 and found.size and np.all(found > 0):
        finest = found[0]
        if finest >= 1 and np.frexp(finest)[0] == 0.5 and np.array_equal(found, finest * 2.0 ** np.arange(levels)):
            return tuple(int(stride) for stride in found)
        if np.all(found < 1):
            hint = ": these look like scales; a stride is input pixels to a feature pixel, 1 / scale"
        elif len(found) == levels and np.any(found[1:] > 2 * found[:-1]):
            hint = ": no level between others can be left out, or boxes of its size would have no map to be read from"
    raise ValueError(
        f"strides must be {levels} powers of two, each twice the one before, known while tracing, got {value!r}{hint}"
    )


def choice(name: str, value: str, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def fill(value: ArrayLike, channels: int) -> Values:
    """A number, or ``[C]``: one for each channel."""
    value = _array("extrapolation_value", value)
    if not _is_real(value):
        raise TypeError(f"extrapolation_value must be of an integer or floating type, got {value.dtype}")
    if value.shape not in ((), (channels,)):
        raise ValueError(
            f"extrapolation_value must be a scalar or one value for each of {channels} channels, "
            f"got shape {value.shape}"
        )
    return _without_wide_integers(value)


def floating(name: str, value: DTypeLike) -> Any:
    """A floating dtype; float64 where JAX has it enabled."""
    if value is None:  # to NumPy, float64
        raise TypeError(f"{name} must be a floating type, got None: leave it out for float32")
    if value is float:  # of JAX's width, as anywhere in JAX
        value = jnp.result_type(float)
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be a floating type, say jnp.float32 or 'bfloat16', got {value!r}") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a floating type, got {dtype}: convert the result, after jnp.round, if you need integers"
        )
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(f"{name} is float64, which needs jax.config.update('jax_enable_x64', True)")
    return dtype


def _array(name: str, value: Any, ragged: str = "") -> Values:
    """The value as an array; ``ragged`` says how to mend lists of lists of different lengths."""
    if isinstance(value, jax.Array):
        return value
    try:
        array = jnp.asarray(value) if _holds_arrays(value) else np.asarray(value)
    except (TypeError, ValueError) as error:
        shapes = [_shape(part) for part in value] if isinstance(value, list | tuple) else ""
        raise TypeError(
            f"{name} must be an array, got a {type(value).__name__} of unequal parts {shapes}{ragged}"
        ) from error
    if array.dtype == object:
        raise TypeError(f"{name} must be an array of numbers, of up to 64 bits, got {value!r:.80}")
    return native(array)


def native(array: Any) -> Any:
    """NumPy's arrays in a type that JAX has: with the bytes in this machine's order, which it does not look at."""
    if isinstance(array, np.ndarray) and (array.dtype == np.longdouble or not array.dtype.isnative):
        return array.astype(np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("="), copy=False)
    return array


def _without_wide_integers(value: Values) -> Values:
    """JAX would truncate those of NumPy; interpolation runs in float32 anyway, if float64 is not enabled."""
    if isinstance(value, np.ndarray) and value.dtype.itemsize == 8 and not jax.config.read("jax_enable_x64"):
        return value.astype(np.float32)
    return value


def _shape(value: Any) -> Any:
    """The shape, or only the length of what is ragged itself or holds traced values."""
    try:
        return np.shape(value)
    except (TypeError, ValueError):
        return len(value)


def _holds_arrays(value: Any) -> bool:
    """Whether nested lists hold JAX arrays, traced ones perhaps, which NumPy cannot take."""
    return isinstance(value, list | tuple) and any(isinstance(v, jax.Array) or _holds_arrays(v) for v in value)


def _is_real(array: Values) -> bool:
    return jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
