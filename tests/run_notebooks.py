"""Run the notebooks, each from a fresh kernel; as a script, keep what they show, with small pictures.

python -m tests.run_notebooks
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TIMEOUT = 600  # seconds of a cell
WIDTH, QUALITY = 720, 60  # of the pictures that are kept: pixels, and JPEG's quality


def run_notebook(path: Path, directory: Path) -> Any:
    """A notebook with the outputs of all its cells; an error in one of them is raised.

    Args:
        path: of the notebook, which stays as it is.
        directory: to run in.
    """
    import nbclient
    import nbformat

    book = nbformat.read(path, as_version=4)
    here = {"HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(directory / "ipython"), "TMPDIR": str(directory)}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | here
    with mock.patch.dict(os.environ, environment, clear=True):
        client = nbclient.NotebookClient(
            book,
            timeout=TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": directory}},
        )
        return client.execute()


def small(output: Any) -> Any:
    """An output with its picture, if any, as a small JPEG."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        if picture.width > WIDTH:
            picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()
        output["metadata"] = {}
    return output


def main() -> None:
    import nbformat

    for path in (path for path in NOTEBOOKS if path.stem in (sys.argv[1:] or path.stem)):
        with tempfile.TemporaryDirectory() as directory:
            book = run_notebook(path, Path(directory))
        for cell in book.cells:
            if cell.cell_type == "code":
                kept = [output for output in cell.outputs if output.get("name") != "stderr"]
                cell.outputs = [small(output) for output in kept if "text/html" not in output.get("data", {})]
        book.metadata.language_info = {"name": "python"}  # without the version that ran it
        nbformat.write(book, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
