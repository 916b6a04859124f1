"""Pasted masks, as the example and its page paste them, against Detectron2's rule on PyTorch's `grid_sample`."""

import importlib.util
import inspect
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from jax_crop import boxes, crop_and_resize

ROOT = Path(__file__).parent.parent
IMAGE_SIZE = (200, 320)
RNG = np.random.default_rng(0)


def some_boxes(count):
    """In pixels; some are partly beyond the image, and some have edges on centres of pixels."""
    centres = RNG.uniform(0, IMAGE_SIZE, (count, 2))
    sides = np.exp(RNG.uniform(np.log(5), np.log(250), (count, 2)))
    in_pixels = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    in_pixels[::4] = np.floor(in_pixels[::4]) + 0.5
    return in_pixels.astype(np.float32)


def ellipses(in_pixels):
    """Soft masks `[N, 28, 28]`, some of which are cut off by their boxes."""
    y, x = (np.mgrid[:28, :28] - 13.5)[..., None]
    radii = RNG.uniform(8, 18, (2, len(in_pixels)))
    return np.moveaxis(1 / (1 + np.exp(10 * (np.hypot(y / radii[0], x / radii[1]) - 1))), -1, 0).astype(np.float32)


BOXES = some_boxes(60)
MASKS = {
    "ellipses": ellipses(BOXES),
    "noise": RNG.uniform(0, 1, (60, 28, 28)).astype(np.float32),
    "constant": np.full((60, 28, 28), 0.9, np.float32),
}


def detectron2s(masks, in_pixels):
    """`[N, H, W]`: half-pixel centres, bilinear, zeros beyond the mask."""
    height, width = IMAGE_SIZE
    y1, x1, y2, x2 = torch.tensor(in_pixels).T[..., None]
    y = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    shape = (len(masks), height, width)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    return torch.nn.functional.grid_sample(torch.tensor(masks)[:, None], grid, align_corners=False)[:, 0].numpy()


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples/paste_masks.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_shows_what_the_example_does(example):
    assert inspect.getsource(example.paste.__wrapped__) in (ROOT / "docs/masks.md").read_text()


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_pasted_masks_are_detectron2s(masks, batch_size, example):
    expected = detectron2s(masks, BOXES)
    undecided = abs(expected - 0.5) < 1e-3  # rounding may decide
    assert undecided.mean() < 1e-3
    pasted = np.asarray(example.paste(masks, BOXES, IMAGE_SIZE, batch_size))
    assert pasted.dtype == bool
    np.testing.assert_array_equal(pasted[~undecided], expected[~undecided] >= 0.5)
    assert np.mean(pasted != (expected >= 0.5)) < 1e-5


@pytest.mark.parametrize(("kind", "least", "most"), [("ellipses", 0.002, 0.02), ("noise", 0.02, 0.06)])
def test_without_zeros_around_masks_borders_differ(kind, least, most):
    expected = detectron2s(MASKS[kind], BOXES) >= 0.5
    views = boxes.invert(boxes.normalize(BOXES, IMAGE_SIZE, align_corners=False))
    crops = crop_and_resize(MASKS[kind][..., None], views, np.arange(60), IMAGE_SIZE, align_corners=False)
    assert least < np.sum((np.asarray(crops[..., 0]) >= 0.5) != expected) / expected.sum() < most


def test_pasting_one_by_one_needs_little_memory(example):
    masks, in_pixels = jax.ShapeDtypeStruct((100, 28, 28), np.float32), jax.ShapeDtypeStruct((100, 4), np.float32)
    compiled = example.paste.lower(masks, in_pixels, (800, 1333)).compile()
    one_image = 4 * 800 * 1333
    assert compiled.memory_analysis().temp_size_in_bytes <= 5 * one_image
