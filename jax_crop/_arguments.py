"""What callers pass, checked and as arrays; messages name the argument, what came and what is expected."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

# NumPy's arrays are left to `jax.jit` to convert: it does not look for NaN in its arguments when told to debug them.
Values = Array | np.ndarray

# Positions along an axis are counted in int32, and in floats of 24 bits where float32 is the type of the boxes.
_MOST_STEPS = 2**31
_MOST_PLACES = 2**24


def image(name: str, value: ArrayLike, ndims: tuple[int, ...] = (3, 4)) -> Values:
    """An array of real numbers, ``[H, W, C]`` or ``[B, H, W, C]``, of static height and width."""
    value = _array(name, value)
    if not (jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(f"{name} must be of an integer or floating type, got {value.dtype}")
    if value.ndim not in ndims:
        raise ValueError(f"{name} must be [H, W, C] or [B, H, W, C], got shape {value.shape}")
    height_width = value.shape[-3:-1]
    if not all(isinstance(size, int) for size in height_width):
        raise ValueError(f"{name} must have a static height and width (only other dimensions may be symbolic), got shape {value.shape}")
    if 0 in height_width:
        raise ValueError(f"{name} must be at least one pixel high and wide, got shape {value.shape}")
    if isinstance(value, np.ndarray) and value.dtype.itemsize == 8 and not jax.config.jax_enable_x64:
        value = value.astype(np.float32)  # JAX would truncate wide integers; interpolation runs in float32 anyway
    return value


def boxes(value: ArrayLike) -> Values:
    """``[N, 4]`` or ``[B, N, 4]``, float32 (float64 stays)."""
    if isinstance(value, list | tuple):
        value = np.asarray(value, np.float32) if not _holds_arrays(value) else jnp.asarray(value)
    value = _array("boxes", value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"boxes must be of a floating type, got {value.dtype}: if these are pixel coordinates, "
            "jax_crop.boxes.normalize makes them normalized ones"
        )
    if value.ndim not in (2, 3) or value.shape[-1] != 4:
        raise ValueError(f"boxes must be [N, 4] or [B, N, 4], each [y1, x1, y2, x2], got shape {value.shape}")
    return value if value.dtype in (jnp.float32, jnp.float64) else value.astype(jnp.float32)


def box_indices(value: ArrayLike | None, image_shape: tuple, boxes_shape: tuple) -> Values | None:
    """int32 ``[N]`` for boxes that share a batch of images, else None."""
    forms = "image [B, H, W, C], boxes [N, 4] and box_indices [N]; image [H, W, C], boxes [N, 4] and None; or image [B, H, W, C], boxes [B, N, 4] and None"
    got = f"got image {image_shape}, boxes {boxes_shape} and box_indices"
    if value is None:
        if len(boxes_shape) != len(image_shape) - 1 or (len(boxes_shape) == 3 and boxes_shape[0] != image_shape[0]):
            raise ValueError(f"box_indices says which image each box is cut from: expected {forms}; {got} None")
        return None
    value = _array("box_indices", value)
    if value.shape == (0,):  # an empty list has no type of its own
        value = value.astype(np.int32)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"box_indices must be of an integer type, got {value.dtype}")
    if len(image_shape) != 4 or len(boxes_shape) != 2 or value.shape != boxes_shape[:1]:
        raise ValueError(f"box_indices must be one index for each box: expected {forms}; {got} {value.shape}")
    if isinstance(value, np.ndarray):
        value = np.clip(value, -1, 2**31 - 1)  # an index that is out of range stays so in int32
    elif value.dtype.itemsize == 8 or value.dtype == jnp.uint32:
        value = jnp.clip(value, 0 if jnp.issubdtype(value.dtype, jnp.unsignedinteger) else -1, 2**31 - 1)
    return value.astype(jnp.int32)


def size(name: str, value: Any) -> tuple[int, int]:
    """Two positive integers, known while tracing."""
    if isinstance(value, jax.core.Tracer) or (isinstance(value, list | tuple) and any(isinstance(n, jax.core.Tracer) for n in value)):
        raise TypeError(f"{name} must be known while tracing, got the traced value {value}: mark it static (static_argnames) or close over it")
    try:
        height, width = (operator.index(n) for n in value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of integers (height, width), got {value!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return height, width


def choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def fill(value: ArrayLike, channels: int) -> Values:
    """A number, or ``[C]``: one for each channel."""
    value = _array("extrapolation_value", value)
    if not (jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(f"extrapolation_value must be of an integer or floating type, got {value.dtype}")
    if value.shape not in ((), (channels,)):
        raise ValueError(
            f"extrapolation_value must be a scalar or one value for each of {channels} channels, got shape {value.shape}"
        )
    return value


def floating(name: str, value: DTypeLike) -> Any:
    """A floating dtype; float64 where JAX has it enabled."""
    dtype = np.dtype(value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating type, got {dtype}: convert the result, after jnp.round, if you need integers")
    if dtype == np.float64 and not jax.config.jax_enable_x64:
        raise ValueError(f"{name} is float64, which needs jax.config.update('jax_enable_x64', True)")
    return dtype


def _array(name: str, value: Any) -> Values:
    if isinstance(value, jax.Array):
        return value
    try:
        value = jnp.asarray(value) if _holds_arrays(value) else np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {value!r:.80}") from error
    if value.dtype == object:
        raise TypeError(f"{name} must be an array, got {value!r:.80}")
    return value


def _holds_arrays(value: Any) -> bool:
    """Whether nested lists hold JAX arrays, traced ones perhaps, which NumPy cannot take."""
    return isinstance(value, list | tuple) and any(isinstance(v, jax.Array) or _holds_arrays(v) for v in value)
