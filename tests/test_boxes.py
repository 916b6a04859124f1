"""`jax_crop.boxes`, against arithmetic in fractions and in float64, and against the crops themselves."""

import functools
import inspect
import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy import stats

import jax_crop
from jax_crop import boxes

BOXES = np.array([[0.125, 0.25, 0.75, 0.5], [0.9, -0.3, 0.2, 1.4], [0.0, 0.0, 1.0, 0.7]], np.float32)
CUT = np.array([[0.1, 0.2, 0.9, 0.6], [0.8, 0.1, 0.3, 0.5], [-0.5, 0.0, 1.5, 1.0]], np.float32)

# Every public function, as one of boxes [..., 4].
FUNCTIONS = {
    "convert": lambda b: boxes.convert(b, "yxyx", "cxcywh"),
    "normalize": lambda b: boxes.normalize(b, (48, 64)),
    "denormalize": lambda b: boxes.denormalize(b, (48, 64), align_corners=False),
    "scale": lambda b: boxes.scale(b, (1.5, 0.7)),
    "make_square": boxes.make_square,
    "clip": lambda b: boxes.clip(b, (0.8, 0.9)),
    "to_crop": lambda b: boxes.to_crop(b, CUT[0], (5, 7)),
    "from_crop": lambda b: boxes.from_crop(b, CUT[0], (5, 7), align_corners=False),
    "invert": boxes.invert,
    "assign_levels": lambda b: boxes.assign_levels(b, 2, 5, canonical_size=0.5),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)

sizes = st.integers(1, 5000)
alignments = st.booleans()
# Eighths: sums, differences and halves of them are exact in float32.
eighths = st.integers(-(2**15), 2**15).map(lambda n: n / 8)
coordinates = st.floats(-3, 4, width=32, allow_subnormal=False)
a_box = st.tuples(coordinates, coordinates, coordinates, coordinates)


# Formats


@given(eighths, eighths, eighths, eighths)
def test_convert_between_all_formats(y1, x1, y2, x2):
    forms = {
        "yxyx": [y1, x1, y2, x2],
        "xyxy": [x1, y1, x2, y2],
        "xywh": [x1, y1, x2 - x1, y2 - y1],
        "cxcywh": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
    }
    for source, target in itertools.product(forms, repeat=2):
        assert boxes.convert(forms[source], source, target).tolist() == forms[target], f"{source} to {target}"


@given(a_box)
def test_convert_there_and_back(box):
    for source, target in itertools.product(["yxyx", "xyxy", "xywh", "cxcywh"], repeat=2):
        back = boxes.convert(boxes.convert(box, source, target), target, source)
        np.testing.assert_allclose(back, box, atol=2e-6)


# Pixel and normalized coordinates


@given(st.floats(-6000, 6000, width=32), st.floats(-6000, 6000, width=32), sizes, sizes, alignments)
def test_normalize_and_denormalize_as_fractions(y, x, height, width, align_corners):
    point, size = np.float32([y, x]), (height, width)
    exact = [Fraction(p) / (max(n - 1, 1) if align_corners else n) for p, n in zip((y, x), size, strict=True)]
    tolerance = [Fraction(2) ** -23 * max(abs(q), 1) for q in exact]
    jitted = jax.jit(boxes.normalize, static_argnames="align_corners")
    for normalized in (
        boxes.normalize(point, size, align_corners=align_corners),
        jitted(point, jnp.array(size), align_corners=align_corners),
    ):
        for result, q, error in zip(normalized.tolist(), exact, tolerance, strict=True):
            assert abs(Fraction(result) - q) <= error
    if not (align_corners and 1 in size):
        pixels = boxes.denormalize(normalized, size, align_corners=align_corners)
        np.testing.assert_allclose(pixels, point, rtol=3e-7, atol=3e-7 * max(size))


@pytest.mark.parametrize("align_corners", [True, False])
def test_whole_image_is_normalized_to_exactly_0_and_1(align_corners):
    size = np.arange(2, 4097)
    last = (size - align_corners).astype(np.float32)
    normalize = jax.jit(
        lambda pixels, size: jax.vmap(lambda p, n: boxes.normalize(p, jnp.stack([n, n]), align_corners=align_corners))(
            pixels, size
        )
    )
    whole = np.stack([0 * last, 0 * last, last, last], -1)
    np.testing.assert_array_equal(normalize(whole, size), np.tile(np.float32([0, 0, 1, 1]), (len(size), 1)))
    for n in (42, 48, 56, 62, 83, 84):  # in float32 (n - 1) * (1 / (n - 1)) is below 1
        many = np.full((100, 2), n - align_corners, np.float32)
        static = jax.jit(lambda p, n=n: boxes.normalize(p, (n, n), align_corners=align_corners))
        traced = jax.jit(lambda p, n: boxes.normalize(p, n, align_corners=align_corners))
        one_by_one = jax.jit(lambda p, n: jax.vmap(lambda q: boxes.normalize(q, n, align_corners=align_corners))(p))
        for result in (static(many), traced(many, jnp.array([n, n])), one_by_one(many, jnp.array([n, n]))):
            np.testing.assert_array_equal(result, 1)


