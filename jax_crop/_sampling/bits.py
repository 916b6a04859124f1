"""bfloat16 as integers of the same bits.

XLA on CPUs converts all of a bfloat16 array before it reads a part of it, and all that is written to; and it rounds
what it has read to bfloat16 again. Of integers it does none of that. Seen with jaxlib 0.7.2 to 0.12.0.1.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jax_crop._light import Light, bitcast


def stored(array: Array, dtype: Any = jnp.uint16) -> Array:
    """bfloat16 as integers of 16 bits, or what else there is as it is."""
    return lax.bitcast_convert_type(array, dtype) if array.dtype == jnp.bfloat16 else array


def restored(array: Array, dtype: Any) -> Array:
    """Of what was `stored`, the array of the dtype that it had."""
    return array if array.dtype == dtype else lax.bitcast_convert_type(array, dtype)


def converted(array: Array, stored_from: Any, dtype: Any) -> Array:
    """A part of what was `stored` from one dtype, in another: bfloat16 is the first half of a float32."""
    if stored_from == jnp.bfloat16:
        wide = jnp.uint32 if array.dtype == jnp.uint16 else jnp.int32
        array = bitcast(Light(array).astype(wide) << 16, jnp.float32).array
    return array.astype(dtype)
