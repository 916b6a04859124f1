"""The same operation elsewhere: each peer gets the inputs in its own tensors and layout before the clock runs.

A peer is a function of (case, operation, data) that returns a `Call`, or None for what it does not offer. Outputs and
cotangents stay in the peer's layout too; only `Call.value` brings them into ours.
"""

import functools
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_crop
from benchmarks.cases import Case, Data, edges, fine_size

THREADS = os.cpu_count() or 1  # JAX and TensorFlow use as many by themselves; the others are told


class Call(NamedTuple):
    """Work that is ready to run, with no argument.

    Attributes:
        run: starts it.
        wait: returns the result of `run` when it is there.
        value: that result as one float array in our layout; the image gradients of a pyramid one after the other.
        compile_seconds: what compiling it took, if it compiles.
        temporaries: the bytes it holds beside arguments and results, if known.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any]
    value: Callable[[Any], np.ndarray]
    compile_seconds: float | None = None
    temporaries: int | None = None


Peer = Callable[[Case, str, Data], Call | None]


def _flat(arrays: Any) -> np.ndarray:
    arrays = arrays if isinstance(arrays, (list, tuple)) else [arrays]
    return np.concatenate([np.asarray(array).astype(np.float64).ravel() for array in arrays])


# ---- JAX: a peer is a function of (case, maps, boxes, box_indices, levels) to [N, h, w, C]


def jax_function(crop: Callable[..., jax.Array], case: Case, operation: str) -> Callable[[Data], Any]:
    """The operation as a function of the data, arrays of JAX."""

    def function(data: Data) -> Any:
        def crops_of(maps: Any = data.maps, boxes: Any = data.boxes) -> jax.Array:
            return crop(case, maps, boxes, data.box_indices, data.levels)

        def loss(maps: Any) -> jax.Array:
            flat = crops_of(maps).astype(jnp.float32).reshape(case.boxes, -1)
            return jnp.sum((flat @ data.weights) ** 2)

        if operation == "forward":
            return crops_of()
        if operation == "image gradient":
            return jax.vjp(crops_of, data.maps)[1](data.crops_bar)[0]
        if operation == "box gradient":
            return jax.vjp(lambda boxes: crops_of(boxes=boxes), data.boxes)[1](data.crops_bar)[0]
        return jax.value_and_grad(loss)(data.maps)

    return function


def _in_jax(crop: Callable[..., Any], without: tuple[str, ...] = ()) -> Peer:
    """Of everything but some kinds of cases and operations."""

    def peer(case: Case, operation: str, data: Data) -> Call | None:
        if {case.kind, operation} & {*without}:
            return None
        arrays = jax.tree.map(jnp.asarray, data)
        lowered = jax.jit(jax_function(crop, case, operation)).lower(arrays)
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        temporaries = compiled.memory_analysis().temp_size_in_bytes

        def value(result: Any) -> np.ndarray:
            return _flat(result[1] if operation == "training step" else result)

        return Call(lambda: compiled(arrays), jax.block_until_ready, value, seconds, temporaries)

    return peer


def ours(
    case: Case, maps: tuple[jax.Array, ...], boxes: jax.Array, box_indices: jax.Array, _levels: jax.Array
) -> jax.Array:
    """This library."""
    if case.kind == "multilevel_roi_align":
        return jax_crop.multilevel_roi_align(maps, boxes, box_indices, case.size, strides=case.strides)
    if case.kind == "roi_align":
        return jax_crop.roi_align(maps[0], boxes, box_indices, case.size, spatial_scale=1 / case.strides[0])
    return jax_crop.crop_and_resize(maps[0], boxes, box_indices, case.size, dtype=case.crops_dtype)


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


def plain(
    case: Case, maps: tuple[jax.Array, ...], boxes: jax.Array, box_indices: jax.Array, levels: jax.Array
) -> jax.Array:
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
        crops = crops.reshape(case.boxes, height, case.samples, width, case.samples, -1).mean((2, 4))
    return crops.astype(case.crops_dtype)


def _each_box(crop: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """From ``crop(image [H, W, C], edges, size)``, mapped over boxes and images: no image is copied for each box."""

    def mapped(
        case: Case, maps: tuple[jax.Array, ...], boxes: jax.Array, _box_indices: jax.Array, _levels: jax.Array
    ) -> jax.Array:
        image = maps[0].astype(jnp.float32)
        normalized = jnp.stack(edges(case, boxes), axis=1).reshape(image.shape[0], -1, 4)
        one = functools.partial(crop, size=fine_size(case))
        crops = jax.vmap(jax.vmap(one, (None, 0)))(image, normalized)
        return _mean_of_bins(crops.reshape(case.boxes, *crops.shape[2:]), case)

    return mapped


def _scale_and_translate(image: jax.Array, edges: jax.Array, size: tuple[int, int]) -> jax.Array:
    pixels, samples = jnp.array(image.shape[:2]), jnp.array(size)
    scale = (samples - 1) / ((edges[2:] - edges[:2]) * (pixels - 1))
    translation = 0.5 - (edges[:2] * (pixels - 1) + 0.5) * scale  # its positions count from the edge of a pixel
    shape = (*size, image.shape[2])
    return jax.image.scale_and_translate(image, shape, (0, 1), scale, translation, "linear", antialias=False)


def _map_coordinates(image: jax.Array, edges: jax.Array, size: tuple[int, int]) -> jax.Array:
    y, x = (jnp.linspace(edges[i], edges[i + 2], size[i]) * (image.shape[i] - 1) for i in range(2))
    sample = functools.partial(
        jax.scipy.ndimage.map_coordinates, coordinates=jnp.meshgrid(y, x, indexing="ij"), order=1
    )
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


# ---- TensorFlow


def _tensorflow(case: Case, operation: str, data: Data, *, deterministic: bool = True) -> Call | None:
    """Its image gradient is right in its deterministic mode only; the other mode is run where the two differ."""
    if case.kind == "multilevel_roi_align" or (not deterministic and operation in ("forward", "box gradient")):
        return None
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
            crops = crop(image, boxes)
            if operation != "training step":
                return tape.gradient(crops, by, output_gradients=crops_bar)
            loss = tf.reduce_sum((tf.reshape(tf.cast(crops, tf.float32), [case.boxes, -1]) @ weights) ** 2)
        return loss, tape.gradient(loss, by)

    arguments = [tf.constant(array) for array in (data.maps[0], data.boxes, data.crops_bar, data.weights)]

    def run() -> Any:
        if deterministic:
            config.enable_op_determinism()
        try:
            return function(*arguments)
        finally:
            config.disable_op_determinism()

    def value(result: Any) -> np.ndarray:
        return _flat((result[1] if operation == "training step" else result).numpy())

    return Call(run, _nothing_to_wait_for, value)


def _nothing_to_wait_for(result: Any) -> Any:
    """On a CPU these libraries return when they are done."""
    return result


# ---- ONNX Runtime


def _onnxruntime(case: Case, operation: str, data: Data) -> Call | None:
    if operation != "forward" or case.dtype != "float32":
        return None
    import onnxruntime

    groups = _groups(case, data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_onnx_model(case), options, providers=["CPUExecutionProvider"])

    arrays = {}
    for level, (image, group) in enumerate(zip(data.maps, groups, strict=True)):
        boxes, box_indices = data.boxes[group], data.box_indices[group]
        arrays |= {
            f"image{level}": np.ascontiguousarray(image.transpose(0, 3, 1, 2)),
            f"boxes{level}": boxes[:, [1, 0, 3, 2]] if case.strides else boxes,
            f"indices{level}": box_indices.astype(np.int64) if case.strides else box_indices,
        }
    inputs = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()
    }

    def value(result: Any) -> np.ndarray:
        crops = np.empty(case.crops_shape, np.float32)
        crops[np.concatenate(groups)] = result[0].numpy().transpose(0, 2, 3, 1)
        return _flat(crops)

    return Call(lambda: session.run_with_ort_values(["crops"], inputs), _nothing_to_wait_for, value)


def _onnx_model(case: Case) -> bytes:
    """CropAndResize, or RoiAlign of each level's boxes: which those are is known beforehand."""
    from onnx import TensorProto, helper

    nodes, inputs, outputs = [], [], []
    for level in range(len(case.maps)):
        names = [f"image{level}", f"boxes{level}", f"indices{level}"]
        index_type = TensorProto.INT64 if case.strides else TensorProto.INT32
        inputs += [
            helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [None] * 4),
            helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [None, 4]),
            helper.make_tensor_value_info(names[2], index_type, [None]),
        ]
        outputs.append(f"crops{level}" if len(case.maps) > 1 else "crops")
        if case.strides:
            attributes = {
                "output_height": case.size[0],
                "output_width": case.size[1],
                "sampling_ratio": case.samples,
                "spatial_scale": 1 / case.strides[level],
                "coordinate_transformation_mode": "half_pixel",
            }
            nodes.append(helper.make_node("RoiAlign", names, outputs[-1:], **attributes))
        else:
            nodes.append(helper.make_node("CropAndResize", [*names, "size"], outputs[-1:], domain="com.microsoft"))
    if len(outputs) > 1:
        nodes.append(helper.make_node("Concat", outputs, ["crops"], axis=0))
    size = helper.make_tensor("size", TensorProto.INT32, [2], case.size)
    crops = helper.make_tensor_value_info("crops", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph(nodes, "crops", inputs, [crops], [size])
    opsets = [helper.make_opsetid("", 16), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


# ---- OpenCV


def _opencv(case: Case, operation: str, data: Data) -> Call | None:
    """Crops of a uint8 image are uint8 here, and converted."""
    if operation != "forward" or case.strides or case.maps[0][3] > 4 or case.dtype == "bfloat16":
        return None
    import cv2

    cv2.setNumThreads(THREADS)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    (_, height, width, _), (rows, columns) = case.maps[0], case.size
    y1, x1, y2, x2 = data.boxes.T.astype(np.float64)
    matrices = np.zeros((case.boxes, 2, 3))
    matrices[:, 0, 0], matrices[:, 0, 2] = (x2 - x1) * (width - 1) / (columns - 1), x1 * (width - 1)
    matrices[:, 1, 1], matrices[:, 1, 2] = (y2 - y1) * (height - 1) / (rows - 1), y1 * (height - 1)
    work = list(zip(data.box_indices, matrices, strict=True))

    def run() -> np.ndarray:
        crops = np.empty(case.crops_shape, case.image_dtype)
        for crop, (index, matrix) in zip(crops, work, strict=True):
            cv2.warpAffine(data.maps[0][index], matrix, (columns, rows), crop, flags)
        return crops.astype(case.crops_dtype, copy=False)

    return Call(run, _nothing_to_wait_for, _flat)


# ---- PyTorch


@functools.cache
def _torch_module() -> tuple[Any, Any, Callable[[Any], Any]]:
    """The module, the device, and how to wait for it."""
    import torch

    torch.set_num_threads(THREADS)
    if jax.default_backend() != "gpu":
        return torch, torch.device("cpu"), _nothing_to_wait_for

    def wait(result: Any) -> Any:
        torch.cuda.synchronize()
        return result

    return torch, torch.device("cuda"), wait


def _in_torch(build: Callable[..., Any], in_our_layout: Callable[..., Any], without: tuple[str, ...]) -> Peer:
    """From what `build` makes of (case, data, device): a function of maps, channels first, and boxes.

    PyTorch is eager: a gradient's forward pass is done before the clock runs.
    """

    def peer(case: Case, operation: str, data: Data) -> Call | None:
        if {case.kind, operation} & {*without}:
            return None
        torch, device, wait = _torch_module()

        def tensor(array: np.ndarray) -> Any:
            same = array if array.dtype == np.uint8 else array.astype(np.float32)
            return torch.from_numpy(same).to(device).to(getattr(torch, array.dtype.name))

        def on_cpu(result: Any) -> Any:  # in a dtype that NumPy has
            return result.cpu().float()

        maps = [tensor(m).permute(0, 3, 1, 2).contiguous() for m in data.maps]
        boxes = tensor(data.boxes)
        crop = build(case, data, device)
        if operation == "forward":
            return Call(
                lambda: crop(maps, boxes), wait, lambda crops: _flat([on_cpu(in_our_layout(case, data, crops))])
            )
        by = [boxes] if operation == "box gradient" else maps
        for leaf in by:
            leaf.requires_grad_()
        crops = crop(maps, boxes)
        crops_bar = torch.autograd.grad(in_our_layout(case, data, crops), crops, tensor(data.crops_bar))[0].contiguous()

        def value(gradients: Any) -> np.ndarray:
            return _flat([on_cpu(g.permute(0, 2, 3, 1) if g.ndim == 4 else g) for g in gradients])

        return Call(lambda: torch.autograd.grad(crops, by, crops_bar, retain_graph=True), wait, value)

    return peer


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
    """A crop is a ROIAlign of one sample per bin; of a pyramid each level's boxes are known beforehand."""
    import torch
    from torchvision.ops import roi_align

    boxes = data.boxes
    if not case.strides:
        last, steps = np.array(case.maps[0][1:3]) - 1, np.array(case.size) - 1
        start, stop = boxes[:, :2] * last, boxes[:, 2:] * last
        half_bin = (stop - start) / steps / 2
        boxes = np.concatenate([start - half_bin, stop + half_bin], axis=1) + 0.5
    listed = np.column_stack([data.box_indices, boxes[:, [1, 0, 3, 2]]]).astype(np.float32)
    rois = [torch.from_numpy(listed[group]).to(device) for group in _groups(case, data)]
    scales = [1 / stride for stride in case.strides or (1,)]

    def crop(maps: Any, _boxes: Any) -> Any:
        crops = [
            roi_align(image.float(), boxes, case.size, scale, case.samples, aligned=True)
            for image, boxes, scale in zip(maps, rois, scales, strict=True)
        ]
        return (torch.cat(crops) if len(crops) > 1 else crops[0]).to(getattr(torch, case.crops_dtype.name))

    return crop


def _rois_in_our_layout(case: Case, data: Data, crops: Any) -> Any:
    return crops.permute(0, 2, 3, 1)[np.argsort(np.concatenate(_groups(case, data)))]


def _groups(case: Case, data: Data) -> list[np.ndarray]:
    """Which boxes are read from each map."""
    return [np.flatnonzero(data.levels == level) for level in range(len(case.maps))]


# ---- all of them

OURS = "jax_crop"
TENSORFLOW = "TensorFlow"
RACING = "TensorFlow, default mode"  # wrong: its threads add to the same pixels without synchronisation
GATHER = "jnp gather"

_PYRAMID, _STEP = "multilevel_roi_align", "training step"

# With the module that each needs.
PEERS: dict[str, tuple[str, Peer]] = {
    OURS: ("jax", _in_jax(ours)),
    TENSORFLOW: ("tensorflow", _tensorflow),
    RACING: ("tensorflow", functools.partial(_tensorflow, deterministic=False)),
    "ONNX Runtime": ("onnxruntime", _onnxruntime),
    "OpenCV warpAffine": ("cv2", _opencv),
    "PyTorch grid_sample": ("torch", _in_torch(_grid_sample, _grid_in_our_layout, without=(_STEP, _PYRAMID))),
    "torchvision roi_align": (
        "torchvision",
        _in_torch(_roi_align, _rois_in_our_layout, without=(_STEP, "box gradient")),  # it has none
    ),
    GATHER: ("jax", _in_jax(plain)),
    "scale_and_translate": ("jax", _in_jax(_each_box(_scale_and_translate), without=(_STEP, _PYRAMID))),
    "map_coordinates": ("jax", _in_jax(_each_box(_map_coordinates), without=(_STEP, _PYRAMID))),
}
_ON_GPU = ("jax", "torch", "torchvision")


def installed() -> dict[str, Peer]:
    """The peers that can run here, this library first."""
    gpu = jax.default_backend() == "gpu"
    return {
        name: peer
        for name, (module, peer) in PEERS.items()
        if importlib.util.find_spec(module) and (module in _ON_GPU or not gpu)
    }
