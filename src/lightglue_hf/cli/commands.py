"""The command `lightglue-hf`: match two photos, evaluate, train, look at the training data, convert, export.

    lightglue-hf match left.jpg right.jpg -o matches.png --save matches.json
    lightglue-hf demo
    lightglue-hf evaluate --data stereo --markdown figures.md
    lightglue-hf train detector --output_dir runs/detector
    lightglue-hf show-data -o grid.png
    lightglue-hf convert superpoint_lightglue.pth superpoint_lightglue --superpoint superpoint_v1.pth
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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import __version__, bundled_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ..evaluation.datasets import Dataset
    from ..evaluation.methods import Method

BUNDLED = "tiny"
METHODS = ("model", "nearest", "rootsift", "rootsift-ratio")
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
    from ..images import load_image

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

    from ..evaluation import match_precision

    try:
        from skimage.data import stereo_motorcycle
    except ImportError as error:
        raise ImportError("The demonstration needs scikit-image: install lightglue-hf[demo].") from error
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


def evaluate(args: argparse.Namespace) -> None:
    """Print how the model and baselines do on datasets, as a table, and write the figures."""
    from ..evaluation import adaptivity, comparison
    from ..utils.files import write_atomically

    if args.adaptivity and (args.json or args.methods or args.cache):
        raise CommandError("--adaptivity is about the model alone, measured now: no --json, --methods or --cache")
    datasets = _datasets(args)
    if args.adaptivity:
        processor, model = _load_matcher(args)
        if hasattr(model, "engine"):
            raise CommandError(f"--adaptivity needs PyTorch's hidden states: {args.model} is an exported graph")
        results = [adaptivity.measure_adaptivity(model, processor, data, args.size) for data in datasets]
        table, records = adaptivity.to_markdown(results), []
    else:
        records = comparison.compare(datasets, _methods(args), args.cache)
        table = comparison.to_markdown(comparison.summarize(records))
    print(table, end="")
    if args.markdown:
        write_atomically(args.markdown, table)
    if args.json:
        names = ("model", "max_keypoints", "size", "threshold", "device", "dtype")
        settings = {"version": __version__} | {name: getattr(args, name) for name in names}
        write_atomically(args.json, comparison.to_json(records, settings))


def train(args: argparse.Namespace) -> None:
    """Train as a recipe says, from its options or from a YAML file."""
    from transformers import HfArgumentParser

    from .. import training

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


def show_data(args: argparse.Namespace) -> None:
    """Draw pairs as the training sees them: the teacher's keypoints and their true matches."""
    from ..data.homographies import ground_truth_matches, sample_pairs
    from ..data.textures import render_textures
    from ..training import teacher_keypoints
    from ..visualization import draw_pairs

    canvases = render_textures(2 * args.pairs, 2 * args.height, 2 * args.width, args.seed)
    seeds = range(args.seed, args.seed + args.pairs)
    pairs = sample_pairs(canvases, seeds, args.height, args.width, multi_plane=args.multi_plane)
    points, responses = (found.unflatten(0, (-1, 2)) for found in teacher_keypoints(pairs.clean.flatten(0, 1), 64))
    matches = ground_truth_matches(points, responses > 0, pairs.homographies, pairs.layers)
    draw_pairs(pairs, points, matches).save(args.output)
    print(f"wrote {args.output}")


def convert(args: argparse.Namespace) -> None:
    """Convert a checkpoint of another project to a directory, or a directory back."""
    import transformers

    from ..convert import directories as checkpoint_files

    transformers.logging.disable_progress_bar()
    if args.private and not args.push_to_hub:
        raise CommandError("--private needs --push-to-hub")
    if args.to and (args.verify or args.push_to_hub):
        raise CommandError("--verify and --push-to-hub are for the way there, not for --to")
    if args.to:
        checkpoint_files.convert_back(args.source, args.out, args.to, args.superpoint)
    else:
        checkpoint_files.convert(args.source, args.out, args.superpoint, args.verify)
    if args.push_to_hub:
        checkpoint_files.push_to_hub(args.out, args.push_to_hub, args.private)


def export(args: argparse.Namespace) -> None:
    """Write graphs for ONNX Runtime or OpenVINO, and print how they compare with PyTorch."""
    from ..export import ExportOptions, export

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

    processor, model = _load_configured(args)
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


