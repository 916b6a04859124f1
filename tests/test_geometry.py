"""The geometry's promise: no sample on the wrong side of a border or of a pixel, and positions right to 2^-22."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jax_crop
from jax_crop import _geometry
from jax_crop._sampling.tables import windowed
from tests import oracle
from tests.conftest import EACH, OPTIMIZED, jax_config
from tests.lattices import of_all_sizes

pytestmark = OPTIMIZED

LATTICES = {"corners": _geometry.corners, "centres": _geometry.centres}
# (pixels, samples): small ones, those where rounding is known to lose a row, and the largest.
SIZES = [(1, 1), (2, 3), (8, 14), (64, 112), (3001, 101)]
LARGEST = [(70_000, 4096), (1, 4096), (70_000, 1)]

lattices = pytest.mark.parametrize("lattice", LATTICES)


def pixels_and_fractions(start, stop, size, n, lattice):
    """Of the samples: the first of two pixels, the fraction, the nearest pixel, and whether inside, ``[N, n]`` each."""
    boxes = jnp.stack([start, start, stop, stop], axis=1)
    lattices = (LATTICES[lattice](size, n),) * 2
    linear, _ = _geometry.locate(boxes, (size, size), lattices, start.dtype)
    nearest, _ = _geometry.nearest(boxes, (size, size), lattices, start.dtype)
    linear = windowed(linear)
    return linear.index, linear.fraction, nearest.index, linear.inside, nearest.inside


def jit(start, stop, size, n, lattice):
    return compiled(size, n, lattice)(start, stop)


@functools.cache
def compiled(size, n, lattice):
    return jax.jit(functools.partial(pixels_and_fractions, size=size, n=n, lattice=lattice))


def vmap(start, stop, size, n, lattice):
    def of_one(start, stop):
        return [table[0] for table in pixels_and_fractions(start[None], stop[None], size, n, lattice)]

    return jax.jit(jax.vmap(of_one))(start, stop)


def assert_exact(start, stop, size, n, lattice, located):
    """Every decision as rational arithmetic decides it, and positions right to 2^-22 of themselves, and of a pixel."""
    pixel, fraction, nearest, inside, nearest_inside = map(np.asarray, located)
    expected = oracle.samples(start, stop, size, n, lattice == "corners")
    case = f"{size} pixels, {n} samples, {lattice}"
    np.testing.assert_array_equal(inside, expected.inside, case)
    np.testing.assert_array_equal(nearest_inside, expected.inside, case)
    np.testing.assert_array_equal(pixel[inside], expected.pixel[inside], case)
    np.testing.assert_array_equal(nearest[inside], expected.nearest[inside], case)
    error = np.abs(fraction.astype(np.float64) - expected.fraction)[inside]
    scale = np.minimum(expected.pixel + expected.fraction, 1)[inside]
    bits = np.finfo(start.dtype).nmant - 1
    assert np.all(error <= scale * 2.0**-bits + smallest_position(size, lattice == "corners", start.dtype)), case
    return inside.size


def smallest_position(size, align_corners, dtype=np.float32):
    """Below this positions need not be told apart: they come of denormals, or of a difference to half a pixel."""
    return size * np.finfo(dtype).tiny if align_corners else 2.0 ** (-2 * np.finfo(dtype).nmant)


@pytest.mark.parametrize("align_corners", [True, False])
@given(st.data())
def test_oracle_is_the_definition(align_corners, data):
    """The vectorised integers of the oracle against the design's formulas, written with fractions."""
    edge = st.one_of(st.floats(-0.5, 1.5, width=32), st.sampled_from([0.0, 1.0, 0.5, 2.0**-149]), st.floats(width=32))
    start, stop = data.draw(edge), data.draw(edge)
    size, n = data.draw(st.integers(1, 70_000)), data.draw(st.integers(1, 9))
    found = oracle.samples(np.float32([start]), np.float32([stop]), size, n, align_corners)
    for a in range(n):
        t = Fraction(2 * a + 1, 2 * n) if not align_corners else Fraction(a, n - 1) if n > 1 else Fraction(1, 2)
        if not (math.isfinite(start) and math.isfinite(stop)):
            assert not found.inside[0, a]
            continue
        place = Fraction(start) * (1 - t) + Fraction(stop) * t
        position = place * (size - 1) if align_corners else place * size - Fraction(1, 2)
        only_pixel = align_corners and size == 1
        assert found.inside[0, a] == (only_pixel or 0 <= place <= 1)
        if found.inside[0, a]:
            clamped = min(max(position, 0), size - 1)
            assert found.pixel[0, a] == min(math.floor(clamped), max(size - 2, 0))
            assert found.fraction[0, a] == float(clamped - found.pixel[0, a])
            assert found.nearest[0, a] == min(math.floor(clamped + Fraction(1, 2)), size - 1)
            slope = (size - 1 if align_corners else size) if clamped == position else 0
            assert found.by_stop[0, a] == pytest.approx(float(slope * t))
            assert found.by_start[0, a] == pytest.approx(float(slope * (1 - t)))


