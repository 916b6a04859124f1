"""Bad arguments raise while tracing: the message names the argument, shows what came and says what is expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_crop import crop_and_resize

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
    "image of rank 5": ({"image": np.ones((1, 3, 6, 9, 2))}, ValueError, ["image", "(1, 3, 6, 9, 2)", "[B, H, W, C]"]),
    "image without height": ({"image": np.ones((3, 0, 9, 2))}, ValueError, ["image", "(3, 0, 9, 2)", "one pixel"]),
    "image without width": ({"image": np.ones((3, 6, 0, 2))}, ValueError, ["image", "(3, 6, 0, 2)", "one pixel"]),
    "image of too long rows": (
        {"image": np.broadcast_to(np.uint8(0), (1, 1, 2**30, 2))},
        ValueError,
        ["image", str(2**30), "fewer than 2^31 values in a row"],
    ),
    "complex image": ({"image": np.ones((3, 6, 9, 2), np.complex64)}, TypeError, ["image", "complex64", "floating"]),
    "boolean image": ({"image": np.ones((3, 6, 9, 2), bool)}, TypeError, ["image", "bool", "integer"]),
    "image that is none": ({"image": "photo.png"}, TypeError, ["image", "integer or floating"]),
    "ragged image": ({"image": [[1, 2], [3]]}, TypeError, ["image", "unequal parts [2, 1]"]),
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
    "crop of one number": ({"crop_size": 4}, TypeError, ["crop_size", "4", "pair of integers"]),
    "crop of one size": ({"crop_size": (4,)}, TypeError, ["crop_size", "(4,)", "pair of integers"]),
    "crop of three sizes": ({"crop_size": (4, 5, 2)}, TypeError, ["crop_size", "(4, 5, 2)", "pair of integers"]),
    "fractional crop": ({"crop_size": (4.0, 5)}, TypeError, ["crop_size", "(4.0, 5)", "pair of integers"]),
    "no crop size": ({"crop_size": None}, TypeError, ["crop_size", "None", "pair of integers"]),
    "more samples than can be counted": ({"crop_size": (4, 2**30)}, ValueError, ["crop_size", f"{2**30}", "below"]),
    "unknown method": ({"method": "bicubic"}, ValueError, ["method", "'bicubic'", "'bilinear'", "'nearest'"]),
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
    "no fill": ({"extrapolation_value": None}, TypeError, ["extrapolation_value", "None"]),
    "integer crops": ({"dtype": "uint8"}, TypeError, ["dtype", "uint8", "floating"]),
    "complex crops": ({"dtype": "complex64"}, TypeError, ["dtype", "complex64", "floating"]),
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


@pytest.mark.parametrize("crop_size", [np.array([4, 5]), (np.array(4), 5), [4, np.array(5)]])
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
