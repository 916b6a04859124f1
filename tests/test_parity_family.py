"""The family beside its originals: ROIAlign and crops in ONNX Runtime, half-pixel resizing in JAX and in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import jax_crop
from jax_crop import _geometry
from tests import oracle
from tests.conftest import OPTIMIZED, PAIRS
from tests.lattices import of_all_sizes

pytestmark = OPTIMIZED

SIZE = (13, 17)
MOST = 8  # samples of a bin, of the boxes below

# ROIAlign


@functools.cache
def onnx_session(output_size, spatial_scale, sampling_ratio, aligned):
    """A graph of one RoiAlign of opset 16."""
    node = helper.make_node(
        "RoiAlign",
        ["features", "boxes", "box_indices"],
        ["pooled"],
        output_height=output_size[0],
        output_width=output_size[1],
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )
    types = {"features": TensorProto.FLOAT, "boxes": TensorProto.FLOAT, "box_indices": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, type_, None) for name, type_ in types.items()]
    output = helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "roi_align", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def onnx_roi_align(features, boxes, box_indices, output_size, spatial_scale, sampling_ratio, aligned):
    """With this library's layout: ``[B, H, W, C]``, ``[y1, x1, y2, x2]``."""
    session = onnx_session(output_size, spatial_scale, sampling_ratio, aligned)
    arguments = {
        "features": np.ascontiguousarray(features.transpose(0, 3, 1, 2)),
        "boxes": np.ascontiguousarray(boxes[:, [1, 0, 3, 2]]),
        "box_indices": box_indices.astype(np.int64),
    }
    return session.run(None, arguments)[0].transpose(0, 2, 3, 1)


def some_boxes(rng, n, size):
    """In the map, partly and wholly outside, around it; without height, width or both, and thinner than a pixel."""
    extent = np.tile(size, 2)
    inside, partly = rng.uniform(0, 1, (n, 4)) * extent, rng.uniform(-0.2, 1.2, (n, 4)) * extent
    beyond = rng.uniform(0, 1, (n, 4)) * extent + rng.choice([-2, 0, 2], (n, 1)) * extent
    thin = np.tile(inside[:, :2], 2) + rng.choice([0, 1e-3, 0.5], (n, 4)) * [0, 0, 1, 1]
    boxes = np.concatenate([inside, partly, beyond, thin, [[-3.3, -2.6, 14.8, 20.7], [0, 0, *size]]])
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


@pytest.mark.parametrize("aligned", [True, False], ids=["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize(
    ("spatial_scale", "sampling_ratio"), [(1.0, 2), (0.25, 2), (0.3, 1), (0.7, 3), (1 / 16, 0), (0.3, 0)]
)
def test_roi_align_is_onnx_runtimes(spatial_scale, sampling_ratio, aligned):
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 1, (2, *SIZE, 5)).astype(np.float32)
    boxes = (some_boxes(rng, 100, SIZE) / spatial_scale).astype(np.float32)
    indices = rng.integers(0, 2, len(boxes))
    rule = {"sampling_ratio": sampling_ratio, "max_sampling_ratio": MOST if sampling_ratio == 0 else None}
    pooled = np.asarray(
        jax_crop.roi_align(features, boxes, indices, (3, 3), spatial_scale=spatial_scale, aligned=aligned, **rule)
    )
    theirs = onnx_roi_align(features, boxes, indices, (3, 3), spatial_scale, sampling_ratio, aligned)
    assert np.any(theirs == 0, axis=(1, 2, 3)).sum() > 50  # boxes that reach beyond the border
    if aligned and sampling_ratio == 0:
        # A box without height or width has no sample; to ONNX Runtime, the rounding of scaled edges may give it some.
        empty = np.any(boxes[:, :2] == boxes[:, 2:], axis=1)
        assert not np.any(pooled[empty])
        pooled, theirs = pooled[~empty], theirs[~empty]
    np.testing.assert_allclose(pooled, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [1, 2])
def test_flipped_boxes_are_onnx_runtimes(sampling_ratio):
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 1, (2, *SIZE, 5)).astype(np.float32)
    boxes = some_boxes(rng, 20, SIZE)[:, [2, 1, 0, 3]].astype(np.float32)
    indices = rng.integers(0, 2, len(boxes))
    pooled = jax_crop.roi_align(features, boxes, indices, (3, 2), sampling_ratio=sampling_ratio)
    theirs = onnx_roi_align(features, boxes, indices, (3, 2), 1.0, sampling_ratio, True)
    np.testing.assert_allclose(pooled, theirs, rtol=0, atol=1e-5)


# Corner-aligned crops

CROP_SIZE = (3, 6)


def onnx_crop(image, box, crop_size, method, fill):
    """One box of one image ``[H, W, C]``: Resize of opset 19, whose regions are TensorFlow's boxes."""
    sizes = np.array([*crop_size, image.shape[2]], np.int64)
    region = np.float32([*box[:2], 0, *box[2:], 1])  # all channels
    node = helper.make_node(
        "Resize",
        ["image", "region", "", "sizes"],
        ["crop"],
        mode={"bilinear": "linear", "nearest": "nearest"}[method],
        nearest_mode="round_prefer_ceil",
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=fill,
    )
    types = {"image": TensorProto.FLOAT, "region": TensorProto.FLOAT, "sizes": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, type_, None) for name, type_ in types.items()]
    output = helper.make_tensor_value_info("crop", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "resize", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image, "region": region, "sizes": sizes})[0]


