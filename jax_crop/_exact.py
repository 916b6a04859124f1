"""Exact sums of products of floats, in integers.

A float is an integer times a power of two. Here numbers are written as digits of a few dozen bits, in integers that
hold the product of a digit and a weight; so a sum of products is such a sum for each digit, and its carries. No step
rounds: a compiler may fuse products and sums, or flush small floats to zero, and nothing changes.

The exponents of floats span hundreds of bits, of which the digits show a window. It is enough, for only numbers between
0 and a bound have to be right:

- What is smaller than the window is moved up into it, by a power of two that stays below 1, and back at the end.
- What is larger is moved down: of sums as large as that, only 0 is within the bound, and only it remains so.
- Of two floats, the smaller may be too small to be seen beside the larger. Then it can only break ties, for which its
  last visible bit is as good as those beyond (rounding to odd: S. Boldo and G. Melquiond, "Emulation of a FMA and
  correctly rounded sums: proved algorithms using rounding to odd", 2008).
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jax_crop._calls import in_memory
from jax_crop._light import Light, absolute, bitcast, clip, floor, maximum, minimum, unsigned_shift, where

Integers = int | np.ndarray | Array


class Window(NamedTuple):
    """Which digits sums are written in. Exponents are those of a float's last bit.

    Attributes:
        bits: of a digit.
        below: digits after the point.
        above: digits before it; the foremost has the sign, and fills its integer.
        lowest: what the exponent of the larger float of a sum is raised to, at least,
        highest: and lowered to, at most.
        reach: how far the exponent of the smaller one may be below.
        dtype: of the digits.
    """

    bits: int
    below: int
    above: int
    lowest: int
    highest: int
    reach: int
    dtype: Any

    @classmethod
    def of(cls, steps: int, scale: int, bound: int, dtype: DTypeLike) -> "Window":
        """The window for sums ``(a * p + b * q) * scale`` of floats and natural numbers.

        Args:
            steps: the most that ``p + q`` is, below 2^24.
            scale: the most that the scale is; ``steps * scale`` is below 2^31.
            bound: the most that ``a * p + b * q`` may be, by size, where it has to be right.
            dtype: float32 or float64, at least as wide as the floats.
        """
        mantissa = jnp.finfo(dtype).nmant + 1
        integer = jnp.dtype(jnp.int64 if dtype == jnp.float64 else jnp.int32)
        word = 8 * integer.itemsize
        steps_bits, scale_bits, bound_bits = (int(n).bit_length() for n in (steps, scale, bound))
        # A digit times a weight or the scale leaves room, in a word without sign, for another such product and a carry.
        bits = max(word - 2 - max(steps_bits, scale_bits), 1)
        # From there down, every sum is below 1.
        lowest = -(mantissa + steps_bits + scale_bits)
        # Beyond that, what the smaller float adds to a sum is less than the last bit of what the larger one does.
        reach = mantissa + steps_bits + scale_bits + 1
        # Floats that cancel have exponents at most steps_bits + 2 apart: from there up, what is left of them is
        # a multiple of a power of two that is beyond the bound.
        highest = steps_bits + bound_bits + 3
        most = mantissa + highest + steps_bits + scale_bits + 1  # bits of a sum, with its sign
        below, more = -(-(reach - lowest) // bits), -(-max(most - word, 0) // bits)
        return cls(bits, below, 1 + more, lowest, highest, reach, integer)


class Number(NamedTuple):
    """``whole + rest``, where ``0 <= rest < 1``; ``is_whole`` says whether the rest is 0.

    A whole number beyond the range of its type is near the last one in that direction. Where a float is not finite, it
    is far beyond the bound (see `Window.of`). Of the rest, only what a float rounds is lost.
    """

    whole: Light
    rest: Light
    is_whole: Light


def weighted_sums(values: Array, weights: np.ndarray | Array, scale: np.ndarray, window: Window) -> Number:
    """``(a * p + b * q) * scale`` of floats a and b and natural numbers p and q.

    Args:
        values: ``[K, N, 2]``, a and b.
        weights: ``[K, 1 or N, 2, n]``, p and q. With a weight of 0, which has to be known while tracing, any finite
            float takes no part.
        scale: ``[K, 1, 1]``.
        window: see `Window`.

    Returns:
        ``[K, N, n]``.
    """
    if isinstance(weights, np.ndarray) and not np.all(weights):
        # A float whose partner has no weight has columns of its own, for there it is the larger one.
        alone = np.any(weights == 0, axis=2, keepdims=True)
        weights = np.concatenate([np.where(alone, 0, weights), np.where(alone, weights, 0)], axis=2)
    # Not computed anew for each sample of a box.
    table = in_memory(_table(Light(values), weights.shape[2], scale, window).array)
    # The last row is of powers, of which each sum has one.
    xp: Any = np if isinstance(weights, np.ndarray) else jnp
    counts = (weights != 0) & (np.arange(weights.shape[2]) != 1)[None, None, :, None]
    is_power = (np.arange(table.shape[2]) == table.shape[2] - 1)[None, None, :, None, None]
    factors = xp.where(is_power, counts.astype(weights.dtype)[:, :, None], weights[:, :, None])
    products = Light(table[..., None]) * xp.asarray(factors, window.dtype)
    sums = lax.reduce_sum(products.array, (3,))
    *digits, power = (Light(lax.index_in_dim(sums, i, 2, keepdims=False)) for i in range(sums.shape[2]))
    return _number(digits, power, window)


def _table(values: Light, columns: int, scale: np.ndarray, window: Window) -> Light:
    """Of ``values * scale`` the digits from the last on, ``[K, N, d, k]``: ``k`` are a, b, and each of them alone.

    One more row has the bits of a float, the power of two by which what was raised into the window is moved back.
    """
    count = window.below + window.above
    column = np.arange(columns)[None, None, None]
    is_first = column % 2 == 0
    shape = (*values.shape[:2], count + 1, columns)
    a, b = (Light(lax.broadcast_in_dim(values[..., i].array, shape, (0, 1))) for i in (0, 1))
    mantissa, exponent = _decode(where(is_first, a, b), window.dtype)
    _, of_other = _decode(where(is_first, b, a), window.dtype)
    larger = maximum(exponent, of_other)
    top = where(column < 2, larger, exponent)
    info = jnp.finfo(values.dtype)
    zero = info.minexp - 1 - info.nmant  # from which exponents are counted
    raised = clip(top, window.lowest - zero, window.highest - zero) - top

    last = 8 * window.dtype.itemsize - 1
    beyond = clip(top - window.reach - exponent, 0, last).astype(window.dtype)
    visible = mantissa >> beyond
    mantissa = visible | ((visible << beyond) != mantissa).astype(window.dtype)  # rounded to odd
    exponent = maximum(exponent, top - window.reach) + raised

    def shifted(place: Light) -> Light:
        """What of an integer with sign is from a bit on."""
        shift = minimum(absolute(place), last).astype(window.dtype)
        return where(place > 0, mantissa >> shift, mantissa << shift)

    row = np.arange(count + 1, dtype=np.int32)[None, None, :, None]
    digit = (1 << window.bits) - 1
    mask = np.where(row < count - 1, digit, -1).astype(window.dtype)  # the foremost keeps all that is before it, too
    place = (row - window.below) * window.bits - zero - exponent
    digits = shifted(place) & mask
    if np.any(scale != 1):
        scale = scale[..., None].astype(window.dtype)
        digits = (digits * scale & mask) + unsigned_shift((shifted(place - window.bits) & digit) * scale, window.bits)
    wide = _float_of(window)
    power = ((wide.maxexp - 1) - maximum(raised, 0)).astype(window.dtype) << wide.nmant
    digits = where(row == count, power, digits)  # what was lowered is 0 or far outside
    is_finite = larger < 2 * info.maxexp - 1
    return where(is_finite, digits, digit)


def _float_of(window: Window) -> Any:
    """What is known of the floats with as many bits as a digit's integer."""
    return jnp.finfo(jnp.float32 if window.dtype == jnp.int32 else jnp.float64)


