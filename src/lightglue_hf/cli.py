"""The command `lightglue-hf`: match two photos, see a demonstration, train, or export.

    lightglue-hf match left.jpg right.jpg -o matches.png --save matches.json
    lightglue-hf demo
    lightglue-hf train detector --output_dir runs/detector
    lightglue-hf export openvino tiny exported

Errors are one line on the standard error stream, and the exit status 2.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import __version__, bundled_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

BUNDLED = "tiny"
EPILOG = "Points are (x, y) in pixels of the upright photo; the centre of the first pixel is (0, 0)."


class CommandError(Exception):
    """An error of the user's, not of the program: its message is all there is to say."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}\n")


class Matches(NamedTuple):
    """What a model says of a pair: points in pixels of the photos, and how it got there."""

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    matching_scores: np.ndarray
    found: list[int]  # keypoints in each image
    stop: int | None  # the layer after which the model stopped
    layers: int | None
    seconds: float
    engine: str


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not _is_the_users(error):
            raise
        print(f"lightglue-hf: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def match(args: argparse.Namespace) -> None:
    """Match two photos, print the counts, draw and save the matches."""
    from .image_processing_lightglue import load_image

    images = [load_image(path) for path in args.images]
    result = _match(images, args)
    for path, image, count in zip(args.images, images, result.found):
        print(f"{path}: {image.width} x {image.height}, {count} keypoints")
    _report(result, args)
    inliers = _report_inliers(result)
    if args.output:
        _draw(images, result, args.output)
    if args.save:
        _save(images, result, inliers, args)


def demo(args: argparse.Namespace) -> None:
    """Match a stereo pair whose truth is known, and count what is right."""
    from PIL import Image

    from .evaluation import match_precision

    try:
        from skimage.data import stereo_motorcycle
    except ImportError as error:
        raise ImportError("The demonstration needs scikit-image: install lightglue-hf[demo].") from error
    args.max_keypoints = args.max_keypoints or 1024  # as a default of the parser it would be one of match, too
    left, right, disparity = stereo_motorcycle()
    images = [Image.fromarray(pixels) for pixels in (left, right)]
    print("A motorcycle, twice: real photos with known disparity (Middlebury 2014, in scikit-image)")
    result = _match(images, args)
    print(f"{left.shape[1]} x {left.shape[0]} pixels, {result.found[0]} and {result.found[1]} keypoints")
    _report(result, args)
    judged = match_precision(result.keypoints0, result.keypoints1, disparity)
    print(
        f"{judged.correct} matches are correct: within 3 px of the truth, of {judged.judged} whose truth is known "
        f"(precision {judged.precision:.3f})"
    )
    _draw(images, result, args.output)


def train(args: argparse.Namespace) -> None:
    """Train as a recipe says, from its options or from a YAML file."""
    from transformers import HfArgumentParser

    from . import training

    recipes: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "detector": (training.DetectorRecipe, training.train_detector),
        "matcher": (training.MatcherRecipe, training.train_matcher),
    }
    recipe_class, run = recipes[args.network]
    parser = HfArgumentParser(recipe_class, prog=f"lightglue-hf train {args.network}")
    if args.options[:1] == ["--config"] and len(args.options) == 2:
        (recipe,) = parser.parse_yaml_file(args.options[1])
    else:
        (recipe,) = parser.parse_args_into_dataclasses(args.options)
    run(recipe)
    print(f"wrote {recipe.output_dir}")


def export(args: argparse.Namespace) -> None:
    """Write graphs for ONNX Runtime or OpenVINO, and print how they compare with PyTorch."""
    from .export import ExportOptions, export

    options = ExportOptions(
        parts=tuple(args.part),
        batch_size=args.batch_size,
        height=args.height,
        width=args.width,
        num_keypoints=args.num_keypoints,
        adaptive=args.adaptive,
        weight_format=args.weight_format,
        calibration=args.calibration,
        num_samples=args.num_samples,
        opset=args.opset,
        validate=args.validate,
    )
    model = bundled_checkpoint(args.model) if args.model == BUNDLED else Path(args.model).expanduser()
    start = time.perf_counter()
    for result in export(model if model.is_dir() else args.model, args.output, args.format, options):
        print(result)
    print(f"wrote {args.output} in {time.perf_counter() - start:.1f} s")


