"""Error-free floating-point arithmetic: sums of products that decide as exact arithmetic does.

A compiler may contract ``a * b + c`` into one fused operation, flush denormal numbers to zero and turn a division
into a product; none of these can reach the results here. Every product is of few enough bits to be exact, contracted
or not; every sum keeps its rounding error (Knuth); numbers are taken apart by their bits, so that no denormal meets
an arithmetic unit.

Sources: T. J. Dekker, "A floating-point technique for extending the available precision", 1971 (halves, pairs);
D. E. Knuth, "The Art of Computer Programming", vol. 2, section 4.2.2 (two_sum); J. R. Shewchuk, "Adaptive precision
floating-point arithmetic and fast robust geometric predicates", 1997 (growing an expansion); S. Boldo and G. Melquiond,
"Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

Integers = int | np.ndarray | Array


class Pair(NamedTuple):
    """The number ``high + low``, where ``high`` is that sum rounded to the nearest float.

    ``low`` is rounded to odd: a pair that cannot hold a number exactly has an odd last bit, and so compares with every
    number of few bits as the exact number does.
    """

    high: Array
    low: Array

    def at_least(self, bound: Array) -> Array:
        """Whether the number is ``>= bound``."""
        return (self.high > bound) | ((self.high == bound) & (self.low >= 0))

    def at_most(self, bound: Array) -> Array:
        """Whether the number is ``<= bound``."""
        return (self.high < bound) | ((self.high == bound) & (self.low <= 0))

    def times(self, factor: Integers) -> "Pair":
        """The product with natural numbers below 2^24 (2^52 with float64)."""
        info = jnp.finfo(self.high.dtype)
        pieces = _pieces(factor, info)
        return Pair(
            *_distill([half * piece for part in (self.low, self.high) for half in _halves(part) for piece in pieces])
        )

    def floor(self) -> tuple[Array, "Pair"]:
        """The integer below, as int32, and the rest, in ``[0, 1)``; the number must be in int32's range."""
        high, low = self
        whole = jnp.zeros_like(high, jnp.int32)
        for _ in range(2):  # twice, for beyond the mantissa `high` is an integer and `low` has integer bits of its own
            step = jnp.floor(high)
            step = jnp.where((high == step) & (low < 0), step - 1, step)
            whole += step.astype(jnp.int32)
            high, error = two_sum(high, -step)
            high, low = two_sum(high, error + low)
        return whole, Pair(high, low)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` rounded, and the error of that rounding (Knuth)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def dot(*products: tuple[Array, Integers], dtype: DTypeLike) -> Pair:
    """The sum of ``value * weight`` over finite floats and natural numbers, as if computed exactly.

    Args:
        *products: values, and their weights: natural numbers below 2^24 (2^30 with float64).
        dtype: of the sum, float32 or float64; at least as wide as the values'.

    Returns:
        The sum. Where it is too small or too large for a normal number, one of the same sign stands for it.
    """
    info = jnp.finfo(dtype)
    parts = [(*_decode(value, dtype), weight) for value, weight in products]

    # All values are brought to the exponent of the largest that counts. One that is smaller by more than `reach` can
    # only break a tie between much larger integers, for which it is as good as it would be at `reach`.
    reach = 2 * info.nmant + 14
    smallest = info.minexp - info.nmant
    top = functools.reduce(jnp.maximum, [jnp.where(weight == 0, smallest, e) for _, _, e, weight in parts])
    terms = []
    for high, low, exponent, weight in parts:
        unit = _power_of_two(jnp.clip(exponent - top, -reach, 0), info)
        for piece in _pieces(weight, info):
            terms += [low * piece * unit, high * piece * unit]
    total, rest = _distill(terms)
    high = _scale(total, top, info)
    high = jnp.where((high == 0) & (total != 0), jnp.sign(total) * float(info.tiny), high)
    return Pair(high, _scale(rest, top, info))


def _decode(value: Array, dtype: DTypeLike) -> tuple[Array, Array, Array]:
    """``(high, low, e)``, value = (high + low) * 2^e: high and low are integers of half the mantissa's bits each."""
    info = jnp.finfo(value.dtype)
    bits = lax.bitcast_convert_type(value, _integer(info))
    exponent = (bits >> info.nmant) & (2 * info.maxexp - 1)
    stored = bits & ((1 << info.nmant) - 1)
    magnitude = jnp.where(exponent > 0, stored | (1 << info.nmant), stored)
    mantissa = jnp.where(bits < 0, -magnitude, magnitude)
    low = mantissa & ((1 << _half(info)) - 1)
    e = jnp.maximum(exponent, 1).astype(jnp.int32) + (info.minexp - 1 - info.nmant)
    return (mantissa - low).astype(dtype), low.astype(dtype), e


def _halves(value: Array) -> tuple[Array, Array]:
    """Floats of half the mantissa's bits each that add up to the value (Dekker)."""
    info = jnp.finfo(value.dtype)
    bits = lax.bitcast_convert_type(value, _integer(info))
    high = lax.bitcast_convert_type(bits >> _half(info) << _half(info), value.dtype)
    return value - high, high


def _pieces(weight: Integers, info: jnp.finfo) -> list[Array]:
    """Floats that add up to the weight, each of few enough bits that its product with half a mantissa is exact."""
    if not isinstance(weight, Array) and np.max(weight) < 1 << _half(info):
        return [jnp.asarray(weight, info.dtype)]
    low = weight & ((1 << _half(info)) - 1)
    return [jnp.asarray(low, info.dtype), jnp.asarray(weight - low, info.dtype)]


def _distill(terms: list[Array]) -> tuple[Array, Array]:
    """The sum of the terms: rounded, and what is left, rounded to odd."""
    expansion: list[Array] = []
    for term in terms:
        for i, part in enumerate(expansion):
            term, expansion[i] = two_sum(term, part)
        expansion.append(term)
    total, rest = _sum(expansion)
    error, rest = _sum(rest)
    high, low = two_sum(total, error)
    return high, _round_to_odd(low, functools.reduce(jnp.add, rest))


def _sum(expansion: list[Array]) -> tuple[Array, list[Array]]:
    """The sum of floats in ascending order of size, and the rounding error of each step."""
    total, *others = expansion
    errors = []
    for part in others:
        total, error = two_sum(total, part)
        errors.append(error)
    return total, errors


def _round_to_odd(value: Array, tail: Array) -> Array:
    """``value + tail``, where the tail is below value's last bit: as value itself if odd, else its odd neighbour."""
    info = jnp.finfo(value.dtype)
    bits = lax.bitcast_convert_type(value, _integer(info))
    is_even = (bits & 1) == 0
    odd = jnp.where((value < 0) == (tail < 0), bits + 1, bits - 1)
    odd_value = jnp.where(value == 0, tail, lax.bitcast_convert_type(odd, value.dtype))
    return jnp.where((tail != 0) & is_even, odd_value, value)


def _scale(value: Array, exponent: Array, info: jnp.finfo) -> Array:
    """``value * 2^exponent``, kept from overflow to infinity."""
    half = exponent >> 1  # 2^exponent need not be a number itself
    limit = 2.0 ** (info.maxexp // 2)
    return jnp.clip(value * _power_of_two(half, info), -limit, limit) * _power_of_two(exponent - half, info)


def _power_of_two(exponent: Array, info: jnp.finfo) -> Array:
    """2^exponent, for an exponent of normal numbers."""
    bits = (exponent - (info.minexp - 1)).astype(_integer(info)) << info.nmant
    return lax.bitcast_convert_type(bits, info.dtype)


def _integer(info: jnp.finfo) -> type:
    return jnp.int32 if info.bits == 32 else jnp.int64


def _half(info: jnp.finfo) -> int:
    return (info.nmant + 1) // 2