@pytest.mark.parametrize("align_corners", [True, False])
def test_whole_image_in_pixels_crops_the_whole_image(align_corners):
    image = np.random.default_rng(0).random((42, 56, 3), np.float32)
    height, width = 42 - align_corners, 56 - align_corners
    whole = boxes.normalize([[0, 0, height, width]], (42, 56), align_corners=align_corners)
    crop = jax_crop.crop_and_resize(image, whole, None, (42, 56), align_corners=align_corners)
    np.testing.assert_array_equal(crop[0], image)


def test_axis_of_one_pixel():
    np.testing.assert_array_equal(boxes.normalize([0, 0, 0, 9], (1, 10)), [0, 0, 0, 1])
    np.testing.assert_array_equal(boxes.denormalize([0, 0, 1, 1], (1, 10)), [0, 0, 0, 9])
    np.testing.assert_array_equal(boxes.normalize([0, 0, 1, 10], (1, 10), align_corners=False), [0, 0, 1, 1])
    gradient = jax.grad(lambda b: boxes.normalize(b, (1, 1)).sum())(jnp.zeros(4))
    np.testing.assert_array_equal(gradient, 1)


# Shapes of boxes


@given(a_box, st.floats(-3, 3, width=32), st.floats(0.125, 3, width=32))
def test_scale_moves_the_corners_from_the_centre(box, factor_y, factor_x):
    y1, x1, y2, x2 = box
    cy, cx, h, w = (y1 + y2) / 2, (x1 + x2) / 2, (y2 - y1) * factor_y, (x2 - x1) * factor_x
    scaled = boxes.scale(box, (factor_y, factor_x))
    np.testing.assert_allclose(scaled, [cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2], atol=5e-6)
    np.testing.assert_allclose(boxes.scale(boxes.scale(box, factor_x), 1 / factor_x), box, atol=2e-5)
    np.testing.assert_array_equal(boxes.scale(box, 1.0), np.float32(box))


@given(a_box)
def test_make_square_widens_the_shorter_side(box):
    y1, x1, y2, x2 = box
    square = np.asarray(boxes.make_square(box), np.float64)
    height, width = square[2:] - square[:2]
    side = max(abs(y2 - y1), abs(x2 - x1))
    np.testing.assert_allclose([abs(height), abs(width)], side, atol=2e-6)
    np.testing.assert_allclose(square[:2] + square[2:], [y1 + y2, x1 + x2], atol=4e-6)
    longer = [0, 2] if abs(np.float32(y2) - np.float32(y1)) >= abs(np.float32(x2) - np.float32(x1)) else [1, 3]
    np.testing.assert_array_equal(square[longer], np.array(box)[longer])
    if side > 1e-5:
        assert (height < 0) == (y2 < y1), "a flipped box stays flipped"
        assert (width < 0) == (x2 < x1), "a flipped box stays flipped"


def test_clip_to_normalized_and_to_pixel_bounds():
    np.testing.assert_array_equal(boxes.clip([-1, 0.5, 2, 1]), [0, 0.5, 1, 1])
    np.testing.assert_array_equal(boxes.clip([-1, 50, 30, 70], (20, 60)), [0, 50, 20, 60])
    np.testing.assert_array_equal(boxes.clip([-1, 70], (20, 60)), [0, 60])
    np.testing.assert_array_equal(boxes.clip([30, -1, 5, 70], 10), [10, 0, 5, 10])


# Crops


def exact_place(y1, y2, a, n, align_corners):
    y1, y2 = Fraction(y1), Fraction(y2)
    if not align_corners:
        return y1 + (a + Fraction(1, 2)) / n * (y2 - y1)
    return (y1 + y2) / 2 if n == 1 else (y1 * (n - 1 - a) + y2 * a) / (n - 1)


@given(a_box, st.integers(1, 40), st.integers(1, 40), alignments, st.data())
def test_from_crop_and_to_crop_of_samples_as_fractions(box, height, width, align_corners, data):
    y1, x1, y2, x2 = box
    a, b = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    crop_size = (height, width)
    exact = [float(exact_place(y1, y2, a, height, align_corners)), float(exact_place(x1, x2, b, width, align_corners))]
    np.testing.assert_allclose(boxes.from_crop([a, b], box, crop_size, align_corners=align_corners), exact, atol=2e-6)
    side = min(abs(y2 - y1), abs(x2 - x1))
    assume(side > 0.01)
    there_again = boxes.to_crop(exact, box, crop_size, align_corners=align_corners)
    np.testing.assert_allclose(there_again, [a, b], atol=2e-6 * max(crop_size) / side)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("crop_size", [(5, 7), (1, 4), (3, 1)])
