"""Graphs as files of ONNX and OpenVINO IR, and those files run."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils.optional import import_openvino, without_telemetry
from .graphs import (
    STATE,
    AdaptiveMatcher,
    Arrays,
    Axes,
    Graph,
    Matcher,
    Run,
    example_state,
    quiet,
)

# What stays in floating point when weights and activations are quantised: positions, and what decides on matches.
# And ALIKED's descriptor head, one of whose weights NNCF 3.4 gives another number of axes.
SENSITIVE = [".*positional_encoder.*", ".*match_assignment_layers.*", ".*token_confidence.*", ".*desc_head.*"]


# ---------------------------------------------------------------------------------------------------------------------
# ONNX


def _onnx(module: nn.Module, example: tuple[Any, ...], inputs: Any, outputs: Any, axes: Any, opset: int) -> Any:
    import onnx

    with tempfile.TemporaryDirectory() as directory, quiet():
        file = os.path.join(directory, "model.onnx")
        try:
            torch.onnx.export(
                module.eval(),
                example,
                file,
                dynamo=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes=axes,
            )
        except RuntimeError as error:
            if "opset_version" not in str(error):
                raise
            raise ValueError(f"PyTorch {torch.__version__} does not write the opset {opset}") from error
        model = onnx.load(file)
    del model.graph.value_info[:]  # shapes seen in tracing, which some runtimes take for true
    return model


def _dynamic(values: dict[str, Axes]) -> dict[str, dict[int, str]]:
    named = {n: {i: a for i, a in enumerate(v.axes) if isinstance(a, str)} for n, v in values.items()}
    return {name: axes for name, axes in named.items() if axes}


def onnx_graph(graph: Graph, opset: int) -> Any:
    """The graph as an `onnx.ModelProto`."""
    from onnx import helper

    adaptive = [module for module in graph.module.modules() if isinstance(module, AdaptiveMatcher)]
    outputs = list(graph.outputs)
    if adaptive:
        outputs = [f"begin/{name}" for name in STATE] + outputs[len(Matcher.outputs) :]
    proto = _onnx(graph.module, graph.example(), graph.inputs, outputs, _dynamic(graph.inputs), opset)
    for matcher in adaptive:
        _add_layers(proto.graph, matcher, opset)
    _declare(proto.graph, graph)
    helper.set_model_props(proto, graph.metadata)
    return graph.finish(proto)


def _add_layers(graph: Any, matcher: AdaptiveMatcher, opset: int) -> None:
    """Put the layers, each in an `If`, and the end of an adaptive graph behind its beginning."""
    from onnx import TensorProto, compose, helper

    state = example_state(matcher.match_remaining.model)
    axes = {f"{field}_": {2: "keypoints"} for field in STATE[: STATE.index("stop")]}
    current = [f"begin/{name}" for name in STATE]

    def part(module: nn.Module, prefix: str, outputs: Sequence[str]) -> Any:
        """A graph without inputs: as branches do, it takes the values of the graph around it by name."""
        exported = _onnx(module, (state,), [f"{field}_" for field in STATE], outputs, axes, opset)
        exported = compose.add_prefix(exported, prefix).graph
        names = {f"{prefix}{field}_": value for field, value in zip(STATE, current)}
        for node in exported.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        del exported.input[:]
        return exported

    def branch(name: str, condition: str, then: Any, otherwise: Any, results: Sequence[str]) -> None:
        for value in (*then.output, *otherwise.output):  # the shapes of the two differ
            value.type.tensor_type.ClearField("shape")
        branches = {"then_branch": then, "else_branch": otherwise}
        graph.node.append(helper.make_node("If", [condition], results, name, **branches))

    for i, layer in enumerate(matcher.layers):
        then = part(layer, f"layer{i}/then/", STATE)
        outputs = [helper.make_value_info(f"layer{i}/else/{name}", old.type) for name, old in zip(STATE, then.output)]
        nodes = [helper.make_node("Identity", [old], [new.name]) for old, new in zip(current, outputs)]
        otherwise = helper.make_graph(nodes, f"layer{i}/skipped", [], outputs)
        running, current = current[-1], [f"layer{i}/{name}" for name in STATE]
        branch(f"layer{i}", running, then, otherwise, current)
    graph.node.append(helper.make_node("ReduceMax", ["begin/prune"], ["most_rounds"], keepdims=0))
    graph.node.append(helper.make_node("Cast", ["most_rounds"], ["any_points"], to=TensorProto.BOOL))
    then, otherwise = (
        part(getattr(matcher, end), f"{end}/", Matcher.outputs) for end in ("match_remaining", "no_matches")
    )
    branch("match_remaining", "any_points", then, otherwise, Matcher.outputs)


def _declare(proto: Any, graph: Graph) -> None:
    """Write down the types and axes of inputs and outputs."""
    from onnx import helper

    for values, wanted in ((proto.input, graph.inputs), (proto.output, graph.outputs)):
        del values[:]
        for name, (dtype, axes) in wanted.items():
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))
            values.append(helper.make_tensor_value_info(name, kind, axes))


def _store_half(graph: Any) -> None:
    """Store the weights in half precision, and compute in float32 as before."""
    from onnx import AttributeProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= 256:
            name = tensor.name
            half = np.clip(values, *(getattr(np.finfo(np.float16), end) for end in ("min", "max"))).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=1))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _store_half(attribute.g)


class ONNXFormat:
    """A graph as ONNX files."""

    def __init__(self, graph: Graph, opset: int) -> None:
        self.proto = onnx_graph(graph, opset)

    def save(self, file: Path, weight_format: str, samples: Sequence[Arrays] = ()) -> None:
        """Write it, its weights in "fp32", "fp16" or "int8"; the last but for "fp32", which changes what is held."""
        import onnx

        if weight_format == "fp16":
            _store_half(self.proto.graph)
        onnx.checker.check_model(self.proto)
        onnx.save(self.proto, file)
        if weight_format == "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            with quiet():  # it advises on preprocessing, which changes nothing here
                quantize_dynamic(
                    file,
                    file,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=[n.name for n in self.proto.graph.node if re.match("|".join(SENSITIVE), n.name)],
                )

    def run(self, file: Path, default: bool = False) -> Run:
        """What runs a file."""
        return run_onnx(file)

    def default_precision(self) -> str:
        return "float32"


def run_onnx(file: Path) -> Run:
    """What runs a file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs)))


