"""Interpolation kernels and antialiasing, against Pillow, JAX and a formula in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax.test_util import check_grads

from jax_crop import _kernels, crop_and_resize
from jax_crop._sampling import bands
from tests import oracle
from tests.conftest import EACH, PAIRS, on_a_mesh

KERNELS = {
    "bilinear": (1, lambda x: 1 - np.abs(x)),
    "cubic": (2, lambda x: np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)),
    "lanczos3": (3, lambda x: np.sinc(x) * np.sinc(x / 3)),
    "lanczos5": (5, lambda x: np.sinc(x) * np.sinc(x / 5)),
}
IN_PILLOW = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "cubic": PIL.Image.Resampling.BICUBIC,
    "lanczos3": PIL.Image.Resampling.LANCZOS,
}
IN_JAX = {name: "linear" if name == "bilinear" else name for name in KERNELS}
RNG = np.random.default_rng(0)
BOXES = np.concatenate([RNG.uniform(-0.2, 1.2, (6, 4)), [[0, 0, 1, 1], [1, 0.9, 0, 0.1], [0.5, 0.2, 0.5, 0.3]]]).astype(
    "f4"
)
INDICES = np.array([0, 1, 1, -1, 0, 1, 1, 0, 1])

methods = pytest.mark.parametrize("method", KERNELS)
alignments = pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])


def random_image(shape, dtype="float32", seed=0):
    return oracle.random_image(np.random.default_rng(seed), shape, dtype)


def expected_weights(start, stop, size, n, method, align_corners, antialias):
    """``[N, n, size]``, and whether samples are inside."""
    inside = oracle.samples(start, stop, size, n, align_corners).inside
    start, stop = (np.where(np.isfinite(edge), edge, 0).astype(np.float64)[:, None] for edge in (start, stop))
    if align_corners:
        steps = np.arange(n) / (n - 1) if n > 1 else np.array([0.5])
        position, distance = (start + (stop - start) * steps) * (size - 1), (stop - start) * (size - 1) / max(n - 1, 1)
    else:
        position, distance = (start + (stop - start) * (np.arange(n) + 0.5) / n) * size - 0.5, (stop - start) * size / n
    radius, kernel = KERNELS[method]
    scale = np.maximum(np.abs(distance), 1) if antialias else 1
    x = np.abs(np.arange(size) - np.where(inside, position, 0)[..., None]) / np.reshape(scale, (-1, 1, 1))
    weights = np.where(x < radius, kernel(np.minimum(x, radius)), 0)
    return weights / weights.sum(-1, keepdims=True) * inside[..., None], inside


def expected_crops(image, boxes, indices, crop_size, method, fill=0.0, *, align_corners=True, antialias=False):
    (rows, in_rows), (columns, in_columns) = (
        expected_weights(boxes[:, k], boxes[:, k + 2], image.shape[k + 1], n, method, align_corners, antialias)
        for k, n in enumerate(crop_size)
    )
    exists = (indices >= 0) & (indices < len(image))
    own = np.asarray(image).astype(np.float64)[np.where(exists, indices, 0)]
    crops = np.einsum("nir,nrwc,njw->nijc", rows, own, columns)
    inside = in_rows[:, :, None] & in_columns[:, None] & exists[:, None, None]
    return np.where(inside[..., None], crops, fill)


def assert_close(found, expected, tolerance=2e-6):
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max())
    )


# Against others


@pytest.mark.parametrize("method", IN_PILLOW)
@pytest.mark.parametrize(("size", "crop_size"), [((50, 71), (7, 9)), ((9, 12), (20, 31)), ((1, 33), (3, 1))], ids=str)
def test_pillow(size, crop_size, method):
    """Of any box, far above and below the image's own size; of a value from 0 to 255."""
    image = np.random.default_rng(0).uniform(0, 255, size).astype(np.float32)
    corners = np.sort(np.random.default_rng(1).uniform(0, 1, (12, 2, 2)), axis=1).astype(np.float32)
    boxes = np.concatenate([corners.reshape(-1, 4), np.float32([[0, 0, 1, 1]])])
    crops = crop_and_resize(image[..., None], boxes, None, crop_size, method, align_corners=False, antialias=True)
    for crop, (y1, x1, y2, x2) in zip(crops, boxes.astype(float), strict=True):
        box = x1 * size[1], y1 * size[0], x2 * size[1], y2 * size[0]
        expected = PIL.Image.fromarray(image).resize(crop_size[::-1], IN_PILLOW[method], box=box)
        np.testing.assert_allclose(crop[..., 0], expected, rtol=0, atol=0.02)


