"""The derivatives of sampling, of every order, as one linear operation with three results.

A crop is linear in the image, and in the weights of rows and of columns:

    crops[i, j] = sum over k and l of  rows[i, k] * columns[j, l] * image[k, l]

So its derivative by the image is the same sum with another image, and its derivative by the boxes the same sum with
other weights (`Term`); and their transposes are the derivatives of ``sum(crops * cotangent)`` by the image, and by the
weights. These three sums transpose and differentiate into each other, so that three programs for each platform serve
all orders. JAX's own transpose of a gather would be right, too, and is slow or large wherever it is not native.

The crops that these are derivatives of are one more result, for the rule of `sample`: linear in nothing, but derived as
the sum of weighted pixels is.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_crop._sampling import gather, programs
from jax_crop._sampling.primitives import Arrays, dense, is_asked, linear_primitive, moves
from jax_crop._sampling.tables import Samples, Scheme, Term

Fractions = tuple[Any, Any]  # of rows and columns


class Sum(NamedTuple):
    """Which of the sums; static.

    Attributes:
        result: ``"crops"``, ``"images"`` or ``"weights"``: by what ``sum(crops * cotangent)`` is derived. Or
            ``"values"``, the crops of `sample`.
        scheme: see `Scheme`.
        orders: those of each term.
        shapes: ``(B, H, W)`` of each map.
    """

    result: str
    scheme: Scheme
    orders: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[Any, ...], ...]


class Operands(NamedTuple):
    """What is summed; the result's own is None.

    Attributes:
        crops: ``[G, N, h, w, C]``.
        images: ``[G, B, H, W, C]`` each.
        terms: for each term, the fractions of rows and of columns, ``[G, N, n]``.
        samples: all else of the samples; with a fill for values alone.
    """

    crops: Any
    images: Any
    terms: tuple[Fractions, ...]
    samples: Samples


def values(scheme: Scheme, images: Sequence[Array], samples: Samples) -> Array:
    """As `gather.values`."""
    return _crops("values", scheme, images, [Term(samples)])


def crops(scheme: Scheme, images: Sequence[Array], terms: Sequence[Term]) -> Array:
    """The sum of terms, ``[G, N, h, w, C]`` in the scheme's dtype, linear in images and fractions."""
    return _crops("crops", scheme, images, terms)


def _crops(result: str, scheme: Scheme, images: Sequence[Array], terms: Sequence[Term]) -> Array:
    samples = terms[0].samples
    rest = samples.with_fractions(None, None)
    fractions = tuple((term.samples.rows.fraction, term.samples.columns.fraction) for term in terms)
    shapes = tuple(image.shape[1:4] for image in images)
    sum_ = Sum(result, scheme, tuple(term.orders for term in terms), shapes)
    return _bind(sum_, Operands(None, tuple(images), fractions, rest))[0]


def _run(program: Any, sum_: Sum, operands: Operands) -> Arrays:
    """The results, by one platform's programs."""
    scheme, samples = sum_.scheme, operands.samples
    terms = [
        Term(samples.with_fractions(row, column), orders)
        for (row, column), orders in zip(operands.terms, sum_.orders, strict=True)
    ]
    if sum_.result == "values":
        return [program.values(scheme, operands.images, terms[0].samples)]
    if sum_.result == "crops":
        return [program.crops(scheme, operands.images, terms).astype(scheme.dtype)]
    if sum_.result == "images":
        return list(program.images(scheme, sum_.shapes, operands.crops, terms))
    return list(program.weights(scheme, operands.crops, operands.images, terms[0]))


def _types(sum_: Sum, at: Operands) -> Sequence[tuple[tuple[Any, ...], Any]]:
    scheme = sum_.scheme
    row, column = at.terms[0]
    groups, boxes, _ = row.shape
    if sum_.result in ("values", "crops"):
        down, across = scheme.samples
        size = row.shape[2] // down, column.shape[2] // across
        return [((groups, boxes, *size, at.images[0].shape[-1]), scheme.dtype)]
    if sum_.result == "images":
        return [((groups, *shape, at.crops.shape[-1]), scheme.compute) for shape in sum_.shapes]
    return [(row.shape, scheme.compute), (column.shape, scheme.compute)]


def _programs(_sum: Sum, _at: Operands, devices: int | None) -> dict[str, Callable[[Sum, Operands], Arrays]]:
    return {platform: functools.partial(_run, program) for platform, program in programs.of(devices).items()}


