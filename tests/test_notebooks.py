"""The notebooks are small and plain, and run offline with the checkpoint in the package (make test-notebooks)."""

import json
import re

import pytest

from .run_notebooks import NOTEBOOKS, run_notebook

NAMES = ["fine_tuning", "openvino", "panorama", "reconstruction", "two_photos"]
NEEDS = {"fine_tuning": ("accelerate",), "openvino": ("optimum.intel",), "reconstruction": ("pycolmap",)}


def test_there_are_five():
    assert [path.stem for path in NOTEBOOKS] == NAMES
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_plain(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in code]
    assert sources[0].startswith('%matplotlib inline\nCHECKPOINT = "tiny"'), "one variable chooses the checkpoint"
    assert "tiny" not in "".join(sources[1:])
    assert re.findall(r"^\s*[%!?].*$", "\n".join(sources), flags=re.MULTILINE) == ["%matplotlib inline"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs, "readers see what comes out: make notebooks"
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert "image/jpeg" in {kind for output in outputs for kind in output.get("data", {})}
    shown = json.dumps([{**output, "data": sorted(output.get("data", {}))} for output in outputs])
    assert not re.search(r"/tmp/|/home/|/work/|site-packages", shown)


def numbers(pattern, text):
    """The numbers of every place that a pattern fits, as its groups have them."""
    return [[float(value) for value in found.groups()] for found in re.finditer(pattern, text)]


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package)
    book = run_notebook(path, tmp_path)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert any("image/png" in output.get("data", {}) for output in outputs)
    if path.stem == "two_photos":
        assert "more than chance: yes" in text
        one, four = numbers(r"turns=(\d): (\d+) matches, the second photo turned by (\d+) degrees", text)
        assert four[1] > 300
        assert (one[2], four[2]) == (0, 270)
        related, *others = numbers(r": (\d+) matches, stopped", text)
        assert related[0] > 5 * max(count for (count,) in others)
    elif path.stem == "panorama":
        errors = numbers(r"corners (\d+\.\d+) px from the truth", text)
        assert len(errors) == 2
        assert max(errors)[0] < 3
    elif path.stem == "reconstruction":
        assert "6 of 6 photos registered" in text
        errors = numbers(r", (\d+\.\d+) from the truth", text)
        assert len(errors) == 5
        assert max(errors)[0] < 2
    elif path.stem == "fine_tuning":
        assert numbers(r"stage(\d): (\d+) steps, mean loss", text) == [[1, 4], [2, 2]]
        (before,), (after,) = numbers(r"precision (\d\.\d+)", text)
        assert after > 0.9 * before > 0.7
    else:
        counts = numbers(r": (\d+) matches, (\d+) of them PyTorch's", text)
        assert counts[0][0] == counts[0][1] > 300
        assert counts[1][1] > 0.95 * counts[0][0]
        assert numbers(r"(\d+) matches, the second photo turned by (\d+) degrees", text)[0][1] == 270
