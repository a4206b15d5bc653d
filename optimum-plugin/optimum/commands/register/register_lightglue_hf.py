"""`optimum-cli export openvino` and `optimum-cli export onnx` for LightGlue models, by lightglue_hf.export.

optimum-cli imports this file whenever it starts, so nothing heavy is imported before a LightGlue model is asked for.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

# Options of Optimum's commands that change the graph of other models, and have no meaning for this one.
UNSUPPORTED_OPTIONS = (
    "all_layers awq backup_precision gptq group_size lora_correction monolith optimize quantization_statistics_path"
    " ratio scale_estimation sensitivity_metric slim smooth_quant_alpha sym"
).split()

# What optimum-onnx takes with --no-dynamic-axes for sizes that are not given, so that one line makes one graph.
OPTIMUMS_SIZES = {"batch_size": 2, "height": 64, "width": 64}


def is_lightglue(model: str, cache_dir: str | None = None) -> bool:
    """Whether it is a checkpoint of lightglue-hf's, or config.json, in a directory or on the Hub, is LightGlue's."""
    from transformers import PretrainedConfig

    from lightglue_hf.convert import published

    if model in published.names():
        return True
    try:
        config, _ = PretrainedConfig.get_config_dict(model, cache_dir=cache_dir)
    except OSError:  # a model of another library; its own command knows what to say
        return False
    return config.get("model_type") == "lightglue"


def options_of(args: Namespace) -> dict[str, Any]:
    """The fields of `ExportOptions` that the options of Optimum's commands stand for.

    Raises:
        ValueError: an option that does not go with LightGlue, named.
    """
    foreign = [f"--{name.replace('_', '-')}" for name in UNSUPPORTED_OPTIONS if getattr(args, name, None)]
    if foreign:
        raise ValueError(f"LightGlue is not exported with {', '.join(foreign)}")
    wanted = dict(getattr(args, "model_kwargs", None) or {})
    if "max_keypoints" in wanted:
        wanted["num_keypoints"] = wanted.pop("max_keypoints")
    weight_format = getattr(args, "weight_format", None) or getattr(args, "dtype", None)
    if weight_format is not None:
        wanted["weight_format"] = weight_format
    if getattr(args, "opset", None) is not None:
        wanted["opset"] = args.opset
    if getattr(args, "no_dynamic_axes", False):
        wanted |= {name: getattr(args, name) for name in ("batch_size", "height", "width")}
    quant_mode = getattr(args, "quant_mode", None)
    if quant_mode is not None:
        if quant_mode != "int8" or not args.dataset:
            raise ValueError("LightGlue is quantised with --quant-mode int8 --dataset FOLDER_OF_PHOTOS")
        wanted["calibration"] = args.dataset
        if args.num_samples is not None:
            wanted["num_samples"] = args.num_samples
    return wanted


def run(args: Namespace, backend: str) -> None:
    """Export a LightGlue model as Optimum's options say, and print how it compares with PyTorch."""
    from lightglue_hf.convert import published
    from lightglue_hf.export import ExportOptions, export

    wanted = options_of(args)
    unknown = wanted.keys() - ExportOptions.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"--model-kwargs has the unknown {', '.join(sorted(unknown))}")
    if "parts" in wanted:
        wanted["parts"] = tuple(wanted["parts"])
    for result in export(
        published.located(args.model), args.output, backend, ExportOptions(**wanted), cache_dir=args.cache_dir
    ):
        print(result)
    print(f"wrote {args.output}")


def dispatch_lightglue(command: type[BaseOptimumCLICommand], backend: str) -> None:
    """Let a command of Optimum's, which does not know LightGlue, leave it to this package."""
    run_others: Any = command.run

    def run_command(self: Any) -> None:
        if is_lightglue(self.args.model, self.args.cache_dir):
            run(self.args, backend)
        else:
            run_others(self)

    command.run = run_command  # type: ignore[method-assign]


class LightGlueONNXCommand(BaseOptimumCLICommand):
    """`export onnx`, where optimum-onnx, whose command it otherwise is, does not run: with transformers 5."""

    COMMAND = CommandInfo(name="onnx", help="Export LightGlue to ONNX (for other models, install optimum-onnx).")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="directory or name on the Hub")
        parser.add_argument("output", type=Path, help="directory to write to")
        parser.add_argument("--task", default="auto", choices=("auto", "keypoint-matching"))
        parser.add_argument("--opset", type=int)
        parser.add_argument("--dtype", choices=("fp32", "fp16"))
        parser.add_argument("--no-dynamic-axes", action="store_true", help="fix the sizes below")
        for name, default in OPTIMUMS_SIZES.items():
            parser.add_argument(f"--{name}", type=int, default=default, help="%(default)s")
        parser.add_argument("--cache_dir")
        parser.add_argument("--model-kwargs", type=json.loads, help="such as '{\"max_keypoints\": 1024}'")

    def run(self) -> None:
        if not is_lightglue(self.args.model, self.args.cache_dir):
            raise ValueError(f"{self.args.model} is no LightGlue model: install optimum-onnx to export it")
        run(self.args, "onnx")


REGISTER_COMMANDS: list[Any] = []
try:
    from optimum.commands.export.openvino import OVExportCommand
except ImportError:
    pass
else:
    dispatch_lightglue(OVExportCommand, "openvino")
try:
    from optimum.commands.export.onnx import ONNXExportCommand
except ImportError:
    REGISTER_COMMANDS.append((LightGlueONNXCommand, ExportCommand))
else:
    dispatch_lightglue(ONNXExportCommand, "onnx")