@PAIRS
@methods
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("crop_size", [(7, 9), (40, 60)], ids=str)
def test_jax_image(crop_size, antialias, method):
    """`resize` of the whole image, `scale_and_translate` of a part."""
    image, box = random_image((23, 34, 3)), np.array([0.1, 0.25, 0.85, 0.875], np.float32)
    options = {"align_corners": False, "antialias": antialias}
    whole, part = crop_and_resize(image, np.stack([[0, 0, 1, 1], box]), None, crop_size, method, **options)
    scale = crop_size / ((box[2:] - box[:2]) * image.shape[:2])
    arguments = (0, 1), scale, -box[:2] * image.shape[:2] * scale, IN_JAX[method], antialias

    @jax.jit
    def expected(image):
        shape = *crop_size, 3
        resized = jax.image.resize(image, shape, IN_JAX[method], antialias=antialias)
        return resized, jax.image.scale_and_translate(image, shape, *arguments)

    jax.tree.map(lambda found, theirs: assert_close(found, theirs, 1e-5), (whole, part), expected(image))


# Against the formula


@PAIRS
@methods
@alignments
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("size", "crop_size"), [((30, 41), (7, 5)), ((1, 9), (4, 1))], ids=str)
def test_formula(size, crop_size, antialias, align_corners, method):
    """Of flipped and empty boxes and of boxes beyond the border, of images of one pixel and crops of one sample."""
    image = random_image((2, *size, 2))
    nowhere = np.float32([[np.nan, 0, 1, 1], [0, 0, np.inf, 1], [2, 2, 3, 3], [-3e38, 0.1, 3e38, 0.2]])
    boxes, indices = np.concatenate([BOXES, nowhere]), np.append(INDICES, [0, 1, 0, 1])
    options = {"align_corners": align_corners, "antialias": antialias}
    fill = np.float32([0.5, -2])
    found = crop_and_resize(image, boxes, indices, crop_size, method, fill, **options)
    assert_close(found, expected_crops(image, boxes, indices, crop_size, method, fill, **options))


@pytest.mark.parametrize("dtype", oracle.IMAGE_DTYPES)
def test_image_types(x64, dtype):
    image = random_image((2, 9, 8, 3), dtype)
    found = crop_and_resize(image, BOXES, INDICES, (4, 3), "cubic", antialias=True)
    assert found.dtype == np.float32
    expected = expected_crops(image, BOXES, INDICES, (4, 3), "cubic", antialias=True)
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_crop_types(x64, dtype):
    image = random_image((2, 9, 8, 3))
    found = crop_and_resize(image, BOXES, INDICES, (4, 3), "lanczos5", antialias=True, dtype=dtype)
    assert found.dtype == dtype
    expected = expected_crops(image, BOXES, INDICES, (4, 3), "lanczos5", antialias=True)
    assert_close(found, expected, {"float16": 1e-3, "bfloat16": 8e-3, "float64": 1e-13}[dtype])


def test_far_from_the_origin():
    """The fraction is as precise at pixel 100,000 as at the first."""
    image = random_image((1, 1, 100_003, 1))
    boxes = np.float32([[0, 0.99995, 0, 1]])
    found = crop_and_resize(image, boxes, np.zeros(1, int), (1, 9), "cubic")
    assert_close(found, expected_crops(image, boxes, np.zeros(1, int), (1, 9), "cubic"))


def crop(image, boxes, indices=None, **options):
    return crop_and_resize(image, boxes, indices, (4, 3), "cubic", 0.5, antialias=True, **options)