def test_from_crop_says_where_crops_are_sampled(crop_size, align_corners):
    size = (20, 30)
    image = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).astype(np.float32)  # each pixel's place
    cut = np.array([[0.1, 0.2, 0.9, 0.6], [0.8, 0.1, 0.3, 0.5]], np.float32)
    sampled_at = jax_crop.crop_and_resize(image, cut, None, crop_size, align_corners=align_corners)
    pixels = np.stack(np.meshgrid(*map(np.arange, crop_size), indexing="ij"), -1)
    places = boxes.from_crop(pixels[None], cut[:, None], crop_size, align_corners=align_corners)
    in_pixels = boxes.denormalize(places, size, align_corners=align_corners)
    centre = 0 if align_corners else 0.5  # of the first pixel
    np.testing.assert_allclose(in_pixels - centre, sampled_at, atol=1e-5)


def test_box_of_the_crop_frames_the_crop():
    np.testing.assert_allclose(boxes.to_crop(CUT, CUT, (5, 7)), np.tile([0, 0, 4, 6], (3, 1)), atol=1e-6)
    edges = boxes.to_crop(CUT, CUT, (5, 7), align_corners=False)
    np.testing.assert_allclose(edges, np.tile([-0.5, -0.5, 4.5, 6.5], (3, 1)), atol=2e-6)
    np.testing.assert_array_equal(boxes.from_crop(np.tile([0, 0, 4, 6], (3, 1)), CUT, (5, 7)), CUT.astype(np.float32))


def test_boxes_go_to_crops_as_their_corners_do():
    for function in (boxes.to_crop, boxes.from_crop):
        corners = function(BOXES.reshape(3, 2, 2), CUT, (5, 7))
        np.testing.assert_allclose(function(BOXES, CUT, (5, 7)), corners.reshape(3, 4), rtol=1e-6)


def test_points_are_paired_with_their_crops():
    points = np.random.default_rng(1).random((3, 6, 2), np.float32)
    one_by_one = np.stack([boxes.to_crop(p, box, (5, 7)) for p, box in zip(points, CUT, strict=True)])
    np.testing.assert_array_equal(boxes.to_crop(points, CUT, (5, 7)), one_by_one)
    into_all = boxes.to_crop(points[:1], CUT, (5, 7))
    np.testing.assert_array_equal(into_all, np.stack([boxes.to_crop(points[0], box, (5, 7)) for box in CUT]))


def test_box_without_height_puts_points_on_the_middle_row(strict_jax):
    def place(points, cut, align_corners=True):
        return boxes.to_crop(points, cut, (5, 5), align_corners=align_corners)

    points, cut = jnp.float32([0.3, 0.5]), jnp.float32([0.4, 0.0, 0.4, 1.0])
    for align_corners in (True, False):
        np.testing.assert_array_equal(place(points, cut, align_corners), [2, 2])
    to_points, to_cut = jax.jacrev(place, argnums=(0, 1))(points, cut)
    np.testing.assert_array_equal(to_points, [[0, 0], [0, 4]])
    np.testing.assert_array_equal(to_cut, [[0, 0, 0, 0], [0, -2, 0, -2]])


# Inverses


@given(a_box, st.booleans())
def test_invert_as_fractions(box, jit):
    y1, x1, y2, x2 = map(Fraction, box)
    assume(abs(y2 - y1) > 1e-3 and abs(x2 - x1) > 1e-3)
    exact = [-y1 / (y2 - y1), -x1 / (x2 - x1), (1 - y1) / (y2 - y1), (1 - x1) / (x2 - x1)]
    inverse = (jax.jit(boxes.invert) if jit else boxes.invert)(box).tolist()
    for result, q in zip(inverse, exact, strict=True):
        assert abs(Fraction(result) - q) <= abs(q) * Fraction(2) ** -22 + Fraction(2) ** -126  # below which XLA has 0
    side = min(abs(y2 - y1), abs(x2 - x1))
    np.testing.assert_allclose(boxes.invert(inverse), box, atol=1e-6 / float(side) + 1e-6)


@given(*[st.integers(-8, 16).map(lambda n: n / 8)] * 2, *[st.sampled_from([-0.5, 0.25, 0.5, 1, 2])] * 2)
def test_invert_is_exact_where_its_numbers_are(y1, x1, height, width):
    box = [y1, x1, y1 + height, x1 + width]
    inverse = boxes.invert(box)
    assert inverse.tolist() == [-y1 / height, -x1 / width, (1 - y1) / height, (1 - x1) / width]
    np.testing.assert_array_equal(boxes.invert(inverse), box)
    assert boxes.invert([0, 0, 1, 1]).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("align_corners", [True, False])
