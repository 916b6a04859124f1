"""The derivatives of sampling, of every order, as one linear operation with three results.

A crop is linear in the image, and in the weights of rows and of columns:

    crops[i, j] = sum over k and l of  rows[i, k] * columns[j, l] * image[k, l]

So its derivative by the image is the same sum with another image, and its derivative by the boxes the same sum with
other weights (`Term`); and their transposes are the derivatives of ``sum(crops * cotangent)`` by the image, and by the
weights. These three sums transpose and differentiate into each other, so that three programs for each platform serve
all orders. JAX's own transpose of a gather would be right, too, and is slow or large wherever it is not native.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_crop._sampling import gather, programs
from jax_crop._sampling.tables import Samples, Scheme, Term, batched
from jax_crop._sampling.varying import vary_as, zeros

Arrays = Sequence[Any]
Fractions = tuple[Any, Any]  # of rows and columns


class Sum(NamedTuple):
    """Which of the sums; static.

    Attributes:
        result: ``"crops"``, ``"images"`` or ``"weights"``: by what ``sum(crops * cotangent)`` is derived.
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
        samples: all else of the samples.
    """

    crops: Any
    images: Any
    terms: tuple[Fractions, ...]
    samples: Samples


def crops(scheme: Scheme, images: Sequence[Array], terms: Sequence[Term]) -> Array:
    """The sum of terms, ``[G, N, h, w, C]`` in the scheme's dtype, linear in images and fractions."""
    samples = terms[0].samples
    rest = samples.with_fractions(None, None)
    fractions = tuple((term.samples.rows.fraction, term.samples.columns.fraction) for term in terms)
    shapes = tuple(image.shape[1:4] for image in images)
    sum_ = Sum("crops", scheme, tuple(term.orders for term in terms), shapes)
    return _bind(sum_, Operands(None, tuple(images), fractions, rest))[0]


def _bind(sum_: Sum, operands: Operands) -> Arrays:
    leaves, tree = jax.tree.flatten(operands)
    # Within `jax.shard_map`, cotangents of what does not differ between devices are summed over them here.
    return _sum_p.bind(*vary_as(leaves, leaves), sum_=sum_, tree=tree)


def _run(program: Any, sum_: Sum, operands: Operands) -> Arrays:
    """The results, by one platform's programs."""
    scheme, samples = sum_.scheme, operands.samples
    terms = [
        Term(samples.with_fractions(row, column), orders)
        for (row, column), orders in zip(operands.terms, sum_.orders, strict=True)
    ]
    if sum_.result == "crops":
        return [program.crops(scheme, operands.images, terms).astype(scheme.dtype)]
    if sum_.result == "images":
        return list(program.images(scheme, sum_.shapes, operands.crops, terms))
    return list(program.weights(scheme, operands.crops, operands.images, terms[0]))


_sum_p = Primitive("jax_crop_sum")
_sum_p.multiple_results = True


def _apply(*leaves: Any, sum_: Sum, tree: Any) -> Arrays:
    return _run(gather, sum_, jax.tree.unflatten(tree, leaves))


def _types(*leaves: Any, sum_: Sum, tree: Any) -> Arrays:
    scheme, at = sum_.scheme, jax.tree.unflatten(tree, leaves)
    row, column = at.terms[0]
    groups, boxes, _ = row.shape
    types: list[tuple[tuple[Any, ...], Any]]
    if sum_.result == "crops":
        down, across = scheme.samples
        size = row.shape[2] // down, column.shape[2] // across
        types = [((groups, boxes, *size, at.images[0].shape[-1]), scheme.dtype)]
    elif sum_.result == "images":
        types = [((groups, *shape, at.crops.shape[-1]), scheme.compute) for shape in sum_.shapes]
    else:
        types = [(row.shape, scheme.compute), (column.shape, scheme.compute)]
    # Traced, for what `jax.shard_map` adds to a type.
    return jax.make_jaxpr(lambda *leaves: [zeros(*type_, leaves) for type_ in types])(*leaves).out_avals


def _lower(context: Any, *leaves: Any, sum_: Sum, tree: Any) -> Any:
    module = context.module_context
    by_platform = programs.of(partitioned=not on_one_device(module.axis_context))
    # Only what is asked for is traced: one program, if not for `jax.export`.
    asked = {platform if platform in by_platform else "default" for platform in module.platforms}

    def apply(*leaves: Any) -> Arrays:
        def by(program: Any) -> Any:
            return lambda *leaves: _run(program, sum_, jax.tree.unflatten(tree, leaves))

        return lax.platform_dependent(*leaves, **{platform: by(by_platform[platform]) for platform in sorted(asked)})

    return mlir.lower_fun(apply, multiple_results=True)(context, *leaves)


def on_one_device(axis_context: Any) -> bool:
    """Whether each device runs a program of its own. What is partitioned by XLA must leave it the choice of order."""
    if hasattr(axis_context, "manual_axes"):  # within `jax.shard_map`
        return axis_context.manual_axes == frozenset(axis_context.mesh.axis_names)
    return getattr(axis_context, "num_devices", None) == 1


