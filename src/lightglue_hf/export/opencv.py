"""ONNX files in the operators that OpenCV 5.0 reads and computes right.

Found with opencv-python-headless 5.0.0.93 and its engine ENGINE_NEW; what a later one mends can go.
"""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any

WIDEST_ROW = 3  # taps of a kernel of one row; nine are computed wrong


def readable(proto: Any) -> Any:
    """The `onnx.ModelProto` of a graph of fixed size, computing the same.

    - Arithmetic of shapes is done: OpenCV takes the type of an empty shape for float.
    - Integers are clipped by Max and Min: Clip is of floats alone.
    - A convolution whose kernel is as wide as its input, and one row high, is a product of matrices.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, "folded.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = file
        options.log_severity_level = 3  # it warns of what it leaves out
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(file)
    domains = [entry for entry in folded.opset_import if not entry.domain]
    del folded.opset_import[:], folded.graph.value_info[:]
    folded.opset_import.extend(domains)
    constants = {tensor.name: tensor for tensor in folded.graph.initializer}
    nodes = []
    for node in folded.graph.node:
        if node.op_type == "Clip" and constants[next(filter(None, node.input[1:]))].data_type != 1:
            nodes += _clip(node)
        elif node.op_type == "Conv" and _is_row(node):
            nodes += _product(node, folded.graph, constants)
        else:
            nodes.append(node)
    del folded.graph.node[:]
    folded.graph.node.extend(nodes)
    return folded


def _clip(node: Any) -> list[Any]:
    from onnx import helper

    nodes, x = [], node.input[0]
    for operator, bound in zip(("Max", "Min"), node.input[1:]):
        if bound:
            nodes.append(helper.make_node(operator, [x, bound], [f"{node.output[0]}_{operator}"]))
            x = nodes[-1].output[0]
    nodes[-1].output[0] = node.output[0]
    return nodes


def _is_row(node: Any) -> bool:
    attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    height, width = attributes.get("kernel_shape", [0, 0])
    return height == 1 and width > WIDEST_ROW and not any(attributes.get("pads", []))


def _product(node: Any, graph: Any, constants: dict[str, Any]) -> list[Any]:
    """`(1, c, n, k)` by a kernel `(o, c, 1, k)` -> `(1, o, n, 1)`."""
    import numpy as np
    from onnx import helper, numpy_helper

    weight = numpy_helper.to_array(constants[node.input[1]])
    name, outputs = node.output[0], len(weight)

    def constant(value: Any, what: str) -> str:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_{what}"))
        return f"{name}_{what}"

    rows = constant(np.array([1, -1, math.prod(weight.shape[1:])]), "rows")
    matrix = constant(weight.reshape(outputs, -1).T, "matrix")
    columns = constant(np.array([3]), "axis")
    steps = ["by_row", "flat", "product", "sum", "by_channel"]
    by_row, flat, product, total, by_channel = (f"{name}_{step}" for step in steps)
    nodes = [
        helper.make_node("Transpose", [node.input[0]], [by_row], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [by_row, rows], [flat]),
        helper.make_node("MatMul", [flat, matrix], [product]),
    ]
    if len(node.input) > 2:
        nodes.append(helper.make_node("Add", [product, node.input[2]], [total]))
    nodes.append(helper.make_node("Transpose", [nodes[-1].output[0]], [by_channel], perm=[0, 2, 1]))
    nodes.append(helper.make_node("Unsqueeze", [by_channel, columns], [name]))
    return nodes
