"""The same operation elsewhere: each peer gets the inputs in its own tensors and layout before the clock runs.

A peer makes of (case, operation, data) a `Call`, or None of what it does not offer. Outputs and cotangents stay in the
peer's layout too; only `Call.value` brings them into ours.

torchvision wants another PyTorch than the tests do, so it has an environment of its own, of several gigabytes:
``pip install -e '.[core]' 'torchvision>=0.29.1'``, then ``python -m benchmarks torchvision``.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_crop
from benchmarks.cases import KINDS, METHODS, OPERATIONS, Case, Data, edges, fine_size
from benchmarks.measure import Call, compiled, flat

THREADS = os.cpu_count() or 1  # JAX and TensorFlow use as many by themselves; the others are told


class Peer(NamedTuple):
    """The module it needs, what makes a call, and of which kinds of cases, operations and dtypes."""

    module: str
    call: Callable[[Case, str, Data], Call | None]
    kinds: tuple[str, ...] = KINDS
    operations: tuple[str, ...] = OPERATIONS
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "uint8")


def prepared(case: Case, operation: str, data: Data, only: tuple[str, ...] = ()) -> dict[str, Call]:
    """The calls of those peers, this library first, that are installed and offer the operation."""
    calls = {}
    for name, peer in PEERS.items():
        offers = case.kind in peer.kinds and operation in peer.operations and case.dtype in peer.dtypes
        runs_here = jax.default_backend() != "gpu" or peer.module in ("jax", "torch", "torchvision")
        wanted = offers and runs_here and (not only or name in only) and importlib.util.find_spec(peer.module)
        if wanted and (call := peer.call(case, operation, data)):
            calls[name] = call
    return calls


# ---- JAX: from a function of (case, maps, boxes, box_indices, levels) to [N, h, w, C]


def jax_function(crop: Callable[..., jax.Array], case: Case, operation: str) -> Callable[[Data], Any]:
    """The operation as a function of the data, arrays of JAX."""

    def function(data: Data) -> Any:
        def crops_of(maps: Any, boxes: Any) -> jax.Array:
            return crop(case, maps, boxes, data.box_indices, data.levels)

        def loss(maps: Any) -> jax.Array:
            crops = crops_of(maps, data.boxes).astype(jnp.float32)
            return jnp.sum((crops.reshape(case.boxes, -1) @ data.weights) ** 2)

        if operation == "forward":
            return crops_of(data.maps, data.boxes)
        if operation == "training step":
            return jax.grad(loss)(data.maps)
        if operation == "image gradient":
            return jax.vjp(lambda maps: crops_of(maps, data.boxes), data.maps)[1](data.crops_bar)[0]
        return jax.vjp(lambda boxes: crops_of(data.maps, boxes), data.boxes)[1](data.crops_bar)[0]

    return function


def _in_jax(crop: Callable[..., jax.Array]) -> Callable[[Case, str, Data], Call]:
    def call(case: Case, operation: str, data: Data) -> Call:
        if operation == "image gradient" and case.dtype == "uint8":
            data = data._replace(maps=tuple(m.astype(np.float32) for m in data.maps))
        return compiled(jax_function(crop, case, operation), jax.tree.map(jnp.asarray, data))

    return call


def ours(case: Case, maps: Any, boxes: jax.Array, box_indices: jax.Array | None, _levels: Any = None) -> jax.Array:
    """This library."""
    if case.kind == "pyramid":
        return jax_crop.multilevel_roi_align(maps, boxes, box_indices, case.size, strides=case.strides)
    if case.kind == "ROIAlign":
        return jax_crop.roi_align(maps[0], boxes, box_indices, case.size, spatial_scale=1 / case.strides[0])
    options = METHODS[case.method]
    return jax_crop.crop_and_resize(maps[0], boxes, box_indices, case.size, dtype=case.crops_dtype, **options)


def gather(image: jax.Array, boxes: jax.Array, box_indices: jax.Array, crop_size: tuple[int, int]) -> jax.Array:
    """The ten lines that everyone writes; 0 outside."""
    _, height, width, _ = image.shape
    y1, x1, y2, x2 = boxes.T[..., None]
    y = (y1 + (y2 - y1) * jnp.arange(crop_size[0]) / (crop_size[0] - 1)) * (height - 1)
    x = (x1 + (x2 - x1) * jnp.arange(crop_size[1]) / (crop_size[1] - 1)) * (width - 1)
    top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    down, right = (y - top)[:, :, None, None], (x - left)[:, None, :, None]

    def pixels(i: jax.Array, j: jax.Array) -> jax.Array:
        i, j = jnp.clip(i, 0, height - 1)[:, :, None], jnp.clip(j, 0, width - 1)[:, None, :]
        return image[box_indices[:, None, None], i, j]

    upper = pixels(top, left) * (1 - right) + pixels(top, left + 1) * right
    lower = pixels(top + 1, left) * (1 - right) + pixels(top + 1, left + 1) * right
    inside = ((y >= 0) & (y <= height - 1))[:, :, None] & ((x >= 0) & (x <= width - 1))[:, None, :]
    return jnp.where(inside[..., None], upper * (1 - down) + lower * down, 0)


def plain(case: Case, maps: Any, boxes: jax.Array, box_indices: jax.Array, levels: Any = None) -> jax.Array:
    """A pyramid takes one pass per level, of which each box keeps one."""

    def at(level: int) -> jax.Array:
        normalized = jnp.stack(edges(case, boxes, level), axis=1)
        return _mean_of_bins(gather(maps[level], normalized, box_indices, fine_size(case)), case)

    crops = at(0)
    for level in range(1, len(maps)):
        crops = jnp.where((levels == level)[:, None, None, None], at(level), crops)
    return crops


def _mean_of_bins(crops: jax.Array, case: Case) -> jax.Array:
    if case.samples > 1:
        height, width = case.size
        crops = crops.reshape(-1, height, case.samples, width, case.samples, crops.shape[-1]).mean((2, 4))
    return crops.astype(case.crops_dtype)


def _each_box(crop: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """From ``crop(case, image [H, W, C], edges)``, mapped over boxes and images: no image is copied for each box."""

    def mapped(case: Case, maps: Any, boxes: jax.Array, *_: Any) -> jax.Array:
        image = maps[0].astype(jnp.float32)
        normalized = jnp.stack(edges(case, boxes), axis=1).reshape(image.shape[0], -1, 4)
        crops = jax.vmap(jax.vmap(functools.partial(crop, case), (None, 0)))(image, normalized)
        return _mean_of_bins(crops.reshape(case.boxes, *crops.shape[2:]), case)

    return mapped


def _scale_and_translate(case: Case, image: jax.Array, edges: jax.Array) -> jax.Array:
    scale = jnp.array(case.size) / ((edges[2:] - edges[:2]) * jnp.array(image.shape[:2]))
    translation = -edges[:2] * jnp.array(image.shape[:2]) * scale
    shape, method = (*case.size, image.shape[2]), METHODS[case.method].get("method", "linear")
    return jax.image.scale_and_translate(image, shape, (0, 1), scale, translation, method)


def _map_coordinates(case: Case, image: jax.Array, edges: jax.Array) -> jax.Array:
    y, x = (jnp.linspace(edges[i], edges[i + 2], n) * (image.shape[i] - 1) for i, n in enumerate(fine_size(case)))
    sample = functools.partial(
        jax.scipy.ndimage.map_coordinates, coordinates=jnp.meshgrid(y, x, indexing="ij"), order=1
    )
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


# ---- TensorFlow


def _tensorflow(case: Case, operation: str, data: Data, *, deterministic: bool = True) -> Call:
    """Its image gradient is right in its deterministic mode only."""
    import tensorflow as tf
    from tensorflow.python.framework import config  # the only way back from deterministic mode

    tf.get_logger().setLevel("ERROR")  # every case is a function of its own, which is meant

    def crop(image: Any, boxes: Any) -> Any:
        if case.dtype == "bfloat16":  # which it does not have
            image = tf.cast(image, tf.float32)
        normalized = tf.stack(edges(case, boxes), axis=1)
        crops = tf.image.crop_and_resize(image, normalized, data.box_indices, fine_size(case))
        if case.samples > 1:
            crops = tf.nn.avg_pool2d(crops, case.samples, case.samples, "VALID")
        return tf.cast(crops, case.crops_dtype)

    @tf.function
    def function(image: Any, boxes: Any, crops_bar: Any, weights: Any) -> Any:
        if operation == "forward":
            return crop(image, boxes)
        by = boxes if operation == "box gradient" else image
        with tf.GradientTape() as tape:
            tape.watch(by)
            result, result_bar = crop(image, boxes), crops_bar
            if operation == "training step":
                flat_crops = tf.reshape(tf.cast(result, tf.float32), [case.boxes, -1])
                result, result_bar = tf.reduce_sum((flat_crops @ weights) ** 2), None
        return tape.gradient(result, by, result_bar)

    arguments = [tf.constant(array) for array in (data.maps[0], data.boxes, data.crops_bar, data.weights)]

    def run() -> Any:
        if deterministic:
            config.enable_op_determinism()
        try:
            return function(*arguments)
        finally:
            config.disable_op_determinism()

    return Call(run, flat)


# ---- ONNX Runtime


def _onnxruntime(case: Case, _operation: str, data: Data) -> Call:
    """CropAndResize, or RoiAlign of each level's boxes: which those are is known beforehand."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    work, groups = [], _groups(case, data)
    for level, group in enumerate(groups):
        model = _onnx_model(case, level)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        boxes, indices = data.boxes[group], data.box_indices[group]
        if case.strides:
            boxes, indices = boxes[:, [1, 0, 3, 2]], indices.astype(np.int64)
        arrays = {"image": data.maps[level].transpose(0, 3, 1, 2), "boxes": boxes, "indices": indices}
        tensor = onnxruntime.OrtValue.ortvalue_from_numpy
        work.append((session, {name: tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}))

    def value(result: Any) -> np.ndarray:
        crops = np.concatenate([crops.numpy() for (crops,) in result])
        return flat(crops.transpose(0, 2, 3, 1)[np.argsort(np.concatenate(groups))])

    return Call(lambda: [session.run_with_ort_values(["crops"], inputs) for session, inputs in work], value)


