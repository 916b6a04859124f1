"""Bad arguments raise while tracing: the message names the argument, shows what came and says what is expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_crop import crop_and_resize, multilevel_roi_align, roi_align

GOOD = {
    "image": np.ones((3, 6, 9, 2), np.float32),
    "boxes": np.zeros((5, 4), np.float32),
    "box_indices": np.zeros(5, np.int32),
    "crop_size": (4, 5),
}
ARRAYS = ("image", "boxes", "box_indices", "extrapolation_value")

# The arguments that differ from good ones; the error; what its message holds.
CASES = {
    "image without channels": ({"image": np.ones((6, 9))}, ValueError, ["image", "(6, 9)", "[B, H, W, C]"]),
    "image of rank 5": (
        {"image": np.ones((1, 3, 6, 9, 2))},
        ValueError,
        ["image", "(1, 3, 6, 9, 2)", "[B, H, W, C]", "fold the time", "image.reshape(-1, *image.shape[2:])"],
    ),
    "image without height": ({"image": np.ones((3, 0, 9, 2))}, ValueError, ["image", "(3, 0, 9, 2)", "one pixel"]),
    "image without width": ({"image": np.ones((3, 6, 0, 2))}, ValueError, ["image", "(3, 6, 0, 2)", "one pixel"]),
    "image of too long rows": (
        {"image": np.broadcast_to(np.uint8(0), (1, 1, 2**30, 2))},
        ValueError,
        ["image", str(2**30), "fewer than 2^31 values in a row"],
    ),
    "complex image": ({"image": np.ones((3, 6, 9, 2), np.complex64)}, TypeError, ["image", "complex64", "floating"]),
    "boolean image": (
        {"image": np.ones((3, 6, 9, 2), bool)},
        TypeError,
        ["image", "bool", "integer", "masks, .astype"],
    ),
    "image that is none": ({"image": "photo.png"}, TypeError, ["image", "integer or floating"]),
    "ragged image": ({"image": [[1, 2], [3]]}, TypeError, ["image", "unequal parts [(2,), (1,)]"]),
    "images of two sizes": (
        {"image": [np.ones((6, 9, 2)), np.ones((5, 9, 2))]},
        TypeError,
        ["image", "unequal parts [(6, 9, 2), (5, 9, 2)]", "pad"],
    ),
    "ragged boxes": (
        {"boxes": [[[0, 0, 1, 1]], [[0, 0, 1, 1], [0, 0, 1, 0.5]]], "box_indices": None},
        TypeError,
        ["boxes", "unequal parts [(1, 4), (2, 4)]", "pad", "with NaN", "box_indices with -1"],
    ),
    "ragged boxes of arrays": (
        {"boxes": [np.zeros((1, 4), np.float32), np.zeros((2, 4), np.float32)], "box_indices": None},
        TypeError,
        ["boxes", "unequal parts [(1, 4), (2, 4)]", "with NaN"],
    ),
    "ragged boxes, a box itself ragged": (
        {"boxes": [[0, 0, 1, 1], [[0], [0, 1]]]},
        TypeError,
        ["boxes", "unequal parts [(4,), 2]"],
    ),
    "boxes of 3 columns": ({"boxes": np.zeros((5, 3), np.float32)}, ValueError, ["boxes", "(5, 3)", "[N, 4]"]),
    "one box": ({"boxes": np.zeros(4, np.float32)}, ValueError, ["boxes", "(4,)", "[N, 4]"]),
    "boxes of rank 4": ({"boxes": np.zeros((1, 1, 5, 4), np.float32)}, ValueError, ["boxes", "(1, 1, 5, 4)", "[N, 4]"]),
    "integer boxes": ({"boxes": np.zeros((5, 4), np.int32)}, TypeError, ["boxes", "int32", "floating", "normalize"]),
    "complex boxes": ({"boxes": np.zeros((5, 4), np.complex64)}, TypeError, ["boxes", "complex64", "floating"]),
    "no boxes": ({"boxes": None}, TypeError, ["boxes", "None"]),
    "fewer indices": ({"box_indices": np.zeros(4, int)}, ValueError, ["box_indices", "(4,)", "(5, 4)", "one index"]),
    "indices of rank 2": ({"box_indices": np.zeros((5, 1), int)}, ValueError, ["box_indices", "(5, 1)", "[N]"]),
    "one index": ({"box_indices": 0}, ValueError, ["box_indices", "()", "[N]"]),
    "floating indices": ({"box_indices": np.zeros(5, np.float32)}, TypeError, ["box_indices", "float32", "integer"]),
    "boolean indices": ({"box_indices": np.zeros(5, bool)}, TypeError, ["box_indices", "bool", "integer"]),
    "no indices": ({"box_indices": None}, ValueError, ["box_indices", "None", "(3, 6, 9, 2)", "(5, 4)", "[N]"]),
    "indices for one image": ({"image": np.ones((6, 9, 2))}, ValueError, ["box_indices", "(6, 9, 2)", "(5,)", "None"]),
    "indices for boxes of each image": (
        {"boxes": np.zeros((3, 5, 4), np.float32)},
        ValueError,
        ["box_indices", "(3, 5, 4)", "(5,)", "None"],
    ),
    "boxes of other images": (
        {"boxes": np.zeros((2, 5, 4), np.float32), "box_indices": None},
        ValueError,
        ["box_indices", "(3, 6, 9, 2)", "(2, 5, 4)", "[B, N, 4]"],
    ),
    "boxes of each image, one image": (
        {"image": np.ones((6, 9, 2)), "boxes": np.zeros((3, 5, 4), np.float32), "box_indices": None},
        ValueError,
        ["box_indices", "(6, 9, 2)", "(3, 5, 4)", "[H, W, C]"],
    ),
    "empty crop": ({"crop_size": (4, 0)}, ValueError, ["crop_size", "(4, 0)", "positive"]),
    "negative crop": ({"crop_size": (-4, 5)}, ValueError, ["crop_size", "(-4, 5)", "positive"]),
    "crop of no pixels": ({"crop_size": 0}, ValueError, ["crop_size", "got 0", "positive", "one integer for a square"]),
    "crop of a fraction": ({"crop_size": 4.0}, TypeError, ["crop_size", "got 4.0", "one integer for a square"]),
    "crop size in words": ({"crop_size": "4"}, TypeError, ["crop_size", "got '4'", "pair of integers"]),
    "nested crop size": ({"crop_size": ((4, 5), 3)}, TypeError, ["crop_size", "((4, 5), 3)", "pair of integers"]),
    "crop of one size": ({"crop_size": (4,)}, TypeError, ["crop_size", "(4,)", "pair of integers"]),
    "crop of three sizes": ({"crop_size": (4, 5, 2)}, TypeError, ["crop_size", "(4, 5, 2)", "pair of integers"]),
    "fractional crop": ({"crop_size": (4.0, 5)}, TypeError, ["crop_size", "(4.0, 5)", "pair of integers"]),
    "no crop size": ({"crop_size": None}, TypeError, ["crop_size", "None", "pair of integers"]),
    "more samples than can be counted": ({"crop_size": (4, 2**30)}, ValueError, ["crop_size", f"{2**30}", "below"]),
    "unknown method": ({"method": "area"}, ValueError, ["method", "'area'", "'bilinear'", "'nearest'", "'cubic'"]),
    "no method": ({"method": None}, ValueError, ["method", "None", "'bilinear'", "'nearest'"]),
    "fill of other channels": (
        {"extrapolation_value": np.zeros(3)},
        ValueError,
        ["extrapolation_value", "(3,)", "2 channels", "scalar"],
    ),
    "fill of one channel": (
        {"extrapolation_value": np.zeros(1)},
        ValueError,
        ["extrapolation_value", "(1,)", "scalar"],
    ),
    "fill of rank 2": (
        {"extrapolation_value": np.zeros((1, 2))},
        ValueError,
        ["extrapolation_value", "(1, 2)", "scalar"],
    ),
    "complex fill": ({"extrapolation_value": np.array(1j)}, TypeError, ["extrapolation_value", "complex", "floating"]),
    "boolean fill": ({"extrapolation_value": np.array(True)}, TypeError, ["extrapolation_value", "bool", "floating"]),
    "wide fill": (
        {"extrapolation_value": 2**70},
        TypeError,
        ["extrapolation_value", "64 bits", "11805916"],
    ),
    "no fill": ({"extrapolation_value": None}, TypeError, ["extrapolation_value", "None"]),
    "integer crops": ({"dtype": "uint8"}, TypeError, ["dtype", "uint8", "floating"]),
    "complex crops": ({"dtype": "complex64"}, TypeError, ["dtype", "complex64", "floating"]),
    "crops of no type": ({"dtype": None}, TypeError, ["dtype", "None", "floating", "leave it out for float32"]),
    "crops of an unknown type": ({"dtype": "half-float"}, TypeError, ["dtype", "'half-float'", "floating"]),
    "crops of Python's integers": ({"dtype": int}, TypeError, ["dtype", "int64", "floating"]),
    "float64 crops": ({"dtype": "float64"}, ValueError, ["dtype", "float64", "jax_enable_x64"]),
}
every_case = pytest.mark.parametrize(("changes", "error", "fragments"), CASES.values(), ids=CASES)


@every_case
def test_error(changes, error, fragments):
    with pytest.raises(error) as raised:
        crop_and_resize(**GOOD | changes)
    for fragment in fragments:
        assert fragment in str(raised.value)


@every_case
def test_error_while_tracing(changes, error, fragments):
    """The same of arrays that are traced: nothing is left to find when the data comes."""
    arguments = GOOD | changes
    traced = {name: arguments.pop(name) for name in ARRAYS if isinstance(arguments.get(name), np.ndarray)}
    with pytest.raises(error) as raised:
        jax.eval_shape(lambda traced: crop_and_resize(**traced, **arguments), traced)
    for fragment in fragments:
        assert fragment in str(raised.value) or fragment == "complex"  # NumPy's complex128 is JAX's complex64


@pytest.mark.parametrize("name", ["align_corners", "antialias"])
def test_traced_flag(name):
    with pytest.raises(TypeError, match=rf"^{name} must be known while tracing, got .*Tracer.*static_argnames"):
        jax.jit(lambda value: crop_and_resize(**GOOD, **{name: value}))(True)


@pytest.mark.parametrize("crop_size", [np.array([4, 5]), (np.array(4), 5), [4, np.array(5)], 4])
def test_traced_crop_size(crop_size):
    with pytest.raises(TypeError, match=r"^crop_size must be known while tracing, got .*Tracer.*static_argnames"):
        jax.jit(lambda crop_size: crop_and_resize(**GOOD | {"crop_size": crop_size}))(crop_size)


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        crop_and_resize(*GOOD.values(), "bilinear", 0.0, True)


def test_good_arguments_are_good():
    """The cases fail for what they change alone."""
    assert crop_and_resize(**GOOD).shape == (5, 4, 5, 2)
    assert crop_and_resize(**GOOD | {"boxes": jnp.zeros((5, 4), jnp.bfloat16)}).dtype == jnp.float32
    assert crop_and_resize(**GOOD | {"crop_size": 4}).shape == (5, 4, 4, 2)
    assert crop_and_resize(**GOOD | {"crop_size": np.int64(4)}).shape == (5, 4, 4, 2)


def test_python_float_is_jax_default(with_and_without_x64):
    assert crop_and_resize(**GOOD | {"dtype": float}).dtype == jnp.zeros(0, float).dtype


# Boxes in pixels, that cannot be normalized ones.
PIXELS = {
    "a list": [[120, 150, 345, 380]],
    "of floats": [[120.0, 150.0, 345.0, 380.0]],
    "tuples": ((120, 150, 345, 380), (0, 10, 20, 40)),
    "the whole image": [[0, 0, 239, 319]],
    "flipped": [[239, 0, 0, 319]],
    "padded with zeros": [[120, 150, 345, 380], [0, 0, 0, 0]],
    "padded with NaN": [[120, 150, 345, 380], [np.nan] * 4],
    "float32": np.float32([[120, 150, 345, 380]]),
    "float64": np.float64([[120, 150, 345, 380]]),
    "of each image": np.float32([[[120, 150, 345, 380]], [[5, 7, 200, 30]]]),
}
# Boxes that are normalized, or may be, for all that their numbers tell.
NORMALIZED = {
    "the whole image": [[0, 0, 1, 1]],
    "flipped": [[1, 1, 0, 0]],
    "around the image": [[-1, -1, 2, 2]],
    "far around the image": [[-20, -20, 21, 21]],
    "up to 3, and to 10": [[0, 0, 3, 3], [2, 2, 10, 10]],
    "not whole": [[0, 0, 20, 20.5]],
    "some whole images": [[0, 0, 1, 1], [5, 5, 30, 30]],
    "padding far away": [[0, 0, 1, 1], [1e6, 1e6, 1e6, 1e6]],
    "padding alone": [[99, 99, 99, 99]],
    "not finite": [[np.nan, 0, np.inf, 50]],
    "huge": [[-3e38, -3e38, 3e38, 3e38]],
    "none": np.zeros((0, 4)),
}


@pytest.mark.parametrize("boxes", PIXELS.values(), ids=PIXELS)
def test_pixels_are_refused(boxes):
    image = np.ones((2, 400, 400, 1), np.uint8)
    box_indices = None if np.ndim(boxes) == 3 else np.zeros(len(boxes), int)
    with pytest.raises(
        ValueError, match=r"^boxes must be normalized, .*got .*\[\d+, \d+, \d+, \d+\].*boxes\.normalize"
    ):
        crop_and_resize(image, boxes, box_indices, 112)


@pytest.mark.parametrize("boxes", NORMALIZED.values(), ids=NORMALIZED)
def test_normalized_boxes_are_not_taken_for_pixels(boxes):
    assert crop_and_resize(np.ones((9, 9, 1)), boxes, None, 2).shape == (len(boxes), 2, 2, 1)


@pytest.mark.parametrize("place", [lambda crop: lambda boxes: crop(jnp.asarray(boxes)), jax.jit], ids=["device", "jit"])
def test_pixels_that_only_the_data_tells_are_fill(place):
    """To look at an array on a device would be to wait for it, and to fetch it."""
    crops = place(lambda boxes: crop_and_resize(jnp.ones((400, 400, 1)), boxes, None, 2))(PIXELS["float32"])
    assert not np.any(crops)


def test_roi_align_takes_pixels():
    assert np.all(roi_align(np.ones((400, 400, 1)), PIXELS["a list"], None, 2) == 1)


# What the options of pooling are given; the error; what its message holds.
POOLING = {
    "bins of no number": (roi_align, {"output_size": 0}, ValueError, ["output_size", "got 0", "for a square"]),
    "video": (
        roi_align,
        {"features": np.ones((2, 3, 6, 9, 2))},
        ValueError,
        ["features", "(2, 3, 6, 9, 2)", "fold the time", "features.reshape(-1, *features.shape[2:])"],
    ),
    "ragged boxes": (
        roi_align,
        {"boxes": [[[0, 0, 1, 1]], [[0, 0, 1, 1]] * 2]},
        TypeError,
        ["boxes", "[(1, 4), (2, 4)]", "NaN"],
    ),
    "a float of samples": (roi_align, {"sampling_ratio": 0.0}, TypeError, ["sampling_ratio", "integer", "got 0.0"]),
    "scales of a pyramid": (
        roi_align,
        {"spatial_scale": (1 / 4, 1 / 8)},
        ValueError,
        ["spatial_scale", "positive number", "(0.25, 0.125)", "multilevel_roi_align", "strides=1 / scale"],
    ),
    "a boolean scale": (roi_align, {"spatial_scale": np.array(True)}, ValueError, ["spatial_scale", "True"]),
    "scales for strides": (
        multilevel_roi_align,
        {"strides": [1 / 4, 1 / 8]},
        ValueError,
        ["strides", "2 powers of two", "[0.25, 0.125]", "look like scales", "1 / scale"],
    ),
    "a gap": (
        multilevel_roi_align,
        {"strides": (4, 16)},
        ValueError,
        ["strides", "each twice the one before", "(4, 16)", "between others", "no map"],
    ),
    "one stride": (multilevel_roi_align, {"strides": 8}, ValueError, ["strides", "2 powers of two", "got 8"]),
    "strides in words": (multilevel_roi_align, {"strides": "4, 8"}, ValueError, ["strides", "'4, 8'"]),
    "a level in words": (
        multilevel_roi_align,
        {"canonical_level": "4"},
        TypeError,
        ["canonical_level", "integer", "'4'"],
    ),
    "a level for each map": (
        multilevel_roi_align,
        {"canonical_level": (4, 5)},
        TypeError,
        ["canonical_level", "integer", "(4, 5)"],
    ),
    "many truths": (roi_align, {"aligned": [True, False]}, TypeError, ["aligned", "True or False", "[True, False]"]),
    "a stride that is no number": (multilevel_roi_align, {"strides": [np.nan, 8]}, ValueError, ["strides", "nan"]),
}
MAP = np.ones((6, 9, 2), np.float32)


def pool(operation, **changes):
    features = MAP if operation is roi_align else [MAP, MAP]
    arguments = {"features": features, "boxes": np.ones((5, 4), np.float32), "box_indices": None, "output_size": 2}
    return operation(**arguments | changes)


@pytest.mark.parametrize(("operation", "changes", "error", "fragments"), POOLING.values(), ids=POOLING)
def test_error_of_pooling(operation, changes, error, fragments):
    with pytest.raises(error) as raised:
        pool(operation, **changes)
    for fragment in fragments:
        assert fragment in str(raised.value)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (roi_align, "spatial_scale"),
        (roi_align, "sampling_ratio"),
        (roi_align, "aligned"),
        (multilevel_roi_align, "strides"),
        (multilevel_roi_align, "canonical_level"),
        (multilevel_roi_align, "canonical_size"),
    ],
)
def test_options_of_pooling_are_static(operation, name):
    with pytest.raises(TypeError, match=rf"^{name} must be known while tracing, got .*Tracer.*static_argnames"):
        jax.jit(lambda value: pool(operation, **{name: value}))(np.array(2))


@pytest.mark.parametrize("array", [np.float32, np.array, jnp.asarray, jnp.bfloat16])
def test_scale_as_an_array(array):
    np.testing.assert_array_equal(pool(roi_align, spatial_scale=array(0.25)), pool(roi_align, spatial_scale=0.25))


@pytest.mark.parametrize("array", [np.array, jnp.asarray, list, lambda strides: np.array(strides, np.float32)])
def test_strides_as_an_array(array):
    expected = pool(multilevel_roi_align, strides=(8, 16))
    np.testing.assert_array_equal(pool(multilevel_roi_align, strides=array((8, 16))), expected)


def test_numbers_of_samples_as_arrays():
    expected = pool(roi_align, sampling_ratio=0, max_sampling_ratio=3)
    found = pool(roi_align, sampling_ratio=np.array(0), max_sampling_ratio=np.int64(3))
    np.testing.assert_array_equal(found, expected)