@PAIRS
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", [(5, 7, 2), (4, 1, 2), (1, 4, 2), (1, 1, 2)])
@pytest.mark.parametrize("box", [[0.13, -0.5, 0.92, 1.5], [-0.3, 0.21, 0.8, 0.73], [0.87, 5, 0.16, 3]])
def test_corner_aligned_crops_are_onnx_runtimes(shape, box, method):
    """Along an axis of one pixel, too, which every coordinate reads.

    Where image and crop have one size, ONNX Runtime does not look at the box.
    """
    image = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    box = np.float32(box)[[1, 0, 3, 2]] if shape[0] == 1 else np.float32(box)
    theirs = onnx_crop(image, box, CROP_SIZE, method, -7.0)
    ours = jax_crop.crop_and_resize(image, box[None], None, CROP_SIZE, method, -7.0)[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert 1 in shape or np.any(theirs == -7)


# Whole images with half-pixel alignment

WHOLE = np.float32([[0, 0, 1, 1]])
LARGEST = 64
PARTS = np.cumsum([0, *range(1, LARGEST + 1)])  # where the samples of each crop size begin in a row of all of them


def crop(image, crop_size):
    return jax_crop.crop_and_resize(image, WHOLE, None, crop_size, align_corners=False)[0]


def torch_resize(image, size):
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    resized = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=False)
    return resized[0].numpy().transpose(1, 2, 0)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def jax_resize_to_all_heights(image):
    """``[n - 1, a]``: row ``a`` of the image resized to ``n`` rows, as by `jax.image.resize` with a traced scale."""

    def to_height(n):
        scale = jnp.asarray([n / image.shape[0]])
        shape = (LARGEST, *image.shape[1:])
        return jax.image.scale_and_translate(image, shape, (0,), scale, jnp.zeros(1), "linear", antialias=False)

    return jax.lax.map(to_height, jnp.arange(1.0, LARGEST + 1))


@pytest.fixture
def all_crop_sizes_at_once(monkeypatch):
    """Makes the samples of a crop of ``PARTS[-1]`` pixels those of the crops of 1, of 2, ... 64, one after the other.

    All else here is the library's own doing.
    """
    centres = _geometry.centres

    def joined(size, samples):
        return of_all_sizes(centres, size, LARGEST) if samples == PARTS[-1] else centres(size, samples)

    monkeypatch.setattr(_geometry, "centres", joined)


@pytest.mark.parametrize("height", range(1, LARGEST // 2 + 1))
def test_whole_image_is_a_resize_for_all_pairs_of_sizes(height, all_crop_sizes_at_once):
    """An image of ``height`` by ``65 - height`` pixels to every number of rows, and of columns, from 1 to 64."""
    width = LARGEST + 1 - height
    image = np.random.default_rng(height).uniform(0, 1, (height, width, 1)).astype(np.float32)
    crops = np.asarray(crop(image, (int(PARTS[-1]), int(PARTS[-1]))))
    to_heights = np.asarray(jax_resize_to_all_heights(image))
    to_widths = np.asarray(jax_resize_to_all_heights(image.transpose(1, 0, 2))).transpose(0, 2, 1, 3)
    same_height, same_width = (slice(PARTS[n - 1], PARTS[n]) for n in image.shape[:2])
    np.testing.assert_array_equal(crops[same_height, same_width], image)
    for n, part in enumerate(map(slice, PARTS[:-1], PARTS[1:]), start=1):
        np.testing.assert_allclose(crops[part, part], torch_resize(image, (n, n)), rtol=0, atol=1e-5)
        np.testing.assert_allclose(crops[part, same_width], to_heights[n - 1, :n], rtol=0, atol=1e-5)
        np.testing.assert_allclose(crops[same_height, part], to_widths[n - 1, :, :n], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "crop_size"),
    [
        ((1, 1), (3, 64)),
        ((1, 64), (64, 1)),
        ((2, 3), (1, 2)),
        ((7, 63), (64, 6)),
        ((8, 31), (14, 62)),
        ((64, 33), (63, 5)),
    ],
)
def test_whole_image_is_a_resize(size, crop_size):
    """To the letter: by the public functions of all three, and by rational positions."""
    image = np.random.default_rng(0).uniform(0, 1, (*size, 3)).astype(np.float32)
    crops = crop(image, crop_size)
    exact = oracle.crop_and_resize(image[None], WHOLE, [0], crop_size, align_corners=False)[0]
    np.testing.assert_allclose(crops, exact, rtol=0, atol=3e-7)
    theirs = jax.image.resize(image, (*crop_size, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(crops, theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(crops, torch_resize(image, crop_size), rtol=0, atol=1e-5)


# Antialiased resizing in PyTorch


@pytest.mark.parametrize("crop_size", [(7, 9), (40, 60)], ids=str)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_antialiased_resizing(method, crop_size):
    image = np.random.default_rng(0).uniform(-1, 1, (2, 23, 34, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(image).permute(0, 3, 1, 2), crop_size, mode=method, antialias=True
    )
    whole = np.float32([[[0, 0, 1, 1]]] * 2)
    crops = jax_crop.crop_and_resize(image, whole, None, crop_size, method, align_corners=False, antialias=True)
    np.testing.assert_allclose(crops[:, 0], expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-5)
