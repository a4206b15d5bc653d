"""Build the page that matches photos in a browser: its files, ONNX Runtime for browsers, a model and an example.

    npm ci --prefix web
    python web/build.py build/web --model tiny
    python -m http.server --bind 127.0.0.1 --directory build/web

What is built is static: any web server serves it, from any path.
"""

import argparse
import json
import shutil
from pathlib import Path

from PIL import Image
from skimage import data

from lightglue_hf import LightGlueConfig, located
from lightglue_hf.export import ExportOptions, export

HERE = Path(__file__).parent
PAGE = ("index.html", "style.css", "page.js", "worker.js", "pixels.js", "isolation.js")
RUNTIME = HERE / "node_modules" / "onnxruntime-web"
LIBRARIES = {  # and what they load; the second runs where a browser has WebGPU
    "ort.wasm.min.mjs": ("ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "ort.webgpu.min.mjs": ("ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory to write to")
    parser.add_argument("--model", default="tiny", help="a checkpoint's name, a directory or a name on the Hub")
    parser.add_argument("--max-keypoints", type=int, help="of a photo (default: as many as the model finds in Python)")
    options = parser.parse_args(arguments)
    if not RUNTIME.is_dir():
        parser.error(f"{RUNTIME} is missing: run npm ci --prefix web")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, options.output)
    write_runtime(options.output / "ort")
    write_model(options.model, options.max_keypoints, options.output / "model")
    write_example(options.output / "example")
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    serve = f"python -m http.server --bind 127.0.0.1 --directory {options.output}"
    print(f"wrote {options.output}, {size / 1e6:.0f} MB: {serve}")


def write_runtime(directory: Path) -> None:
    """ONNX Runtime as npm has it, with its licence."""
    directory.mkdir(exist_ok=True)
    for library, files in LIBRARIES.items():
        for name in (library, *files):
            shutil.copy(RUNTIME / "dist" / name, directory)
    version = json.loads((RUNTIME / "package.json").read_text())["version"]
    notice = f"ONNX Runtime Web {version}, Copyright (c) Microsoft Corporation, MIT License:\n"
    (directory / "NOTICE").write_text(f"{notice}https://www.npmjs.com/package/onnxruntime-web/v/{version}\n")


def write_model(name: str, max_keypoints: int | None, directory: Path) -> None:
    """The whole pipeline as one graph, which stops early where the model does, and what the page says of it."""
    where = located(name)
    config = LightGlueConfig.from_pretrained(where)
    options = ExportOptions(adaptive=config.is_adaptive, num_keypoints=max_keypoints)
    for check in export(where, directory, "onnx", options):
        print(check)
    about = {"name": Path(name).name, "layers": config.num_hidden_layers}
    (directory / "about.json").write_text(json.dumps(about))


def write_example(directory: Path) -> None:
    """The stereo pair that comes with scikit-image (Middlebury 2014: a motorcycle)."""
    directory.mkdir(exist_ok=True)
    for name, pixels in zip(("left.jpg", "right.jpg"), data.stereo_motorcycle()):
        Image.fromarray(pixels).save(directory / name, quality=92)


if __name__ == "__main__":
    main()