def _match(images: list[Image], args: argparse.Namespace) -> Matches:
    """Load the model, set what the options set, and match one pair."""
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    processor, model = _load(args.model, device, args.dtype)
    _apply(args, model)

    start = time.perf_counter()
    options = {"size": {"longest_edge": args.size}} if args.size else {}
    inputs = processor([images], return_tensors="pt", **options).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        outputs = model(**inputs)
    sizes = [[(image.height, image.width) for image in images]]
    (pair,) = processor.post_process_keypoint_matching(outputs, sizes, threshold=args.threshold or 0.0)
    arrays = {name: value.float().cpu().numpy() for name, value in pair.items()}
    seconds = time.perf_counter() - start
    stop = getattr(outputs, "stop", None)
    return Matches(
        **arrays,
        found=(outputs.mask[0] > 0).sum(dim=-1).tolist(),
        stop=None if stop is None else int(stop[0]),
        layers=getattr(model.config, "num_hidden_layers", None),
        seconds=seconds,
        engine=getattr(model, "engine", f"PyTorch {torch.__version__} on {model.device}"),
    )


def _apply(args: argparse.Namespace, model: Any) -> None:
    """Set what the options set; in an exported graph it is what it was made with."""
    config = model.config
    detector: Any = getattr(config, "keypoint_detector_config", None)
    if hasattr(model, "engine"):
        if args.max_keypoints not in (None, detector.max_keypoints):
            raise CommandError(f"{args.model} was exported for {detector.max_keypoints} keypoints: export it again")
        if args.threshold is not None and args.threshold < config.filter_threshold:
            raise CommandError(f"{args.model} was exported with the threshold {config.filter_threshold}")
        return
    if args.max_keypoints and detector is not None:
        detector.max_keypoints = args.max_keypoints
    if args.threshold is not None:
        config.filter_threshold = args.threshold