def _jvp(primals: Arrays, tangents: Arrays, *, sum_: Sum, tree: Any) -> tuple[Arrays, Arrays]:
    at, dots = jax.tree.unflatten(tree, primals), jax.tree.unflatten(tree, tangents)
    by_operand = []
    if _moves(dots.crops):
        by_operand.append(_bind(sum_, at._replace(crops=_dense(dots.crops))))
    if _moves(dots.images):
        by_operand.append(_bind(sum_, at._replace(images=_dense(dots.images))))
    if _moves(dots.terms):
        terms, orders = _derived(sum_, at.terms, dots.terms)
        by_operand.append(_bind(sum_._replace(orders=orders), at._replace(terms=terms)))
    results = _bind(sum_, at)
    if not by_operand:
        return results, [jnp.zeros_like(result) for result in results]
    return results, [functools.reduce(jnp.add, parts) for parts in zip(*by_operand, strict=True)]


def _derived(sum_: Sum, terms: tuple[Fractions, ...], dots: tuple[Fractions, ...]) -> tuple[Any, Any]:
    """The terms of the derivative, and their orders."""
    if sum_.result == "weights":  # the weights of rows, by those of columns; and the other way round
        return (_dense(dots[0]),), ((1, 1),)
    derived = []
    for (row, column), (row_dot, column_dot), (row_order, column_order) in zip(terms, dots, sum_.orders, strict=True):
        if _moves(row_dot):
            derived.append(((row_dot, column), (1, column_order)))
        if _moves(column_dot):
            derived.append(((row, column_dot), (row_order, 1)))
    new_terms, orders = zip(*derived, strict=True)
    return new_terms, orders


def _moves(dots: Any) -> bool:
    return not all(isinstance(dot, ad.Zero) for dot in jax.tree.leaves(dots))


def _dense(dots: Any) -> Any:
    return jax.tree.map(ad.instantiate_zeros, dots)


def _transpose(cotangents: Arrays, *leaves: Any, sum_: Sum, tree: Any) -> Arrays:
    given = jax.tree.unflatten(tree, leaves)
    found = _cotangents(sum_, given, _dense(tuple(cotangents)))
    return [
        bar.astype(leaf.aval.dtype) if ad.is_undefined_primal(leaf) else None
        for leaf, bar in zip(leaves, tree.flatten_up_to(found), strict=True)
    ]


def _cotangents(sum_: Sum, given: Operands, cotangents: tuple[Array, ...]) -> Operands:
    """Those of the operands that are asked for, in their places."""
    at = given
    if sum_.result == "weights":
        (row, column), (row_order, column_order) = given.terms[0], sum_.orders[0]
        if _is_asked(given.terms):
            weights = _bind(sum_._replace(orders=((1, 1),)), given._replace(terms=((cotangents[0], cotangents[1]),)))
            return given._replace(terms=((weights[0], weights[1]),))
        row_bar, column_bar = cotangents
        at = at._replace(terms=((row_bar, column), (row, column_bar)))
        sum_ = sum_._replace(orders=((1, column_order), (row_order, 1)))
    elif sum_.result == "crops":
        at = at._replace(crops=cotangents[0])
    else:
        at = at._replace(images=cotangents)
    if _is_asked(given.crops):
        return given._replace(crops=_bind(sum_._replace(result="crops"), at._replace(crops=None))[0])
    if _is_asked(given.images):
        return given._replace(images=tuple(_bind(sum_._replace(result="images"), at._replace(images=None))))
    return given._replace(terms=_term_cotangents(sum_, at))


def _term_cotangents(sum_: Sum, at: Operands) -> tuple[Fractions, ...]:
    """Those of the fractions that are asked for: of rows by the columns they are multiplied with, and vice versa."""
    of_rows, of_columns = [], []
    for k, ((row, column), (row_order, column_order)) in enumerate(zip(at.terms, sum_.orders, strict=True)):
        if _is_asked(row):
            of_rows.append((k, column, column_order))
        if _is_asked(column):
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


def _is_asked(operands: Any) -> bool:
    """Whether a cotangent of any of them is."""
    return any(map(ad.is_undefined_primal, jax.tree.leaves(operands, is_leaf=ad.is_undefined_primal)))


def _vmap(leaves: Sequence[Any], axes: Sequence[Any], *, sum_: Sum, tree: Any) -> tuple[Any, Any]:
    of_groups = jax.tree.leaves(jax.tree.unflatten(tree, range(len(leaves))).images)
    return batched(
        lambda leaves: _bind(sum_, jax.tree.unflatten(tree, leaves)), leaves, axes, of_groups, sum_.result == "images"
    )


_sum_p.def_impl(_apply)
_sum_p.def_abstract_eval(_types)
mlir.register_lowering(_sum_p, _lower)
ad.primitive_jvps[_sum_p] = _jvp
ad.primitive_transposes[_sum_p] = _transpose
batching.primitive_batchers[_sum_p] = _vmap
