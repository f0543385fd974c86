"""YuNet and SFace at toy size, for OpenCV's real classes: a bright square is a face, and its colour is who it is.

The detector looks at cells of 8 and 16 pixels; the face around a bright cell is twice as wide. The recogniser's
embedding is the mean colour of the aligned face.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
pytest.importorskip("cv2")

# where SFace wants eyes, nose and the corners of the mouth in its 112 x 112 pixels
LANDMARKS = np.array([38.29, 51.70, 73.53, 51.50, 56.03, 71.74, 41.55, 92.37, 70.73, 92.20], np.float32)
BOX = np.array([0.5, 0.5, np.log(2), np.log(2)], np.float32)  # centre in cells, logarithm of the size in cells


def detector(path: Path) -> Path:
    """cls, obj, bbox and kps of YuNet for its three strides, each [1, cells, channels]."""
    nodes, constants, outputs = [], {}, []
    for stride in (8, 16, 32):
        found = 0.0 if stride == 32 else 1.0
        kernel = np.full((1, 3, stride, stride), found / (255 * stride**2), np.float32)
        heads = {
            "cls": (kernel, np.zeros(1, np.float32)),
            "obj": (0 * kernel, np.ones(1, np.float32)),
            "bbox": (np.zeros((4, 3, stride, stride), np.float32), BOX),
            "kps": (np.zeros((10, 3, stride, stride), np.float32), LANDMARKS / 56 - 0.5),
        }
        for head, (weight, bias) in heads.items():
            name = f"{head}_{stride}"
            constants |= {f"{name}.w": weight, f"{name}.b": bias, f"{name}.s": np.array([1, -1, len(bias)])}
            conv = [f"{name}.w", f"{name}.b"]
            nodes += [
                node("Conv", ["input", *conv], f"{name}.c", kernel_shape=[stride] * 2, strides=[stride] * 2),
                node("Transpose", [f"{name}.c"], f"{name}.t", perm=[0, 2, 3, 1]),
                node("Reshape", [f"{name}.t", f"{name}.s"], name),
            ]
            outputs.append((name, [1, (32 // stride) ** 2, len(bias)]))
    return save(path, nodes, constants, [1, 3, 32, 32], outputs)


def recogniser(path: Path) -> Path:
    """The mean colour [1, 3] in RGB."""
    constants = {"shape": np.array([1, 3])}
    nodes = [node("GlobalAveragePool", ["data"], "mean"), node("Reshape", ["mean", "shape"], "fc1")]
    return save(path, nodes, constants, [1, 3, 112, 112], [("fc1", [1, 3])])


def node(kind, inputs, output, **attributes):
    return onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)


def save(path, nodes, constants, shape, outputs) -> Path:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "toy",
        [value(nodes[0].input[0], onnx.TensorProto.FLOAT, shape)],
        [value(name, onnx.TensorProto.FLOAT, size) for name, size in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 11)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=7), path)
    return path


def image_of(*faces: tuple[str, int, int, int]) -> Image.Image:
    """Squares of a colour, with their left, top and width, on 64 x 64 black pixels."""
    whole = Image.new("RGB", (64, 64))
    for colour, left, top, width in faces:
        whole.paste(colour, (left, top, left + width, top + width))
    return whole