def test_crop_of_the_inverse_is_the_image_within_and_fill_around(align_corners):
    size = np.array([33, 65]) - (not align_corners)  # so that boxes have edges on a grid of 1/32 and 1/64
    image = np.random.default_rng(2).random((*size, 3), np.float32)
    for y1, x1, y2, x2 in [(24, 16, 8, 48), (4, 60, 8, 28)]:  # flipped, along one axis each
        cut = np.float32([[y1 / 32, x1 / 64, y2 / 32, x2 / 64]])
        crop_size = abs(y2 - y1) + align_corners, abs(x2 - x1) + align_corners  # a pixel for each of the image
        crop = jax_crop.crop_and_resize(image, cut, None, crop_size, align_corners=align_corners)[0]
        back = jax_crop.crop_and_resize(
            crop, boxes.invert(cut), None, tuple(size), extrapolation_value=-1, align_corners=align_corners
        )[0]
        within = np.full_like(image, -1)
        rows, columns = (slice(min(a, b), max(a, b) + align_corners) for a, b in ((y1, y2), (x1, x2)))
        within[rows, columns] = image[rows, columns]
        np.testing.assert_allclose(back, within, atol=1e-5)


@given(a_box, alignments)
def test_crop_of_the_inverse_restores_a_ramp(box, align_corners):
    y1, x1, y2, x2 = box
    assume(abs(y2 - y1) > 0.05 and abs(x2 - x1) > 0.05)
    # A crop of 64 x 64 pixels of the ramp (y, x), as if the image had no border.
    pixels = np.stack(np.meshgrid(np.arange(64), np.arange(64), indexing="ij"), -1)
    ramp = boxes.from_crop(pixels[None], np.float32([box])[:, None], (64, 64), align_corners=align_corners)[0]
    fill = {"extrapolation_value": np.nan}
    crops = jax_crop.crop_and_resize(ramp, boxes.invert([box]), None, (20, 30), align_corners=align_corners, **fill)
    image = np.asarray(crops)[0]
    rows, columns = (np.linspace(0, 1, n) if align_corners else (np.arange(n, dtype=float) + 0.5) / n for n in (20, 30))
    expected = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    first, last = np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])
    inside = np.all((expected >= first + 1e-5) & (expected <= last - 1e-5), axis=-1)
    outside = np.any((expected < first - 1e-5) | (expected > last + 1e-5), axis=-1)
    replicated = 0 if align_corners else np.max(last - first) / 128  # within half a pixel of the crop's border
    np.testing.assert_allclose(image[inside], expected[inside], atol=replicated + 1e-5)
    assert np.isnan(image[outside]).all()


NO_INVERSE = [[0.5, 0.1, 0.5, 0.9], [0.1, 0.5, 0.9, 0.5], [0, 0, 0, 0], [np.inf] * 4, [0.1, 0.1, np.inf, 0.9]]
ONE_INVERSE = np.float32([[0.1, 0.2, 0.8, 0.9], *NO_INVERSE, [np.nan] * 4])


def test_boxes_without_inverse():
    inverse = boxes.invert(ONE_INVERSE)
    np.testing.assert_array_equal(np.isfinite(inverse).all(axis=1), [True] + [False] * 6)
    gradient = jax.grad(lambda b: jnp.nansum(boxes.invert(b) ** 2))(ONE_INVERSE)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[0] != 0)
    np.testing.assert_array_equal(gradient != 0, np.isfinite(inverse))


def test_images_of_boxes_without_inverse_are_fill(strict_jax):
    masks, order = jnp.linspace(1, 2, 7 * 5 * 5).reshape(7, 5, 5, 1), jnp.arange(7)

    def paste(cut):
        return jax_crop.crop_and_resize(masks, boxes.invert(cut), order, (9, 9), align_corners=False)

    pasted = jax.jit(paste)(ONE_INVERSE)
    assert np.all(pasted[0, 2:7, 2:8] >= 1)
    np.testing.assert_array_equal(pasted[1:], 0)
    gradient = jax.jit(jax.grad(lambda cut: jnp.sum(paste(cut) ** 2)))(ONE_INVERSE)
    assert np.all(gradient[0] != 0)
    np.testing.assert_array_equal(gradient[1:], 0)


# Random boxes

IMAGE_SIZES = [(240, 320), (300, 300), (500, 60), (40, 300), (120, 400)]
SMALL_SIZES = [(1, 1), (2, 3), (5, 4), (3, 12), (9, 2), (1, 6)]