def test_call_forms():
    images, boxes = random_image((3, 9, 8, 2)), np.stack([BOXES, BOXES[::-1], 1 - BOXES])
    of_each = crop(images, boxes)
    for image, own, crops in zip(images, boxes, of_each, strict=True):
        assert_close(crop(image, own), crops)
    indices = np.repeat(np.arange(3), len(BOXES))
    assert_close(crop(images, boxes.reshape(-1, 4), indices).reshape(of_each.shape), of_each)


@jax.jit
def crops_and_gradients(image, boxes, indices):
    def total(*arguments):
        crops = crop(*arguments, indices)
        return jnp.sum(crops**2), crops

    return jax.value_and_grad(total, (0, 1), has_aux=True)(image, boxes)


@pytest.mark.parametrize("mapped", [(None, 0, None), (0, None, None), (0, 0, 0), (0, 0, None)], ids=str)
def test_vmap(mapped):
    """Of values and of gradients, of images, boxes and indices."""
    every = [np.stack([x, x[::-1]]) for x in (random_image((2, 9, 8, 2)), BOXES, INDICES)]
    arguments = [x if axis == 0 else x[0] for x, axis in zip(every, mapped, strict=True)]
    found = jax.jit(jax.vmap(crops_and_gradients, mapped))(*arguments)
    for k in range(2):
        alone = crops_and_gradients(*[x[k] if axis == 0 else x for x, axis in zip(arguments, mapped, strict=True)])
        jax.tree.map(lambda x, y: assert_close(x[k], y, 1e-5), found, alone)  # noqa: B023


def test_partitioned_by_xla():
    image = random_image((2, 9, 8, 2))
    assert_close(jax.jit(crop)(*on_a_mesh((image, BOXES, INDICES))), crop(image, BOXES, INDICES))


def test_strict_modes(strict_jax):
    arguments = random_image((2, 9, 8, 3)), jnp.asarray(BOXES), jnp.asarray(INDICES)
    gradients = jax.grad(lambda *arguments: crop(*arguments).sum(), (0, 1))(*arguments)
    assert all(map(np.any, gradients))


# Values


