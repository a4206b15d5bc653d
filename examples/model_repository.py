"""Write a folder for OpenVINO Model Server: `NAME/1/` with a graph, and `config.json`, which lists the models.

    pip install ".[openvino]"
    python examples/model_repository.py tiny models
    docker run --rm -p 8000:8000 -v $PWD/models:/models:ro openvino/model_server:latest \
        --config_path /models/config.json --rest_port 8000

docs/serving.md has a client.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from lightglue_hf import ExportOptions, located
from lightglue_hf.export import export

MOUNTED = "/models"  # where the server sees the folder


def write_model(model: str, repository: Path, name: str, options: ExportOptions) -> Path:
    """Export the pipeline of a model as the next version of `name`, and return the folder of that version."""
    versions = [int(path.name) for path in (repository / name).glob("*") if path.name.isdigit()]
    version = repository / name / str(max(versions, default=0) + 1)
    with tempfile.TemporaryDirectory(dir=repository) as directory:
        for check in export(located(model), directory, "openvino", options):
            print(check)
        staged = Path(directory, "version")
        staged.mkdir()
        for file in Path(directory).glob("openvino_model.*"):
            shutil.move(file, staged)
        version.parent.mkdir(exist_ok=True)
        staged.rename(version)  # a server that watches the folder sees a version when it is whole
    return version


def write_config(repository: Path) -> None:
    """List every model of the folder."""
    names = sorted(path.parent.name for path in repository.glob("*/[0-9]*"))
    models = [{"config": {"name": name, "base_path": f"{MOUNTED}/{name}"}} for name in dict.fromkeys(names)]
    (repository / "config.json").write_text(json.dumps({"model_config_list": models}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's name, a directory or a name on the Hub")
    parser.add_argument("repository", type=Path, help="folder to write to")
    parser.add_argument("--name", help="of the model on the server (default: the checkpoint's)")
    parser.add_argument("--height", type=int, default=0, help="of the images; 0: any (default)")
    parser.add_argument("--width", type=int, default=0, help="of the images; 0: any (default)")
    options = parser.parse_args()
    options.repository.mkdir(parents=True, exist_ok=True)
    name = options.name or Path(options.model).name
    shapes = ExportOptions(height=options.height, width=options.width)
    print(f"wrote {write_model(options.model, options.repository, name, shapes)}")
    write_config(options.repository)


if __name__ == "__main__":
    main()