def torchvisions_box(rng, image_size, area, aspect):
    """The published algorithm of torchvision's `RandomResizedCrop.get_params`: a box, and whether no try fitted."""
    height, width = image_size
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(*map(math.log, aspect)))
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            return (rng.randint(0, height - h), rng.randint(0, width - w), h, w), False
    h, w = height, width
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    return ((height - h) // 2, (width - w) // 2, h, w), True


@functools.cache
def samples(image_size, count, area, aspect):
    """As many boxes `(top, left, h, w)` of whole pixels of torchvision's algorithm and of ours, and its fallback."""
    rng = random.Random(0)
    theirs, fallen = zip(*(torchvisions_box(rng, image_size, area, aspect) for _ in range(count)), strict=True)
    fallback = next(itertools.compress(theirs, fallen), None)
    normalized = boxes.random_resized(
        jax.random.key(1), count, image_size, area=area, aspect=aspect, align_corners=False
    )
    edges = np.asarray(boxes.denormalize(normalized, image_size, align_corners=False))
    np.testing.assert_allclose(edges, edges.round(), atol=1e-3)
    ours = edges.round().astype(int)
    ours[:, 2:] -= ours[:, :2]
    return np.array(theirs), ours, fallback


@pytest.mark.parametrize(("area", "aspect"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.2, 0.5), (0.25, 3.0))])
@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_random_resized_is_distributed_as_torchvisions(image_size, area, aspect):
    theirs, ours, fallback = samples(image_size, 20_000, area, aspect)
    features = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom": lambda b: b[:, 0] + b[:, 2],
        "right": lambda b: b[:, 1] + b[:, 3],
        "place among places": lambda b: b[:, 0] / np.maximum(image_size[0] - b[:, 2], 1),
    }
    for name, feature in features.items():
        p = stats.ks_2samp(feature(theirs), feature(ours)).pvalue
        assert p > 1e-4, f"{name} is distributed otherwise: p = {p:.1e}"
    if fallback is not None:
        fallen = [np.sum(np.all(some == fallback, axis=1)) for some in (theirs, ours)]
        p = stats.binomtest(int(fallen[0]), int(sum(fallen)), 0.5).pvalue
        assert p > 1e-4, f"{fallen} of 20000 boxes are the one in the centre: p = {p:.1e}"


@pytest.mark.parametrize("image_size", SMALL_SIZES)
def test_random_resized_of_few_pixels_has_each_box_as_often(image_size):
    theirs, ours, _ = samples(image_size, 20_000, (0.08, 1.0), (3 / 4, 4 / 3))
    counts = [Counter(map(tuple, some.tolist())) for some in (theirs, ours)]
    table = np.array([[count[box] for box in counts[0] | counts[1]] for count in counts])
    frequent = table.sum(0) >= 20
    table = np.column_stack([table[:, frequent], table[:, ~frequent].sum(1) + 1])
    p = stats.chi2_contingency(table).pvalue
    assert p > 1e-4, f"boxes and how often each was drawn, p = {p:.1e}: {counts}"


@pytest.mark.parametrize("image_size", IMAGE_SIZES + SMALL_SIZES)
def test_random_resized_spans_pixels_in_both_conventions(image_size):
    draw = functools.partial(boxes.random_resized, jax.random.key(0), 50, image_size)
    edges = np.asarray(boxes.denormalize(draw(align_corners=False), image_size, align_corners=False)).round()
    centres = np.asarray(boxes.denormalize(draw(align_corners=True), image_size, align_corners=True))
    one_pixel = np.tile(np.array(image_size) == 1, 2)
    np.testing.assert_allclose(centres, np.where(one_pixel, 0, edges - [0, 0, 1, 1]), atol=1e-3)
    for normalized in (draw(align_corners=True), draw(align_corners=False)):
        assert normalized.dtype == jnp.float32
        assert np.all((normalized >= 0) & (normalized <= 1))


@pytest.mark.parametrize(
    ("image_size", "aspect", "box"),
    [
        ((100, 10), (3 / 4, 4 / 3), (43, 0, 56, 10)),
        ((10, 100), (3 / 4, 4 / 3), (0, 43, 10, 56)),
        ((10, 101), (3 / 4, 4 / 3), (0, 44, 10, 57)),
        ((3, 1), (3 / 4, 4 / 3), (1, 0, 2, 1)),
        ((90, 100), (2.0, 3.0), (20, 0, 70, 100)),
        ((1, 10), (0.1, 0.2), (0, 4, 1, 5)),  # torchvision's would have no width
    ],
)
def test_random_resized_falls_back_to_the_centre(image_size, aspect, box):
    """Where all of the area is asked for, which no box of such an aspect ratio has."""
    drawn = boxes.random_resized(jax.random.key(0), 3, image_size, area=(1, 1), aspect=aspect, align_corners=False)
    np.testing.assert_allclose(drawn, np.tile(np.float32(box) / np.tile(image_size, 2), (3, 1)), atol=1e-6)


