"""What is measured: images, boxes in them, and what is asked of the crops. All in NumPy."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

OPERATIONS = ("forward", "image gradient", "box gradient", "training step")
KINDS = ("crop", "ROIAlign", "pyramid", "antialiased")
_HIDDEN = 16  # columns of the training step's matrix

# Options of crop_and_resize, by the name of a case's method.
METHODS: dict[str, dict[str, Any]] = {
    "": {},
    "half-pixel": {"align_corners": False},
    "antialiased": {"align_corners": False, "antialias": True},
    "antialiased cubic": {"align_corners": False, "antialias": True, "method": "cubic"},
}


class Case(NamedTuple):
    """One setting. Without strides it is crop_and_resize, with one ROIAlign, with several ROIAlign of a pyramid.

    Attributes:
        maps: the shapes of the image or feature maps, ``[B, H, W, C]`` each.
        boxes: how many, the same number in each image of the batch.
        size: of a crop, (rows, columns).
        dtype: of the image. Crops have it too if it is a floating one, else they are float32.
        strides: how many input pixels a pixel of each map spans.
        smallest: the shortest side of a box, as a share of the image's.
        method: a name of `METHODS`.
    """

    maps: tuple[tuple[int, int, int, int], ...]
    boxes: int
    size: tuple[int, int]
    dtype: str = "float32"
    strides: tuple[int, ...] = ()
    smallest: float = 0.05
    method: str = ""

    @property
    def kind(self) -> str:
        return "antialiased" if self.method.startswith("antialiased") else KINDS[min(len(self.strides), 2)]

    @property
    def name(self) -> str:
        operation = ("", "ROIAlign of ", "ROIAlign of the pyramid below ")[min(len(self.strides), 2)]
        shape = "×".join(map(str, self.maps[0]))
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        method = f", {self.method}" if self.method else ""
        return f"{operation}{shape}{dtype}, {self.boxes} → {self.size[0]}×{self.size[1]}{method}"

    @property
    def samples(self) -> int:
        """Per bin and axis: ROIAlign averages 2×2."""
        return 2 if self.strides else 1

    @property
    def image_dtype(self) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)

    @property
    def crops_dtype(self) -> np.dtype:
        return np.dtype(np.float32) if self.image_dtype.kind == "u" else self.image_dtype

    @property
    def crops_shape(self) -> tuple[int, int, int, int]:
        return (self.boxes, *self.size, self.maps[0][3])

    @property
    def operations(self) -> tuple[str, ...]:
        """Integer images have no gradient; but where one is antialiased, that of the same image in float32 is asked."""
        if self.kind == "antialiased":
            return OPERATIONS[:3]
        return OPERATIONS[::2] if self.image_dtype.kind == "u" else OPERATIONS

    @property
    def crops_bytes(self) -> int:
        return math.prod(self.crops_shape) * self.crops_dtype.itemsize

    @property
    def image_bytes(self) -> int:
        return sum(math.prod(shape) for shape in self.maps) * self.image_dtype.itemsize


class Data(NamedTuple):
    """The arguments of a case, and the cotangent of its crops.

    Boxes are ``[y1, x1, y2, x2]``, those of one image after those of another: normalized for crop_and_resize, in input
    pixels for ROIAlign. They keep clear of the border, where the conventions of the peers differ, and cut on whole
    pixels where those of antialiasing must. `levels` tells which map each is read from.
    """

    maps: tuple[np.ndarray, ...]
    boxes: np.ndarray
    box_indices: np.ndarray
    levels: np.ndarray
    crops_bar: np.ndarray
    weights: np.ndarray


CROPS = (
    Case(((8, 224, 224, 3),), 64, (64, 64)),
    Case(((8, 640, 640, 3),), 8, (224, 224)),
    Case(((2, 64, 64, 256),), 512, (7, 7)),
    Case(((2, 64, 64, 256),), 128, (14, 14)),
    Case(((1, 1080, 1920, 3),), 32, (112, 112)),
    Case(((1, 1080, 1920, 3),), 32, (112, 112), "uint8"),
    Case(((64, 224, 224, 3),), 64, (224, 224), "uint8", smallest=0.3),
    Case(((64, 224, 224, 3),), 64, (224, 224), smallest=0.3),
    Case(((16, 512, 512, 1),), 64, (96, 96)),
    Case(((1, 100, 152, 256),), 300, (7, 7)),
    Case(((1, 200, 304, 256),), 1000, (7, 7)),
    Case(((1, 200, 304, 256),), 1000, (7, 7), "bfloat16"),
)
_PYRAMID = tuple((1, rows, columns, 256) for rows, columns in ((200, 304), (100, 152), (50, 76), (25, 38), (13, 19)))
ROIS = (
    Case(((2, 64, 64, 256),), 512, (7, 7), strides=(16,)),
    Case(((1, 200, 304, 256),), 1000, (7, 7), strides=(4,)),
    Case(((1, 200, 304, 256),), 100, (14, 14), strides=(4,)),
    Case(_PYRAMID, 1000, (7, 7), strides=(4, 8, 16, 32, 64)),
)
KERNELS = tuple(
    Case((shape,), boxes, (size, size), "uint8", smallest=smallest, method=method)
    for shape, boxes, size, smallest in (
        ((64, 224, 224, 3), 64, 224, 0.3),
        ((1, 1080, 1920, 3), 32, 112, 0.05),
        ((8, 640, 640, 3), 8, 224, 0.05),
    )
    for method in ("antialiased", "antialiased cubic")
)


class Axis(NamedTuple):
    """What grows; no result is so large that the allocator fetches fresh memory from the system for it."""

    title: str
    values: tuple[int, ...]
    case: Callable[[int], Case]


AXES = {
    "boxes": Axis(
        "boxes of 1×128×128×16 → 7×7",
        (1, 5, 20, 100, 500, 2000, 10_000),
        lambda boxes: Case(((1, 128, 128, 16),), boxes, (7, 7)),
    ),
    "batch": Axis(
        "images of 8×8×3, with a box → 4×4 in each",
        (1, 4, 16, 64, 256, 1024, 4096, 8192),
        lambda batch: Case(((batch, 8, 8, 3),), batch, (4, 4)),
    ),
    "crop-size": Axis(
        "rows and columns of 8 crops of 1×512×512×3",
        (4, 8, 16, 32, 64, 128, 256, 512),
        lambda size: Case(((1, 512, 512, 3),), 8, (size, size)),
    ),
    "channels": Axis(
        "channels of 1×64×64, 64 boxes → 14×14",
        (1, 2, 3, 4, 8, 16, 17, 64, 255, 256),
        lambda channels: Case(((1, 64, 64, channels),), 64, (14, 14)),
    ),
}


def make(case: Case, seed: int = 0) -> Data:
    """White noise, and boxes whose sides are spread evenly over the octaves from the smallest to nine tenths."""
    rng, shapes = np.random.default_rng(seed), abstract(case)
    brightest = 255 if case.image_dtype.kind == "u" else 1
    maps = tuple((rng.random(shape, np.float32) * brightest).astype(case.image_dtype) for shape in case.maps)

    sides = np.exp(rng.uniform(np.log(case.smallest), np.log(0.9), (case.boxes, 2)))
    starts = rng.uniform(0.02, 0.98 - sides)
    boxes = np.concatenate([starts, starts + sides], axis=1)
    pixels = np.tile(case.maps[0][1:3], 2)
    if case.strides:
        boxes *= pixels * case.strides[0]
    if case.kind == "antialiased":
        boxes = np.round(boxes * pixels) / pixels

    crops_bar = rng.standard_normal(case.crops_shape, np.float32).astype(case.crops_dtype)
    weights = rng.standard_normal(shapes.weights.shape, np.float32)
    indices = np.repeat(np.arange(case.maps[0][0], dtype=np.int32), case.boxes // case.maps[0][0])
    return Data(maps, boxes.astype(np.float32), indices, _levels(case, boxes), crops_bar, weights)


def abstract(case: Case) -> Data:
    """The shapes and dtypes of `make`, without the arrays."""
    struct = jax.ShapeDtypeStruct
    maps, index = tuple(struct(shape, case.image_dtype) for shape in case.maps), struct((case.boxes,), np.int32)
    crops, weights = struct(case.crops_shape, case.crops_dtype), (math.prod(case.crops_shape[1:]), _HIDDEN)
    return Data(maps, struct((case.boxes, 4), np.float32), index, index, crops, struct(weights, np.float32))


def _levels(case: Case, boxes: np.ndarray) -> np.ndarray:
    """The rule of Feature Pyramid Networks (Lin et al. 2017, equation 1): 224 pixels belong to the map of stride 16."""
    if len(case.strides) < 2:
        return np.zeros(case.boxes, np.int32)
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    level = np.floor(4 + np.log2(sides / 224)) - np.log2(case.strides[0])
    return np.clip(level, 0, len(case.strides) - 1).astype(np.int32)


def edges(case: Case, boxes: Any, level: int = 0) -> tuple[Any, Any, Any, Any]:
    """Normalized y1, x1, y2, x2, ``[N]`` each, of the crops whose pixels are the samples; boxes of any library.

    ROIAlign is a crop of so many times more pixels from the first to the last sample's centre, and a mean over bins.
    """
    y1, x1, y2, x2 = (boxes[:, i] for i in range(4))
    if not case.strides:
        return y1, x1, y2, x2

    def inner(start: Any, stop: Any, pixels: int, bins: int) -> tuple[Any, Any]:
        half = (stop - start) / (2 * case.samples * bins)
        stride = case.strides[level]
        return tuple((edge / stride - 0.5) / (pixels - 1) for edge in (start + half, stop - half))

    _, height, width, _ = case.maps[level]
    (y1, y2), (x1, x2) = inner(y1, y2, height, case.size[0]), inner(x1, x2, width, case.size[1])
    return y1, x1, y2, x2


def fine_size(case: Case) -> tuple[int, int]:
    """How many samples the crops of `edges` have."""
    return case.size[0] * case.samples, case.size[1] * case.samples