def _datasets(args: argparse.Namespace) -> list[Dataset]:
    """Make the datasets that the options ask for, or else all that need no files."""
    from ..evaluation.datasets import BUILT_IN, hpatches, posed, unposed

    asked = bool(args.data or args.hpatches or args.posed or args.pair)
    return [
        *(BUILT_IN[name]() for name in (args.data if asked else BUILT_IN)),
        *(hpatches(directory) for directory in args.hpatches),
        *(posed(*paths) for paths in args.posed),
        *(unposed(*paths) for paths in args.pair),
    ]


def _methods(args: argparse.Namespace) -> list[Method]:
    """Load the model, and make the methods that the options ask for, or else all that are installed."""
    from ..evaluation.methods import lightglue, nearest_rootsift

    processor, model = _load_matcher(args)
    name = Path(args.model).name
    methods: dict[str, Callable[[], Method]] = {
        "model": lambda: lightglue(name, model, processor, args.size),
        "nearest": lambda: lightglue(f"{name}'s detector, mutual nearest", model, processor, args.size, nearest=True),
        "rootsift": lambda: nearest_rootsift("RootSIFT, mutual nearest", args.max_keypoints),
        "rootsift-ratio": lambda: nearest_rootsift("RootSIFT, ratio 0.8", args.max_keypoints, ratio=0.8),
    }
    if args.methods is None and not find_spec("cv2"):
        print("RootSIFT is left out, for want of OpenCV: install lightglue-hf[eval]", file=sys.stderr)
        args.methods = METHODS[:2]
    return [methods[method]() for method in args.methods or METHODS]


def _load_matcher(args: argparse.Namespace) -> tuple[Any, Any]:
    """Read a processor and a model with a detector."""
    from ..modeling_lightglue import LightGlueForKeypointMatching

    processor, model = _load_configured(args)
    is_model = isinstance(model, LightGlueForKeypointMatching)
    if not (is_model or hasattr(model, "engine")) or not model.config.use_keypoint_detector:
        raise CommandError(f"{args.model} is no LightGlue model with a keypoint detector")
    return processor, model