def test_random_resized_under_transforms(strict_jax, with_and_without_x64):
    key = jax.random.key(3)
    draw_four = jax.jit(lambda key, image_size: boxes.random_resized(key, 4, image_size))
    expected = boxes.random_resized(key, 4, (48, 64))
    assert expected.dtype == jnp.float32
    for new_or_old in (key, jax.random.PRNGKey(3)):
        np.testing.assert_array_equal(draw_four(new_or_old, jnp.array([48, 64])), expected)
    keys, image_sizes = jax.random.split(key, 3), jnp.array([[48, 64], [1, 9], [480, 20]])
    of_each = jax.vmap(boxes.random_resized, in_axes=(0, None, 0))(keys, 4, image_sizes)
    for result, one_key, image_size in zip(of_each, keys, image_sizes.tolist(), strict=True):
        np.testing.assert_allclose(result, boxes.random_resized(one_key, 4, image_size), atol=1e-7)
    assert boxes.random_resized(key, 0, (48, 64)).shape == (0, 4)


# Levels


def exact_level(height, width, least, most, canonical_level=4, canonical_size=224):
    level = most
    while (
        level > least
        and Fraction(height) * Fraction(width) < (canonical_size * Fraction(2) ** (level - canonical_level)) ** 2
    ):
        level -= 1
    return level


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 5), st.integers(0, 4))
def test_assign_levels_in_whole_numbers(height, width, least, more):
    level = boxes.assign_levels([7, 5, 7 + height, 5 + width], least, least + more)
    assert level == exact_level(height, width, least, least + more)


@pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_assign_levels_of_powers_of_two(mode):
    levels = np.arange(-2, 11)
    side = (224 * 2.0 ** (levels - 4)).astype(np.float32)
    zero = np.zeros_like(side)
    assign = mode(lambda b: boxes.assign_levels(b, -3, 12))
    np.testing.assert_array_equal(assign(np.stack([zero, zero, side, side], -1)), levels)
    np.testing.assert_array_equal(assign(np.stack([zero, zero, side / 4, side * 4], -1)), levels)
    np.testing.assert_array_equal(assign(np.stack([zero, zero, side, np.nextafter(side, 0)], -1)), levels - 1)


def test_assign_levels_in_float64(x64):
    just_below = np.nextafter(224.0, 0)  # in float32 this is 224
    np.testing.assert_array_equal(
        boxes.assign_levels([[0, 0, 224.0, side] for side in (just_below, 224.0)], 2, 5), [3, 4]
    )


def test_assign_levels_from_another_canonical_box():
    some = [[0, 0, 9.9, 10], [0, 0, 10, 10], [0, 0, 40, 40]]
    np.testing.assert_array_equal(boxes.assign_levels(some, 0, 9, canonical_level=3, canonical_size=10), [2, 3, 5])


@pytest.mark.parametrize("name", ["min_level", "max_level", "canonical_level"])
def test_levels_are_integers(name):
    with pytest.raises(TypeError, match=rf"^{name} must be of an integer type, got 2\.5"):
        boxes.assign_levels([0, 0, 1, 1], **{"min_level": 2, "max_level": 5} | {name: 2.5})


def test_assign_levels_of_boxes_that_are_none(strict_jax):
    none = [[0, 0, 0, 0], [9, 9, 9, 5000], [900, 0, 0, 900], [900, 900, 0, 0]]
    np.testing.assert_array_equal(boxes.assign_levels(none, 2, 5), 2)
    infinite = [[0, 0, value, 900] for value in (np.inf, -np.inf)] + [[-np.inf, 0, np.inf, 900]]
    with jax.debug_nans(False), jax.debug_infs(False):
        np.testing.assert_array_equal(boxes.assign_levels(infinite, 2, 5), 2)
        np.testing.assert_array_equal(boxes.assign_levels([[0, 0, np.nan, 900], [np.nan] * 4], 2, 5), 2)


def test_assign_levels_of_areas_beyond_their_dtype():
    assert boxes.assign_levels(np.float16([0, 0, 300, 300]), 2, 7) == 4
    assert boxes.assign_levels(np.float16([0, 0, 1000, 1000]), 2, 7) == 6
    assert boxes.assign_levels([-3e38, -3e38, 3e38, 3e38], 2, 7) == 7


# What holds for every function


def test_one_number_is_a_square():
    np.testing.assert_array_equal(boxes.normalize(BOXES, 480), boxes.normalize(BOXES, (480, 480)))
    np.testing.assert_array_equal(boxes.to_crop(BOXES, CUT, 5), boxes.to_crop(BOXES, CUT, (5, 5)))


def test_every_public_function_is_here():
    public = {
        name
        for name, value in inspect.getmembers(boxes, inspect.isfunction)
        if value.__module__ == boxes.__name__ and not name.startswith("_")
    }
    # One takes no boxes, and one changes none (test_checkify.py).
    assert public == {*FUNCTIONS, "random_resized", "check"}


@every_function
def test_vmap_and_jit(function):
    expected = function(BOXES)
    np.testing.assert_allclose(jax.jit(function)(BOXES), expected, rtol=1e-6, atol=1e-6)
    with jax.checking_leaks():
        np.testing.assert_allclose(
            jax.vmap(function)(np.stack([BOXES] * 2)), np.stack([expected] * 2), rtol=1e-6, atol=1e-6
        )