@EACH  # a kernel knows neither of alignment nor of stretching
@methods
@alignments
def test_constants_are_preserved(align_corners, method):
    ones = np.ones((2, 61, 47, 1), np.float32)
    for antialias in (False, True):
        crops = crop_and_resize(
            ones, BOXES, INDICES, (9, 11), method, 1.0, align_corners=align_corners, antialias=antialias
        )
        np.testing.assert_allclose(crops, np.ones_like(crops), rtol=0, atol=4e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_reach_only_samples_that_weigh_them(value):
    """And as the weighted sum does: infinities change their sign where weights are negative."""
    image = random_image((2, 21, 18, 1))
    image[:, 10, 9] = value
    for options in ({}, {"antialias": True}):
        found = np.asarray(crop_and_resize(image, BOXES, INDICES, (8, 9), "cubic", **options))
        marked = np.where(np.isfinite(image), 0, 1).astype(np.float32)
        weights = expected_crops(marked, BOXES, INDICES, (8, 9), "cubic", **options)
        finite = expected_crops(np.where(marked, 0, image), BOXES, INDICES, (8, 9), "cubic", **options)
        clear = np.abs(weights) > 1e-6
        assert np.any(clear)
        np.testing.assert_array_equal(found[clear], weights[clear] * value)
        assert_close(found[weights == 0], finite[weights == 0])


def test_bilinear_stretched_by_nothing_is_bilinear():
    image = random_image((2, 9, 8, 2))
    expected = crop_and_resize(image, BOXES, INDICES, (30, 40))
    assert_close(crop_and_resize(image, BOXES, INDICES, (30, 40), antialias=True), expected)


def test_nearest_has_no_kernel():
    with pytest.raises(ValueError, match="antialias=True needs a kernel"):
        crop_and_resize(np.ones((4, 4, 1), np.float32), BOXES, None, (2, 2), "nearest", antialias=True)


# Derivatives


def smooth(boxes):
    """Those of which no sample is close to where a slope jumps."""
    return boxes + np.float64([0.0123, 0.0345, 0.0567, 0.0789])


def sines(method, antialias):
    options = {"antialias": antialias, "align_corners": False, "dtype": "float64"}
    return jax.jit(
        lambda image, boxes, fill: jnp.sin(
            crop_and_resize(image, boxes, np.array([0, 1, 1, 0]), (3, 4), method, fill, **options)
        )
    )


PLACES = smooth(np.array([[0.1, 0.1, 0.7, 0.8], [0.8, 0.3, 0.1, 0.4], [-0.3, 0.2, 1.2, 0.9], [0.4, 0.4, 0.45, 0.5]]))


@EACH  # a kernel knows neither of alignment nor of stretching
@methods
@pytest.mark.parametrize("antialias", [False, True])
def test_derivatives(x64, antialias, method):
    """Against finite differences, forward and reverse."""
    arguments = random_image((2, 14, 11, 2), "float64"), PLACES, np.array([0.3, -0.4])
    check_grads(sines(method, antialias), arguments, 1, atol=1e-4, rtol=1e-4, eps=1e-6)


@EACH  # modes differ in what JAX does, not in kernels
@pytest.mark.parametrize("mode", ["fwd", "rev"])
@pytest.mark.parametrize(("method", "antialias"), [("cubic", True), ("lanczos3", False)])
def test_second_derivatives(x64, antialias, method, mode):
    """Of image and boxes, mixed ones included."""
    gradient = jax.jit(jax.grad(lambda *arguments: jnp.sum(sines(method, antialias)(*arguments)), (0, 1)))
    arguments = random_image((2, 14, 11, 2), "float64"), PLACES, np.array([0.3, -0.4])
    check_grads(gradient, arguments, 1, [mode], atol=1e-4, rtol=1e-4, eps=1e-6)


@methods
def test_slopes_of_kernels(x64, method):
    """The first and the second, but for whole numbers, where slopes may jump."""
    radius, expected = KERNELS[method]
    distances = np.linspace(0, radius, 20 * radius + 2)[1:-1] + 1e-3
    kernel = _kernels.KERNELS[method]

    @jax.jit
    @jax.vmap
    def found(x):
        return kernel(x), jax.grad(kernel)(x), jax.grad(jax.grad(kernel))(x)

    h = 1e-4
    behind, at, ahead = (expected(np.abs(distances + step)) for step in (-h, 0, h))
    for sign in (1, -1):
        value, slope, second = found(sign * distances)
        np.testing.assert_allclose(value, at, rtol=0, atol=1e-14)
        np.testing.assert_allclose(sign * slope, (ahead - behind) / (2 * h), rtol=0, atol=1e-6)
        np.testing.assert_allclose(second, (ahead - 2 * at + behind) / h**2, rtol=0, atol=1e-5)


def sum_of_squares(method, align_corners):
    return lambda image, boxes: jnp.sum(
        crop_and_resize(image, boxes, None, (5, 5), method, align_corners=align_corners, antialias=True) ** 2
    )


@EACH  # a kernel knows neither of alignment nor of stretching
@methods
@alignments
def test_derivatives_where_kernels_end(align_corners, method):
    """On pixels, at scales of 1, 2 and 3, outside and nowhere: finite, and 0 where nothing moves."""
    if align_corners:
        image, on_pixels = random_image((17, 17, 2)), [[0, 0.5, 0.25, 1], [1, 0.25, 0.25, 0.5]]
    else:
        image, on_pixels = random_image((16, 16, 2)), [[0, 1 / 32, 5 / 16, 21 / 32], [15 / 16, 1 / 4, 0, 9 / 16]]
    boxes = np.float32([*on_pixels, [2, 2, 3, 3], [np.nan, 0, 1, 1], [-3e38, 0, 3e38, 1]])

    @jax.jit
    def derivatives(*along):  # along something with no zeros: what is not finite anywhere reaches that
        return jax.jvp(jax.grad(sum_of_squares(method, align_corners), (0, 1)), (image, boxes), along)

    first, second = derivatives(1 + image, 0.5 + np.arange(20, dtype=np.float32).reshape(5, 4))
    assert all(np.all(np.isfinite(x)) for x in (*first, *second))
    assert not np.any(first[1][2:4])
    assert not np.any(second[1][2:4])


@EACH  # the pixel has all the weight, whatever the kernel
@pytest.mark.parametrize("method", ["bilinear", "lanczos3"])
@alignments
def test_derivatives_of_one_pixel(align_corners, method):
    """Which all samples show, wherever they are: crops move as it does, and as boxes do not at all."""
    image = random_image((1, 1, 2))
    boxes = np.float32([[0, 0, 1, 1], [0.25, 0, 0.75, 0.5], [0.5, 0.5, 0.5, 0.5]])
    total = sum_of_squares(method, align_corners)
    along = image + 1, boxes + 1
    first, second = jax.jit(lambda *at: jax.jvp(jax.grad(total, (0, 1)), at, along))(image, boxes)
    for of_image, expected in zip((first[0], second[0]), (image, image + 1), strict=True):
        assert_close(of_image, 2 * 3 * 25 * expected)
    for of_boxes in (first[1], second[1]):
        assert_close(of_boxes, np.zeros_like(boxes), 1e-5)


def test_slopes_on_pixels_are_those_of_bilinear():
    """Toward higher indices, and on the last pixel toward the inside."""
    image = random_image((5, 5, 2))
    boxes = np.float32([[0, 0, 1, 1], [1, 0.25, 0, 0.75]])

    def gradient(antialias):
        def total(boxes):
            return jnp.sum(crop_and_resize(image, boxes, None, (5, 5), antialias=antialias) ** 2)

        return jax.grad(total)(boxes)

    assert_close(gradient(True), np.asarray(gradient(False)), 1e-5)


# A CPU's program


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("size", "crop_size"),
    [
        ((9, 9, 1024), (60, 60)),
        ((4, 4, 2**14), (2, 3)),
        ((4, 4, 70000), (2, 3)),
        ((3, 9, 3), (2, 30000)),
        ((3, 9, 3), (30000, 2)),
        ((1500, 2000, 3), (4, 4)),
        ((2, 100_000, 3), (3, 3)),
        ((100_000, 2, 3), (3, 3)),
        ((1, 200, 40), (7, 600)),
        ((1, 1, 1), (1, 1)),
        ((5, 1, 1), (1, 3)),
    ],
    ids=str,
)
def test_shapes_that_are_hard_to_compile(size, crop_size, count):
    """Whatever is large, XLA would run on several threads; of what is 1, arguments fall out of use."""
    ones, boxes = np.ones((1, *size), np.float32), np.float32([[0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]])[:count]
    crops = crop_and_resize(ones, boxes, np.zeros(count, int), crop_size, "cubic", antialias=True)
    np.testing.assert_allclose(crops, np.ones_like(crops), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerances"), [("float32", {"float32": 2e-5}), ("bfloat16", {"float32": 2e-5, "bfloat16": 1e-2})]
)
def test_bands_are_taken_on_a_cpu_and_equal_products(dtype, tolerances, monkeypatch):
    """Values, gradients, forward mode and the second derivative along a direction in image and boxes."""
    image, boxes = random_image((2, 12, 9, 3), dtype), smooth(np.abs(BOXES)).astype(np.float32)

    def found(of_crops):
        def total(image, boxes):
            crops = crop(image, boxes, INDICES, dtype=of_crops).astype(jnp.float32)
            return jnp.sum(crops**2), crops

        def everything(image, boxes):
            gradient = jax.grad(total, (0, 1), has_aux=True)
            # An image of 16 bits stays: how its gradient moves would be a sum of two that are rounded.
            moves = image if dtype == "float32" else jnp.zeros_like(image)
            return jax.jvp(gradient, (image, boxes), (moves, boxes + 1))

        program = jax.jit(everything).lower(image, boxes).compile()
        return "xla_cpu_small_call" in program.as_text(), program(image, boxes)

    by_bands = {of_crops: found(of_crops) for of_crops in tolerances}
    monkeypatch.setattr(bands, "can_compile", lambda shape: False)
    jax.clear_caches()
    is_by_bands, by_products = found("float32")
    assert not is_by_bands
    for of_crops, tolerance in tolerances.items():
        is_by_bands, results = by_bands[of_crops]
        assert is_by_bands
        for result, expected in zip(jax.tree.leaves(results), jax.tree.leaves(by_products), strict=True):
            assert_close(result, np.asarray(expected, np.float64), tolerance)