def _jvp(sum_: Sum, at: Operands, dots: Operands) -> Sequence[Arrays]:
    by_operand: list[Arrays] = []
    if sum_.result == "values":
        if moves(dots.samples.fill):
            by_operand.append([gather.fill_tangent(sum_.scheme.dtype, dense(dots.samples.fill), at.samples)])
        sum_, at = sum_._replace(result="crops"), at._replace(samples=at.samples._replace(fill=None))
    if moves(dots.crops):
        by_operand.append(_bind(sum_, at._replace(crops=dense(dots.crops))))
    if moves(dots.images):
        by_operand.append(_bind(sum_, at._replace(images=dense(dots.images))))
    if moves(dots.terms):
        terms, orders = _derived(sum_, at.terms, dots.terms)
        by_operand.append(_bind(sum_._replace(orders=orders), at._replace(terms=terms)))
    return by_operand


def _derived(sum_: Sum, terms: tuple[Fractions, ...], dots: tuple[Fractions, ...]) -> tuple[Any, Any]:
    """The terms of the derivative, and their orders."""
    if sum_.result == "weights":  # the weights of rows, by those of columns; and the other way round
        return (dense(dots[0]),), ((1, 1),)
    derived = []
    for (row, column), (row_dot, column_dot), (row_order, column_order) in zip(terms, dots, sum_.orders, strict=True):
        if moves(row_dot):
            derived.append(((row_dot, column), (1, column_order)))
        if moves(column_dot):
            derived.append(((row, column_dot), (row_order, 1)))
    new_terms, orders = zip(*derived, strict=True)
    return new_terms, orders


def _cotangents(sum_: Sum, given: Operands, cotangents: Arrays) -> Operands:
    """Those of the operands that are asked for, in their places."""
    at = given
    if sum_.result == "weights":
        (row, column), (row_order, column_order) = given.terms[0], sum_.orders[0]
        if is_asked(given.terms):
            weights = _bind(sum_._replace(orders=((1, 1),)), given._replace(terms=((cotangents[0], cotangents[1]),)))
            return given._replace(terms=((weights[0], weights[1]),))
        row_bar, column_bar = cotangents
        at = at._replace(terms=((row_bar, column), (row, column_bar)))
        sum_ = sum_._replace(orders=((1, column_order), (row_order, 1)))
    elif sum_.result == "crops":
        at = at._replace(crops=cotangents[0])
    else:
        at = at._replace(images=tuple(cotangents))
    if is_asked(given.crops):
        return given._replace(crops=_bind(sum_._replace(result="crops"), at._replace(crops=None))[0])
    if is_asked(given.images):
        return given._replace(images=tuple(_bind(sum_._replace(result="images"), at._replace(images=None))))
    return given._replace(terms=_term_cotangents(sum_, at))


def _term_cotangents(sum_: Sum, at: Operands) -> tuple[Fractions, ...]:
    """Those of the fractions that are asked for: of rows by the columns they are multiplied with, and vice versa."""
    of_rows, of_columns = [], []
    for k, ((row, column), (row_order, column_order)) in enumerate(zip(at.terms, sum_.orders, strict=True)):
        if is_asked(row):
            of_rows.append((k, column, column_order))
        if is_asked(column):
            of_columns.append((k, row, row_order))
    bars: list[list[Any]] = [[None, None] for _ in at.terms]
    for for_row, for_column in itertools.zip_longest(of_rows, of_columns):
        column, column_order = for_row[1:] if for_row else (_zeros(at.samples.columns.index, sum_), 0)
        row, row_order = for_column[1:] if for_column else (_zeros(at.samples.rows.index, sum_), 0)
        sum_of_pair = sum_._replace(result="weights", orders=((row_order, column_order),))
        row_bar, column_bar = _bind(sum_of_pair, at._replace(terms=((row, column),)))
        if for_row:
            bars[for_row[0]][0] = row_bar
        if for_column:
            bars[for_column[0]][1] = column_bar
    return tuple((row_bar, column_bar) for row_bar, column_bar in bars)


def _zeros(like: Array, sum_: Sum) -> Array:
    return jnp.zeros_like(like, sum_.scheme.compute)


_bind = linear_primitive(
    "jax_crop_sum", types=_types, programs=_programs, jvp=_jvp, cotangents=_cotangents, images="images"
)