@every_function
def test_leading_axes(function):
    np.testing.assert_allclose(function(BOXES[0]), function(BOXES[:1])[0], rtol=1e-6, atol=1e-6)
    assert function(np.zeros((0, 4), np.float32)).shape[0] == 0


@every_function
def test_lists_and_integers(function):
    whole = [[0, 1, 2, 4], [3, 0, 1, 5], [1, 1, 2, 2]]
    expected = function(np.array(whole, np.float32))
    for given_as in (whole, tuple(map(tuple, whole)), np.array(whole), np.array(whole, np.uint8), jnp.array(whole)):
        result = function(given_as)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


@every_function
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_is_kept(function, dtype, x64, strict_jax):
    result = jax.jit(function)(jnp.asarray(BOXES, dtype))
    if function is FUNCTIONS["assign_levels"]:
        assert result.dtype == jnp.int32
    else:
        assert result.dtype == dtype
        reference = np.asarray(jax.jit(function)(BOXES.astype(np.float64)))
        error = 1e-15 if dtype == jnp.float64 else 40 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(result, np.float64), reference, rtol=error, atol=error)


def test_integers_are_float32_with_x64(x64):
    assert boxes.normalize(np.array([0, 0, 9, 9]), (10, 10)).dtype == jnp.float32
    assert boxes.assign_levels(np.array([[0, 0, 224, 224]], np.float64), 2, 5).dtype == jnp.int32


@every_function
def test_strict_modes(function, strict_jax, with_and_without_x64):
    expected = function(BOXES)
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(jnp.asarray(BOXES)), expected, rtol=1e-6, atol=1e-6)


def assert_derivatives(function, *arguments):
    """The first and the second, by each mode, against central differences: one program, which takes all points."""
    point, unravel = ravel_pytree([jnp.asarray(argument) for argument in arguments])
    n, h = point.size, 1e-6

    def of(x):
        return function(*unravel(x))

    @jax.jit
    @jax.vmap
    def found(x):
        slopes = {jacobian: jacobian(of) for jacobian in (jax.jacfwd, jax.jacrev)}
        second = [outer(inner) for inner in slopes.values() for outer in slopes]
        return of(x), [slope(x) for slope in slopes.values()], [slope(x) for slope in second]

    steps = h * np.eye(n)
    values, slopes, second = found(np.asarray(point) + np.concatenate([0 * steps[:1], steps, -steps]))
    for results, derivatives in ((values, slopes), (slopes[0], second)):
        ahead, behind = np.split(np.asarray(results)[1:], 2)
        expected = np.moveaxis((ahead - behind) / (2 * h), 0, -1)
        for found_ in derivatives:
            np.testing.assert_allclose(found_[0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"assign_levels"}))
def test_gradient_in_boxes(name, x64, strict_jax):
    assert_derivatives(FUNCTIONS[name], [[0.125, 0.25, 0.75, 0.5], [0.95, -0.3, 0.2, 1.4]])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("function", [boxes.to_crop, boxes.from_crop])
def test_gradient_in_the_box_of_the_crop(function, align_corners, x64, strict_jax):
    place = functools.partial(function, crop_size=(5, 1), align_corners=align_corners)
    assert_derivatives(place, [0.4, 0.7], [0.8, 0.1, 0.3, 0.5])


@pytest.mark.parametrize("factor", [1.0, (1.5, 0.5)])
def test_gradient_in_the_factor(factor, x64, strict_jax):
    assert_derivatives(boxes.scale, [0.125, 0.25, 0.75, 0.5], factor)


@given(st.integers(2, 3000))
def test_gradient_of_normalize_at_the_border_is_that_within(size):
    slopes = jax.grad(lambda p: boxes.normalize(p, (size, size)).sum())(jnp.float32([0, 0.5, size - 1, size + 1.0]))
    np.testing.assert_allclose(slopes, 1 / (size - 1), rtol=1e-6)


# Errors