def _onnx_model(case: Case, level: int) -> bytes:
    from onnx import TensorProto, helper

    index_type = TensorProto.INT64 if case.strides else TensorProto.INT32
    described = (("image", TensorProto.FLOAT, 4), ("boxes", TensorProto.FLOAT, 2), ("indices", index_type, 1))
    names, constants = [name for name, _, _ in described], []
    if case.strides:
        attributes = {"output_height": case.size[0], "output_width": case.size[1], "sampling_ratio": case.samples}
        attributes |= {"spatial_scale": 1 / case.strides[level], "coordinate_transformation_mode": "half_pixel"}
        node = helper.make_node("RoiAlign", names, ["crops"], **attributes)
    else:
        node = helper.make_node("CropAndResize", [*names, "size"], ["crops"], domain="com.microsoft")
        constants = [helper.make_tensor("size", TensorProto.INT32, [2], case.size)]
    inputs = [helper.make_tensor_value_info(name, kind, [None] * rank) for name, kind, rank in described]
    crops = helper.make_tensor_value_info("crops", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([node], "crops", inputs, [crops], constants)
    opsets = [helper.make_opsetid("", 16), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


# ---- OpenCV


def _warp_affine(case: Case, _operation: str, data: Data) -> Call | None:
    """Crops of a uint8 image are uint8 here, and converted."""
    if case.maps[0][3] > 4:
        return None
    import cv2

    cv2.setNumThreads(THREADS)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    boxes, last = data.boxes.astype(np.float64), np.array(case.maps[0][1:3]) - 1
    matrices = np.zeros((case.boxes, 2, 3))
    matrices[:, [1, 0], [1, 0]] = (boxes[:, 2:] - boxes[:, :2]) * last / (np.array(case.size) - 1)
    matrices[:, [1, 0], 2] = boxes[:, :2] * last

    def run() -> np.ndarray:
        crops = np.empty(case.crops_shape, case.image_dtype)
        for crop, index, matrix in zip(crops, data.box_indices, matrices, strict=True):
            cv2.warpAffine(data.maps[0][index], matrix, case.size[::-1], crop, flags)
        return crops.astype(case.crops_dtype, copy=False)

    return Call(run, flat)


# ---- PyTorch


def _in_torch(build: Callable[..., Any], in_our_layout: Callable[..., Any]) -> Callable[[Case, str, Data], Call]:
    """From what `build` makes of (case, data, device): a function of maps, channels first, and boxes.

    PyTorch is eager: a gradient's forward pass is done before the clock runs.
    """

    def call(case: Case, operation: str, data: Data) -> Call:
        import torch

        torch.set_num_threads(THREADS)
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"

        def tensor(array: np.ndarray) -> Any:
            same = array if array.dtype == np.uint8 else array.astype(np.float32)
            return torch.from_numpy(same).to(device, getattr(torch, array.dtype.name))

        def wait(result: Any) -> Any:
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        maps = [tensor(m).permute(0, 3, 1, 2).contiguous() for m in data.maps]
        boxes = tensor(data.boxes)
        crop = build(case, data, device)
        if operation == "forward":
            run = functools.partial(crop, maps, boxes)
            return Call(run, lambda crops: flat(in_our_layout(case, data, crops).cpu().float()), wait)
        by = [boxes] if operation == "box gradient" else maps
        for leaf in by:
            leaf.requires_grad_()
        crops = crop(maps, boxes)
        crops_bar = torch.autograd.grad(in_our_layout(case, data, crops), crops, tensor(data.crops_bar))[0].contiguous()

        def value(gradients: Any) -> np.ndarray:
            return flat([(g.permute(0, 2, 3, 1) if g.ndim == 4 else g).cpu().float() for g in gradients])

        return Call(lambda: torch.autograd.grad(crops, by, crops_bar, retain_graph=True), value, wait)

    return call


def _grid_sample(case: Case, _data: Data, device: Any) -> Callable[..., Any]:
    """To ``[images, C, boxes of an image * h, w]``: an image's grids follow each other, so that it is not copied.

    A single image is expanded instead, for its threads share only images; but not its gradient, which would be copied.
    """
    import torch

    rows, columns = fine_size(case)
    down, right = torch.linspace(0, 1, rows, device=device), torch.linspace(0, 1, columns, device=device)

    def crop(maps: Any, boxes: Any) -> Any:
        y1, x1, y2, x2 = (2 * edge[:, None] - 1 for edge in edges(case, boxes))
        y, x = torch.lerp(y1, y2, down)[:, :, None], torch.lerp(x1, x2, right)[:, None, :]
        images = maps[0].float()
        if len(images) == 1 and not images.requires_grad:
            images = images.expand(case.boxes, -1, -1, -1)
        grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1).reshape(len(images), -1, columns, 2)
        crops = torch.nn.functional.grid_sample(images, grid, align_corners=True)
        if case.samples > 1:
            crops = torch.nn.functional.avg_pool2d(crops, case.samples)
        return crops.to(getattr(torch, case.crops_dtype.name))

    return crop


def _grid_in_our_layout(case: Case, _data: Data, crops: Any) -> Any:
    images, channels, _, width = crops.shape
    return crops.reshape(images, channels, -1, case.size[0], width).permute(0, 2, 3, 4, 1).reshape(case.crops_shape)


def _roi_align(case: Case, data: Data, device: Any) -> Callable[..., Any]:
    """Of a pyramid each level's boxes are known beforehand."""
    import torch
    from torchvision.ops import roi_align

    listed = np.column_stack([data.box_indices, data.boxes[:, [1, 0, 3, 2]]]).astype(np.float32)
    rois = [torch.from_numpy(listed[group]).to(device) for group in _groups(case, data)]

    def crop(maps: Any, _boxes: Any) -> Any:
        crops = [
            roi_align(image.float(), boxes, case.size, 1 / stride, case.samples, aligned=True)
            for image, boxes, stride in zip(maps, rois, case.strides, strict=True)
        ]
        return (torch.cat(crops) if len(crops) > 1 else crops[0]).to(getattr(torch, case.crops_dtype.name))

    return crop


def _rois_in_our_layout(case: Case, data: Data, crops: Any) -> Any:
    return crops.permute(0, 2, 3, 1)[np.argsort(np.concatenate(_groups(case, data)))]


def _groups(case: Case, data: Data) -> list[np.ndarray]:
    """Which boxes are read from each map."""
    return [np.flatnonzero(data.levels == level) for level in range(len(case.maps))]


# ---- antialiasing: crops of whole pixels, cut out before the clock runs (of TensorFlow, in its function)


def _windows(case: Case, data: Data) -> Iterator[tuple[int, slice, slice]]:
    """Image, rows and columns of each box."""
    pixels = np.round(data.boxes * np.tile(case.maps[0][1:3], 2)).astype(int).tolist()
    for index, (top, left, bottom, right) in zip(data.box_indices.tolist(), pixels, strict=True):
        yield index, slice(top, bottom), slice(left, right)


def _is_cubic(case: Case) -> bool:
    return case.method.endswith("cubic")


def _pillow(case: Case, _operation: str, data: Data, *, threads: int = 1) -> Call:
    """It reads the whole image, as we do; its images stay what they are."""
    from PIL import Image

    images = [Image.fromarray(image) for image in data.maps[0]]
    resample = Image.Resampling.BICUBIC if _is_cubic(case) else Image.Resampling.BILINEAR
    work = [(images[i], (x.start, y.start, x.stop, y.stop)) for i, y, x in _windows(case, data)]
    each = map if threads == 1 else ThreadPoolExecutor(threads).map
    return Call(lambda: list(each(lambda item: item[0].resize(case.size[::-1], resample, box=item[1]), work)), flat)


def _opencv_resize(case: Case, _operation: str, data: Data) -> Call:
    """Its cubic does not antialias, its INTER_AREA is another kernel: a box."""
    import cv2

    cv2.setNumThreads(THREADS)
    how = cv2.INTER_CUBIC if _is_cubic(case) else cv2.INTER_AREA
    work = [data.maps[0][window] for window in _windows(case, data)]
    return Call(lambda: [cv2.resize(window, case.size[::-1], interpolation=how) for window in work], flat)


def _interpolate(case: Case, _operation: str, data: Data) -> Call:
    """Channels last in memory, its fastest layout."""
    import torch

    torch.set_num_threads(THREADS)
    mode = "bicubic" if _is_cubic(case) else "bilinear"
    resize = functools.partial(torch.nn.functional.interpolate, size=case.size, mode=mode, antialias=True)
    work = [torch.from_numpy(data.maps[0][window]).permute(2, 0, 1)[None] for window in _windows(case, data)]
    return Call(lambda: [resize(window) for window in work], lambda crops: flat(torch.cat(crops).permute(0, 2, 3, 1)))


def _tensorflow_resize(case: Case, _operation: str, data: Data) -> Call:
    import tensorflow as tf

    resize = functools.partial(
        tf.image.resize, size=case.size, method="bicubic" if _is_cubic(case) else "bilinear", antialias=True
    )
    function = tf.function(lambda images: tf.stack([resize(images[window]) for window in _windows(case, data)]))
    images = tf.constant(data.maps[0])
    return Call(lambda: function(images), flat)


# ---- all of them

OURS = "jax_crop"
TENSORFLOW = "TensorFlow"
RACING = "TensorFlow, default mode"  # wrong: its threads add to the same pixels without synchronisation
GATHER = "jnp gather"
TORCHVISION = "torchvision"

_CROPS, _ROIS, _SINGLE, _ANTIALIASED = ("crop",), ("ROIAlign", "pyramid"), ("crop", "ROIAlign"), ("antialiased",)
_FORWARD, _DERIVATIVES, _RACES = OPERATIONS[:1], OPERATIONS[:3], ("image gradient", "training step")
_default_mode = functools.partial(_tensorflow, deterministic=False)

PEERS = {
    OURS: Peer("jax", _in_jax(ours)),
    TENSORFLOW: Peer("tensorflow", _tensorflow, _SINGLE),
    RACING: Peer("tensorflow", _default_mode, _SINGLE, _RACES),
    "ONNX Runtime": Peer("onnxruntime", _onnxruntime, _CROPS + _ROIS, _FORWARD, ("float32",)),
    "OpenCV warpAffine": Peer("cv2", _warp_affine, _CROPS, _FORWARD, ("float32", "uint8")),
    "PyTorch grid_sample": Peer("torch", _in_torch(_grid_sample, _grid_in_our_layout), _SINGLE, _DERIVATIVES),
    TORCHVISION: Peer("torchvision", _in_torch(_roi_align, _rois_in_our_layout), _ROIS, OPERATIONS[:2]),
    GATHER: Peer("jax", _in_jax(plain), _CROPS + _ROIS),
    "map_coordinates": Peer("jax", _in_jax(_each_box(_map_coordinates)), _SINGLE, _DERIVATIVES),
    "Pillow, 1 thread": Peer("PIL", _pillow, _ANTIALIASED, _FORWARD),
    f"Pillow, {THREADS} threads": Peer("PIL", functools.partial(_pillow, threads=THREADS), _ANTIALIASED, _FORWARD),
    "OpenCV resize": Peer("cv2", _opencv_resize, _ANTIALIASED, _FORWARD),
    "PyTorch interpolate": Peer("torch", _interpolate, _ANTIALIASED, _FORWARD),
    "TensorFlow resize": Peer("tensorflow", _tensorflow_resize, _ANTIALIASED, _FORWARD),
    "scale_and_translate": Peer("jax", _in_jax(_each_box(_scale_and_translate)), _ANTIALIASED, _DERIVATIVES),
}