def _load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Read a processor and a model whose weights are all there, from the package, a directory or the Hub."""
    import torch
    import transformers
    from transformers import AutoImageProcessor, AutoModelForKeypointMatching

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory = bundled_checkpoint(name) if name == BUNDLED else Path(name).expanduser()
    if directory.is_dir():
        for file in ("config.json", "preprocessor_config.json"):
            if not (directory / file).is_file():
                raise CommandError(f"no model in {directory}: there is no {file}")
        where, problem = str(directory), f"cannot load the model {name}"
    elif directory.exists() or name.startswith((".", "/", "~")):
        raise CommandError(f"{name} is no directory with a model")
    else:
        where, problem = name, f"cannot load the model {name} from the Hub (and no directory here is called that)"
    exported = _exported(directory)
    try:
        processor = AutoImageProcessor.from_pretrained(where)
        if exported is not None:
            return processor, exported(directory, device, dtype)
        model, info = AutoModelForKeypointMatching.from_pretrained(
            where, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever a broken file makes transformers, safetensors or json raise
        raise CommandError(f"{problem}: {_one_line(error)}") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            keys = sorted(info[kind])
            raise CommandError(f"{problem}: {len(keys)} {kind.replace('_', ' ')}, {keys[0]} first")
    return processor, model.eval().to(device)


def _exported(directory: Path) -> Callable[[Path, str, str], Any] | None:
    """How to load the graphs in a directory, if it has any."""
    from . import runtime

    def openvino(directory: Path, device: str, dtype: str) -> Any:
        hint = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
        options = {"device": device, "ov_config": {"INFERENCE_PRECISION_HINT": hint}}
        return runtime.OVModelForKeypointMatching.from_pretrained(directory, **options)

    def onnxruntime(directory: Path, device: str, dtype: str) -> Any:
        providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if dtype != "float32" or device not in providers:
            raise CommandError(f"ONNX Runtime is run in float32, on {' or '.join(providers)}, not {dtype} on {device}")
        return runtime.ORTModelForKeypointMatching.from_pretrained(directory, provider=providers[device])

    for pattern, load in (("openvino_*.xml", openvino), ("*.onnx", onnxruntime)):
        if any(directory.glob(pattern)):
            return load
    return None


def _report(result: Matches, args: argparse.Namespace) -> None:
    layers = f", stopped after layer {result.stop} of {result.layers}" if result.stop is not None else ""
    print(f"{len(result.keypoints0)} matches{layers}, in {result.seconds:.2f} s without loading the model")
    print(f"computed by {result.engine}")


def _report_inliers(result: Matches) -> np.ndarray | None:
    """Print how many matches agree with a fundamental matrix, and return which; None without PoseLib."""
    from .evaluation import estimate_fundamental

    try:
        matrix, inliers = estimate_fundamental(result.keypoints0, result.keypoints1)
    except ImportError as error:
        print(f"Inliers are not counted: {error}")
        return None
    if matrix is None:
        print("no fundamental matrix found")
    else:
        print(f"{inliers.sum()} inliers of a fundamental matrix (1.5 px), {inliers.mean():.0%} of the matches")
    return inliers


def _draw(images: list[Image], result: Matches, path: Path) -> None:
    from .visualization import draw_matches

    left, right = images
    draw_matches(left, right, result.keypoints0, result.keypoints1, result.matching_scores).save(path)
    print(f"wrote {path}")


def _save(images: list[Image], result: Matches, inliers: np.ndarray | None, args: argparse.Namespace) -> None:
    """Write the matches and what they are of, as JSON or as NumPy arrays with the rest in `metadata`."""
    import numpy as np

    arrays = {name: getattr(result, name) for name in ("keypoints0", "keypoints1", "matching_scores")}
    if inliers is not None:
        arrays["inliers"] = inliers
    metadata = {
        "images": args.images,
        "image_sizes": [[image.height, image.width] for image in images],  # (height, width)
        "model": args.model,
        "dtype": args.dtype,
        "engine": result.engine,
        "stop": result.stop,
        "seconds": round(result.seconds, 4),
        "version": __version__,
    }
    if args.save.suffix.lower() == ".json":
        lists = {name: values.tolist() for name, values in arrays.items()}
        args.save.write_text(json.dumps(metadata | lists) + "\n")
    else:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays, metadata=np.array(json.dumps(metadata)))
        args.save.write_bytes(buffer.getvalue())
    print(f"wrote {args.save}")


def _parser() -> Parser:
    parser = Parser(prog="lightglue-hf", description="LightGlue keypoint matching.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    options = Parser(add_help=False)
    options.add_argument(
        "--model",
        default=BUNDLED,
        metavar="DIR_OR_HUB_ID",
        help=f'"{BUNDLED}", the checkpoint in this package (default), a directory or a name on the Hub',
    )
    options.add_argument("--max-keypoints", type=_count, metavar="N", help="the best N of each photo")
    options.add_argument("--size", type=_count, metavar="N", help="resize the longer side of each photo to N pixels")
    options.add_argument("--threshold", type=_score, metavar="T", help="keep matches that score above T")
    options.add_argument("--device", metavar="DEVICE", help="cpu, cuda, mps, ... (default: cuda where there is one)")
    options.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))

    help_match = "match two photos"
    parser_match = commands.add_parser("match", parents=[options], help=help_match, epilog=EPILOG)
    parser_match.add_argument("images", nargs=2, metavar="PHOTO", help="path or URL; EXIF orientation is applied")
    parser_match.add_argument("-o", "--output", type=_picture, metavar="PNG", help="draw the matches")
    parser_match.add_argument("--save", type=_table, metavar="FILE", help="write the matches to a .json or .npz file")
    parser_match.set_defaults(run=match)

    help_demo = "match a stereo pair whose truth is known, with 1024 keypoints unless told otherwise"
    parser_demo = commands.add_parser("demo", parents=[options], help=help_demo)
    parser_demo.add_argument("-o", "--output", type=_picture, default=Path("demo.png"), metavar="PNG")
    parser_demo.set_defaults(run=demo)

    help_train = "train the detector, or the matcher on a trained detector, from procedural images"
    parser_train = commands.add_parser(
        "train", help=help_train, epilog="docs/training.md says how and with what result."
    )
    parser_train.add_argument("network", choices=("detector", "matcher"))
    help_options = "the recipe: --config FILE.yaml, or its fields as options; --help lists them"
    parser_train.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTIONS", help=help_options)
    parser_train.set_defaults(run=train)

    help_export = "write graphs for ONNX Runtime or OpenVINO"
    parser_export = commands.add_parser("export", help=help_export, epilog="docs/export.md describes the graphs.")
    parser_export.add_argument("format", choices=("onnx", "openvino"))
    parser_export.add_argument("model", metavar="MODEL", help=f'"{BUNDLED}", a directory or a name on the Hub')
    parser_export.add_argument("output", type=Path, metavar="OUT", help="directory")
    parser_export.add_argument("-b", "--batch-size", type=int, default=0, metavar="N", help="pairs; 0: any (default)")
    parser_export.add_argument("--height", type=int, default=0, metavar="N", help="of the images; 0: any (default)")
    parser_export.add_argument("--width", type=int, default=0, metavar="N", help="of the images; 0: any (default)")
    help_keypoints = "keypoints of an image, fewer are padded; default: the model's maximum, or 1024"
    parser_export.add_argument("--num-keypoints", type=_count, metavar="N", help=help_keypoints)
    help_part = "one or several; default: pipeline"
    parts = ("pipeline", "detector", "matcher")
    parser_export.add_argument("--part", nargs="+", choices=parts, default=parts[:1], help=help_part)
    parser_export.add_argument("--adaptive", action="store_true", help="stop early and prune points; one pair a run")
    parser_export.add_argument("--weight-format", choices=("fp32", "fp16", "int8"), default="fp32")
    help_calibration = "quantise activations too, by the photos in this folder (openvino)"
    parser_export.add_argument("--calibration", metavar="PHOTOS", help=help_calibration)
    parser_export.add_argument("--num-samples", type=_count, default=100, metavar="N", help="pairs of those photos")
    parser_export.add_argument("--opset", type=_count, default=18, metavar="N", help="of ONNX")
    help_validate = "compare every graph with PyTorch, and fail where they differ (default)"
    parser_export.add_argument("--validate", action=argparse.BooleanOptionalAction, default=True, help=help_validate)
    parser_export.set_defaults(run=export)
    return parser


def _number(text: str, convert: Callable[[str], float], valid: Callable[[float], bool], what: str) -> Any:
    try:
        value = convert(text)
    except ValueError:
        value = math.nan
    if not valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _count(text: str) -> int:
    return _number(text, int, lambda value: value > 0, "a whole number above 0")


def _score(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _picture(text: str) -> Path:
    from PIL import Image

    readable = Image.registered_extensions()
    return _target(text, {suffix for suffix, kind in readable.items() if kind in Image.SAVE}, ".png or .jpg")


def _table(text: str) -> Path:
    return _target(text, {".json", ".npz"}, ".json or .npz")


def _target(text: str, suffixes: set[str], examples: str) -> Path:
    """Return the path of a file to write, and refuse before the work is done what cannot be written after it."""
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"cannot tell how to write {text!r}: the name must end in {examples}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the directory of {text!r} does not exist")
    return path


def _is_the_users(error: Exception) -> bool:
    """Is this what wrong files, options or machines cause, rather than a fault in the program?"""
    from PIL.Image import DecompressionBombError

    return isinstance(error, (CommandError, DecompressionBombError, ImportError, OSError, RuntimeError, ValueError))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."


if __name__ == "__main__":
    sys.exit(main())