# ---------------------------------------------------------------------------------------------------------------------
# OpenVINO


def openvino_graph(graph: Graph) -> Any:
    """The graph as an `openvino.Model`, its weights in float32."""
    openvino = import_openvino()

    with quiet(), without_telemetry():
        example = graph.example()
        converted = openvino.convert_model(
            torch.jit.trace(graph.module.eval(), example, check_trace=False), example_input=example
        )
    shapes = {}
    for port, (name, (_, axes)) in zip(converted.inputs, graph.inputs.items(), strict=True):
        port.get_tensor().set_names({name})
        port.node.set_friendly_name(name)
        shapes[port] = openvino.PartialShape([axis if isinstance(axis, int) else -1 for axis in axes])
    converted.reshape(shapes)
    for port, name in zip(converted.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    for key, value in graph.metadata.items():
        converted.set_rt_info(value, ["lightglue_hf", key])
    _mark_full_precision(converted, graph.float32_modules)
    return converted


def _mark_full_precision(converted: Any, modules: Sequence[str]) -> None:
    """Mark what OpenVINO leaves in float32 where it computes in bfloat16: what PyTorch does so under autocast.

    Those are the convolutions that a detector declares, and what lies between each and the convolution or input
    before it. The mark is OpenVINO's own, and is heeded in a model that was read from a file.
    """
    names = "|".join(re.escape(name) for name in modules) or "(?!)"
    for op in converted.get_ordered_ops():
        if re.search(rf"\.({names})/.*Convolution$", op.friendly_name):
            op.get_rt_info()["precise_0"] = ""
            while (op := op.input_value(0).get_node()).get_type_name() not in ("Convolution", "Parameter"):
                op.get_rt_info()["precise_0"] = ""


class OpenVINOFormat:
    """A graph as files of OpenVINO IR."""

    def __init__(self, graph: Graph, opset: int) -> None:
        self.model = openvino_graph(graph)
        self.float32_modules = graph.float32_modules

    def save(self, file: Path, weight_format: str, samples: Sequence[Arrays] = ()) -> None:
        """Write it, its weights in "fp32", "fp16" or "int8"; with inputs to calibrate by, activations in int8, too.

        The last but for "fp32", which changes what is held.
        """
        openvino = import_openvino()

        if samples or weight_format == "int8":
            self.model = _quantised(self.model, samples, self.float32_modules)
        openvino.save_model(self.model, file, compress_to_fp16=weight_format == "fp16")

    def run(self, file: Path, default: bool = False) -> Run:
        """What runs a file, in float32 or in what OpenVINO takes by default."""
        return run_openvino(file, None if default else "f32")

    def default_precision(self) -> str:
        openvino = import_openvino()

        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "bfloat16" if "BF16" in capabilities else "float32"


def _quantised(converted: Any, samples: Sequence[Arrays], float32_modules: Sequence[str]) -> Any:
    """Weights in int8, with samples activations too. What decides on matches stays in float."""
    with without_telemetry():
        import nncf

    kept = nncf.IgnoredScope(
        patterns=[*SENSITIVE, *(rf".*\.{re.escape(name)}/.*" for name in float32_modules)], validate=False
    )
    with quiet():
        if not samples:
            return nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=kept)
        return nncf.quantize(
            converted,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=kept,
        )


def run_openvino(file: Path, precision: str | None = "f32") -> Run:
    """What runs a file, in OpenVINO's default precision if it is `None`."""
    openvino = import_openvino()

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # read, not mapped: the file is to be replaced
    graph = core.read_model(file)
    names = [output.any_name for output in graph.outputs]  # of what is compiled one output may have several
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision} if precision else {})
    return lambda inputs: dict(zip(names, map(np.array, compiled(inputs).values())))