def _load_configured(args: argparse.Namespace) -> tuple[Any, Any]:
    """Read a processor and a model, and set what the options set."""
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    processor, model = _load(args.model, args.device, args.dtype)
    _apply(args, model)
    return processor, model


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
    from .. import runtime

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
    from ..evaluation import estimate_fundamental

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
    from ..visualization import draw_matches

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
    from ..evaluation.datasets import BUILT_IN

    parser = Parser(prog="lightglue-hf", description="LightGlue keypoint matching.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    help_match = "match two photos"
    parser_match = commands.add_parser("match", parents=[_model_options()], help=help_match, epilog=EPILOG)
    parser_match.add_argument("images", nargs=2, metavar="PHOTO", help="path or URL; EXIF orientation is applied")
    parser_match.add_argument("-o", "--output", type=_picture, metavar="PNG", help="draw the matches")
    parser_match.add_argument("--save", type=_table, metavar="FILE", help="write the matches to a .json or .npz file")
    parser_match.set_defaults(run=match)

    help_demo = "match a stereo pair whose truth is known, with 1024 keypoints unless told otherwise"
    parser_demo = commands.add_parser("demo", parents=[_model_options()], help=help_demo)
    parser_demo.add_argument("-o", "--output", type=_picture, default=Path("demo.png"), metavar="PNG")
    parser_demo.set_defaults(run=demo, max_keypoints=1024)

    help_evaluate = "score the model beside RootSIFT on pairs with known truth"
    parser_evaluate = commands.add_parser(
        "evaluate",
        parents=[_model_options()],
        help=help_evaluate,
        epilog="docs/evaluation.md says what is measured and how to lay out the data. Without --data, --hpatches, "
        "--posed and --pair: all that --data knows.",
    )
    several: Any = {"action": "append", "default": []}
    parser_evaluate.add_argument("--data", **several, choices=BUILT_IN, help="made of scikit-image's photos")
    parser_evaluate.add_argument(
        "--hpatches", **several, metavar="DIR", help="a folder with the sequences of HPatches"
    )
    help_posed = "a list of pairs with intrinsics and pose, as of MegaDepth-1500 and ScanNet-1500, and its images"
    parser_evaluate.add_argument("--posed", **several, nargs=2, metavar=("PAIRS.txt", "DIR"), help=help_posed)
    help_pair = "two photos without truth: inliers are counted"
    parser_evaluate.add_argument("--pair", **several, nargs=2, metavar="PHOTO", help=help_pair)
    help_adaptivity = "what adaptive depth and width cost and save, instead of the comparison"
    parser_evaluate.add_argument("--adaptivity", action="store_true", help=help_adaptivity)
    parser_evaluate.add_argument("--methods", nargs="+", choices=METHODS, help="all by default")
    help_cache = "keep predictions here, and compute only the figures the next time"
    parser_evaluate.add_argument("--cache", type=Path, metavar="DIR", help=help_cache)
    parser_evaluate.add_argument("--markdown", type=_markdown, metavar="FILE.md", help="write the table")
    help_json = "write settings, figures and the scores of each pair"
    parser_evaluate.add_argument("--json", type=_json, metavar="FILE.json", help=help_json)
    parser_evaluate.set_defaults(run=evaluate, max_keypoints=1024, size=640)

    help_train = "train the detector, or the matcher on a trained detector, from procedural images"
    parser_train = commands.add_parser(
        "train", help=help_train, epilog="docs/training.md says how and with what result."
    )
    parser_train.add_argument("network", choices=("detector", "matcher"))
    help_options = "the recipe: --config FILE.yaml, or its fields as options; --help lists them"
    parser_train.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTIONS", help=help_options)
    parser_train.set_defaults(run=train)

    help_data = "draw pairs of procedural images with their true matches and layers, as the training sees them"
    parser_data = commands.add_parser("show-data", help=help_data)
    parser_data.add_argument("-o", "--output", type=_picture, default=Path("grid.png"), metavar="PNG")
    parser_data.add_argument("--pairs", type=_count, default=6, metavar="N")
    parser_data.add_argument("--seed", type=int, default=0, metavar="N")
    parser_data.add_argument("--multi-plane", type=_share, default=0.5, metavar="P", help="share of several planes")
    parser_data.add_argument("--height", type=_side, default=192, metavar="N", help="of a view, in pixels")
    parser_data.add_argument("--width", type=_side, default=256, metavar="N")
    parser_data.set_defaults(run=show_data)

    help_convert = "convert a checkpoint of another project to a directory for from_pretrained, or back"
    epilog_convert = "docs/checkpoints.md says which file is which, and under what licence."
    parser_convert = commands.add_parser("convert", help=help_convert, epilog=epilog_convert)
    parser_convert.add_argument("source", metavar="SOURCE", help="file, URL or directory; with --to a directory")
    parser_convert.add_argument("out", metavar="OUT", help="directory, or .pth or .safetensors file, to write")
    help_superpoint = "the detector of a matcher: file, URL or directory; with --to cvg the file to write it to"
    parser_convert.add_argument("--superpoint", metavar="FILE", help=help_superpoint)
    help_verify = "replay the original's mathematics on random features and print the largest difference"
    parser_convert.add_argument("--verify", action="store_true", help=help_verify)
    parser_convert.add_argument("--to", choices=("cvg", "transformers"), help="convert back to that project's form")
    parser_convert.add_argument("--push-to-hub", metavar="REPO", help="upload the directory to the Hub")
    parser_convert.add_argument("--private", action="store_true", help="create a private repository")
    parser_convert.set_defaults(run=convert)

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


def _model_options() -> Parser:
    """The options of a model; made anew for each command, which has its own defaults."""
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
    return options


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


def _side(text: str) -> int:
    return _number(text, int, lambda value: value >= 32, "a whole number of at least 32")


def _score(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _share(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _picture(text: str) -> Path:
    from PIL import Image

    readable = Image.registered_extensions()
    return _target(text, {suffix for suffix, kind in readable.items() if kind in Image.SAVE}, ".png or .jpg")


def _table(text: str) -> Path:
    return _target(text, {".json", ".npz"}, ".json or .npz")


def _markdown(text: str) -> Path:
    return _target(text, {".md"}, ".md")


def _json(text: str) -> Path:
    return _target(text, {".json"}, ".json")


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
