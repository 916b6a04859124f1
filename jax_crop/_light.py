"""Arithmetic that is light to trace.

Each of jnp's operators is a function of its own, which JAX traces anew for every shape: half a millisecond, hundreds of
times before a program is first compiled. Those of `lax` take a twentieth of that. Here they are with operators for
names, and with NumPy's broadcasting, but for two things: both sides have as many axes, and there is one type, to which
numbers and NumPy's arrays are converted.
"""

from collections.abc import Callable
from typing import Any, Union

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

Operand = Union["Light", ArrayLike]


def _operator(function: Callable[..., Array]) -> Callable[..., "Light"]:
    return lambda *operands: Light(function(*_alike(operands)))


def _reflected(function: Callable[..., Array]) -> Callable[..., "Light"]:
    return lambda right, left: Light(function(*_alike((left, right))))


class Light:
    """An array whose operators are functions of `lax`."""

    __array_ufunc__ = None  # NumPy's arrays leave operators to those beside them

    def __init__(self, array: Array) -> None:
        self.array = array
        self.dtype, self.shape = array.dtype, array.shape

    def __getitem__(self, index: Any) -> "Light":
        return Light(self.array[index])

    def astype(self, dtype: DTypeLike) -> "Light":
        return Light(lax.convert_element_type(self.array, dtype))

    __add__, __radd__ = _operator(lax.add), _reflected(lax.add)
    __sub__, __rsub__ = _operator(lax.sub), _reflected(lax.sub)
    __mul__, __rmul__ = _operator(lax.mul), _reflected(lax.mul)
    __truediv__, __rtruediv__ = _operator(lax.div), _reflected(lax.div)
    __neg__ = _operator(lax.neg)
    __and__, __or__ = _operator(lax.bitwise_and), _operator(lax.bitwise_or)
    __lshift__, __rshift__ = _operator(lax.shift_left), _operator(lax.shift_right_arithmetic)
    __lt__, __le__, __gt__, __ge__ = _operator(lax.lt), _operator(lax.le), _operator(lax.gt), _operator(lax.ge)
    __eq__, __ne__ = _operator(lax.eq), _operator(lax.ne)  # type: ignore[assignment]


absolute, is_finite = _operator(lax.abs), _operator(lax.is_finite)
maximum, minimum = _operator(lax.max), _operator(lax.min)
floor = _operator(lax.floor)
clip = _operator(lambda values, least, most: lax.clamp(least, values, most))
unsigned_shift = _operator(lax.shift_right_logical)


def where(condition: Operand, values: Operand, others: Operand) -> Light:
    arrays = [condition.array if isinstance(condition, Light) else condition, *_alike((values, others))]
    if not jax.sharding.get_abstract_mesh().empty:  # of which only jnp's broadcasting knows
        return Light(lax.select(*jnp.broadcast_arrays(*arrays)))
    shape = lax.broadcast_shapes(*map(np.shape, arrays))

    def broadcast(x: Any) -> Any:
        return x if np.shape(x) == shape else lax.broadcast_in_dim(x, shape, range(len(shape) - np.ndim(x), len(shape)))

    return Light(lax.select(*map(broadcast, arrays)))


def bitcast(values: Light, dtype: DTypeLike) -> Light:
    """The same bits as another type of as many."""
    return Light(lax.bitcast_convert_type(values.array, dtype))


def _alike(operands: tuple[Operand, ...]) -> list[Any]:
    """As arrays of one type, the first's that has one."""
    arrays = [x.array if isinstance(x, Light) else x for x in operands]
    dtype = next(x.dtype for x in arrays if isinstance(x, Array))

    def array(x: Any) -> Any:
        if isinstance(x, Array):
            return x
        # What `jax.export` leaves open is no number of NumPy's.
        return np.asarray(x, dtype) if isinstance(x, np.ndarray | float | int) else jnp.asarray(x, dtype)

    return [array(x) for x in arrays]