def _decode(values: Light, dtype: Any) -> tuple[Light, Light]:
    """Integers, of which values are ``mantissa * 2^(exponent + zero)``, as in `_table`."""
    info = jnp.finfo(values.dtype)
    bits = bitcast(values, jnp.int32 if info.bits == 32 else jnp.int64)
    exponent = (bits >> info.nmant) & (2 * info.maxexp - 1)
    stored = bits & ((1 << info.nmant) - 1)
    magnitude = where(exponent > 0, stored | (1 << info.nmant), stored)
    mantissa = where(bits < 0, -magnitude, magnitude).astype(dtype)
    return mantissa, maximum(exponent, 1).astype(jnp.int32)


def _number(sums: list[Light], power: Light, window: Window) -> Number:
    """The number of which these are the digits, from the last on, but for what they have to carry."""
    mask = (1 << window.bits) - 1
    digits, whole = [], sums[0]
    for following in sums[1:]:
        digits.append(whole & mask)
        whole = following + unsigned_shift(whole, window.bits)
    most = 1 << (8 * window.dtype.itemsize - 1 - window.bits)
    for digit in digits[: window.below - 1 : -1]:
        whole = clip(whole, -most, most - 1) * (1 << window.bits) + digit

    # Digits have less than 127 bits: where one is not 0, neither is the rest, in float32 either.
    info = _float_of(window)
    place = 2.0**-window.bits
    first, *others = (digit.astype(info.dtype) for digit in digits[: window.below])
    rest = functools.reduce(lambda rest, digit: rest * place + digit, others, first) * place
    return Number(whole, rest * bitcast(power, info.dtype), rest == 0)


def divide(dividend: Light, divisor: Integers, most: int) -> tuple[Light, Light]:
    """Quotient, rounded down, and remainder of integers up to ``most``, below 2^31, in operations that vectorise."""
    inverse = 1 / Light(jnp.asarray(divisor, jnp.float32))

    def nearly(dividend: Light, more: float = 0) -> Light:
        """The quotient, right to 2^-22 of itself, and to 1."""
        return floor((dividend.astype(jnp.float32) + more) * inverse).astype(jnp.int32)

    if most < 2**20:  # half a unit further on, no dividend is so near to a multiple of the divisor that it is not right
        quotient = nearly(dividend, 0.5)
        return quotient, dividend - quotient * divisor
    quotient = nearly(dividend)
    remainder = dividend - quotient * divisor
    step = nearly(remainder)
    quotient, remainder = quotient + step, remainder - step * divisor
    step = (remainder >= divisor).astype(jnp.int32) - (remainder < 0).astype(jnp.int32)
    return quotient + step, remainder - step * divisor