@lattices
def test_a_million_decisions(lattice):
    """A million for each alignment: borders hit exactly, k/m, one float beyond, denormals, 1e38, NaN and any bits."""
    decisions = 0
    for i, (size, n) in enumerate(SIZES + LARGEST):
        edges = oracle.misleading_edges(np.random.default_rng(i), 130_000 // n + 9, size, n)
        decisions += assert_exact(*edges, size, n, lattice, jit(*edges, size, n, lattice))
    assert decisions > 1_000_000


@EACH
@lattices
@pytest.mark.parametrize("transform", [jit, vmap])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_decisions_under_transforms(lattice, transform, dtype):
    with jax_config(jax_enable_x64=dtype is np.float64):
        for size, n in [(16, 28), (70_000, 28)]:
            edges = oracle.misleading_edges(np.random.default_rng(size), 1000, size, n, dtype)
            assert_exact(*edges, size, n, lattice, transform(*edges, size, n, lattice))


@lattices
def test_float32_boxes_with_x64(x64, lattice):
    edges = oracle.misleading_edges(np.random.default_rng(0), 1000, 223, 14)
    assert_exact(*edges, 223, 14, lattice, jit(*edges, 223, 14, lattice))


@functools.cache
def ramp_crop(height, width, crop_size, method, align_corners):
    """Crops of an image whose first channel counts rows and the second columns, -1 outside."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns], axis=-1).astype(np.float32)
    return jax.jit(
        lambda boxes: jax_crop.crop_and_resize(image, boxes, None, crop_size, method, -1.0, align_corners=align_corners)
    )


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("size", "crop_size"),
    [((70_000, 2), (28, 3)), ((3, 70_000), (1, 57)), ((8, 64), (14, 112)), ((1, 3000), (4096, 2))],
)
def test_crops_tell_positions(size, crop_size, align_corners):
    """As `test_a_million_decisions`, through the public function, on both axes at once."""
    boxes = oracle.misleading_boxes(np.random.default_rng(0), 300, size, crop_size)
    boxes[::3, [0, 2]] = [0.25, 0.75]  # so that not both axes mislead
    boxes[1::3, [1, 3]] = [0.25, 0.75]
    rows = oracle.samples(boxes[:, 0], boxes[:, 2], size[0], crop_size[0], align_corners)
    columns = oracle.samples(boxes[:, 1], boxes[:, 3], size[1], crop_size[1], align_corners)
    inside = rows.inside[:, :, None] & columns.inside[:, None, :]
    assert 0.2 < inside.mean() < 0.8

    crops = np.asarray(ramp_crop(*size, crop_size, "bilinear", align_corners)(boxes)).astype(np.float64)
    nearest = np.asarray(ramp_crop(*size, crop_size, "nearest", align_corners)(boxes))
    least = smallest_position(max(size), align_corners)
    for channel, axis in enumerate([rows, columns]):
        table = (slice(None), slice(None), None) if axis is rows else (slice(None), None, slice(None))
        expected = np.where(inside, (axis.pixel + axis.fraction)[table], -1)
        np.testing.assert_allclose(crops[..., channel], expected, rtol=2.0**-22, atol=least)
        np.testing.assert_array_equal(nearest[..., channel], np.where(inside, axis.nearest[table], -1))


@given(
    st.tuples(*[st.floats(width=32)] * 4),
    st.sampled_from([(16, 28), (70_000, 28)]),
    st.sampled_from(list(LATTICES)),
)
def test_any_floats(edges, shape, lattice):
    start, stop = np.float32(edges[:2]), np.float32(edges[2:])
    assert_exact(start, stop, *shape, lattice, jit(start, stop, *shape, lattice))


@pytest.mark.parametrize("height", range(1, 33))
def test_whole_image_boxes(height):
    """The box from 0 to 1 at every number of samples up to 64: sample ``a`` of ``n`` is at ``a(size-1) / (n-1)``."""
    sizes = height, 65 - height
    lattices = tuple(of_all_sizes(_geometry.corners, size, 64) for size in sizes)
    boxes = np.array([[0, 0, 1, 1]], np.float32)
    axes = jax.jit(lambda boxes: [*map(windowed, _geometry.locate(boxes, sizes, lattices, jnp.float32))])(boxes)
    for size, axis in zip(sizes, axes, strict=True):
        positions = [
            Fraction(a * (size - 1), n - 1) if n > 1 else Fraction(size - 1, 2) for n in range(1, 65) for a in range(n)
        ]
        pixels = [min(math.floor(position), max(size - 2, 0)) for position in positions]
        assert np.all(axis.inside)
        np.testing.assert_array_equal(axis.index[0], pixels)
        fractions = [float(position - pixel) for position, pixel in zip(positions, pixels, strict=True)]
        np.testing.assert_allclose(axis.fraction[0], fractions, rtol=2.0**-22)