def draw(count=2, image_size=(48, 64), **ranges):
    return boxes.random_resized(jax.random.key(0), count, image_size, **ranges)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"source must be one of 'yxyx', .*got 'xxyy'", lambda: boxes.convert(BOXES, "xxyy", "yxyx")),
        (ValueError, r"target must be one of 'yxyx', .*got 'coco'", lambda: boxes.convert(BOXES, "yxyx", "coco")),
        (ValueError, r"boxes must be \[..., 4\], got shape \(3, 3\)", lambda: boxes.scale(BOXES[:, :3], 2)),
        (ValueError, r"boxes must be \[..., 4\], got shape \(3, 2\)", lambda: boxes.make_square(BOXES[:, :2])),
        (ValueError, r"boxes must be \[..., 4\], got shape \(\)", lambda: boxes.make_square(1.0)),
        (ValueError, r"boxes must be \[..., 4\] or \[..., 2\], got shape \(5,\)", lambda: boxes.clip(np.zeros(5))),
        (TypeError, r"boxes must be of an integer or floating type, got bool", lambda: boxes.clip(BOXES > 0)),
        (TypeError, r"boxes must be an array of numbers, got .*\[1, 2\]", lambda: boxes.clip([[0, 0, 1, 1], [1, 2]])),
        (TypeError, r"boxes must be an array of numbers, got 'box'", lambda: boxes.clip("box")),
        (TypeError, r"image_size must be .*\(height, width\).*, got 480.5", lambda: boxes.normalize(BOXES, 480.5)),
        (TypeError, r"image_size must be .*got \(480, 640, 3\)", lambda: boxes.denormalize(BOXES, (480, 640, 3))),
        (
            ValueError,
            r"image_size must be a pair of positive .*got \(0, 640\)",
            lambda: boxes.normalize(BOXES, (0, 640)),
        ),
        (ValueError, r"image_size .*got shape \(3,\)", lambda: boxes.normalize(BOXES, jnp.array([480, 640, 3]))),
        (ValueError, r"factor must be one number or two.*got shape \(3,\)", lambda: boxes.scale(BOXES, (1, 2, 3))),
        (ValueError, r"upper must be one number or two.*got shape \(1, 2\)", lambda: boxes.clip(BOXES, [[1, 2]])),
        (ValueError, r"points must be \[..., 2\] or \[..., 4\], got", lambda: boxes.to_crop([1, 2, 3], CUT[0], (5, 5))),
        (ValueError, r"boxes must be \[..., 4\], got", lambda: boxes.from_crop([1, 2], [1, 2], (5, 5))),
        (ValueError, r"points\[None\].*\(6, 2\) and .*\(3, 4\)", lambda: boxes.to_crop(np.zeros((6, 2)), CUT, (5, 5))),
        (ValueError, r"points\[None\].*\(2,\) and .*\(3, 4\)", lambda: boxes.from_crop([1, 2], CUT, (5, 5))),
        (TypeError, r"crop_size must be .*got 5.0", lambda: boxes.to_crop(BOXES, CUT, 5.0)),
        (
            ValueError,
            r"crop_size must be a pair of positive .*got \(5, 0\)",
            lambda: boxes.from_crop(BOXES, CUT, (5, 0)),
        ),
        (ValueError, r"count must be a number of boxes.*got -1", lambda: draw(count=-1)),
        (ValueError, r"count must be a number of boxes.*got 2.0", lambda: draw(count=2.0)),
        (TypeError, r"image_size must be .*\(height, width\).*, got 480.5", lambda: draw(image_size=480.5)),
        (ValueError, r"image_size must be two integers.*int32\[3\]", lambda: draw(image_size=jnp.array([4, 6, 3]))),
        (ValueError, r"image_size must be two integers.*float32\[2\]", lambda: draw(image_size=jnp.array([4.0, 6]))),
        (ValueError, r"area must be .* <= 1, got \(0.5, 1.5\)", lambda: draw(area=(0.5, 1.5))),
        (ValueError, r"area must be .* <= 1, got \(0.5, 0.1\)", lambda: draw(area=(0.5, 0.1))),
        (TypeError, r"area must be a pair of numbers.*got 0.5", lambda: draw(area=0.5)),
        (ValueError, r"aspect must be .*, got \(0, 2\)", lambda: draw(aspect=(0, 2))),
        (ValueError, r"aspect must be .*, got \(1, inf\)", lambda: draw(aspect=(1, math.inf))),
        (ValueError, r"aspect must be .*, got \(nan, 2\)", lambda: draw(aspect=(math.nan, 2))),
        (TypeError, r"aspect must be a pair.*known while tracing", lambda: jax.jit(lambda a: draw(aspect=(a, 2)))(1.0)),
        (ValueError, r"min_level must not exceed max_level, got 5 and 2", lambda: boxes.assign_levels(BOXES, 5, 2)),
        (ValueError, r"canonical_size .*got 0", lambda: boxes.assign_levels(BOXES, 2, 5, canonical_size=0)),
        (ValueError, r"level 70 must .*got 2\^74, .*canonical_level 4", lambda: boxes.assign_levels(BOXES, 2, 70)),
        (ValueError, r"level -98 must .*got 2\^-94", lambda: boxes.assign_levels(BOXES, -99, 2**40)),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "function",
    [
        lambda flag: boxes.normalize([0, 0, 1, 1], 2, align_corners=flag),
        lambda flag: boxes.to_crop([0, 0, 1, 1], [0, 0, 1, 1], 2, align_corners=flag),
        lambda flag: boxes.random_resized(jax.random.key(0), 1, (9, 8), align_corners=flag),
    ],
    ids=["normalize", "to_crop", "random_resized"],
)
def test_traced_align_corners(function):
    with pytest.raises(TypeError, match=r"^align_corners must be known while tracing, got .*Tracer.*static_argnames"):
        jax.jit(function)(True)
