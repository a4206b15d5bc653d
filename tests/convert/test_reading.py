"""What is read is looked at first: kinds of files, sizes, names; no code of a checkpoint runs."""

import json
import os
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from lightglue_hf.convert import reading
from lightglue_hf.convert.directories import convert, convert_back
from lightglue_hf.convert.reading import load_pickle, read_tensors
from lightglue_hf.utils.files import LARGEST_JSON

from ..tiny import whole_model
from .test_directories import files, save, small_superpoint, tensors_of


def refused(path, tmp_path, error, match):
    """A conversion of this file fails, in one line, and leaves nothing."""
    before = files(tmp_path)
    with pytest.raises(error, match=match) as raised:
        convert(str(path), tmp_path / "out", log=lambda _: None)
    assert "\n" not in str(raised.value)
    assert files(tmp_path) == before


# -- few bytes that stand for many


def test_an_expanded_tensor_is_refused_before_it_is_written_out(tmp_path):
    huge = torch.zeros(1).expand(1 << 40)  # four terabytes: no machine survives it unrefused
    save({**tensors_of("disk"), "posenc.Wr.weight": huge}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 1 << 22
    refused(tmp_path / "a.pth", tmp_path, ValueError, r"refused: posenc\.Wr\.weight has the shape \(1099511627776,\)")


def test_one_part_of_the_file_for_many_tensors_is_refused(tmp_path):
    part = torch.zeros(1000)
    save({f"stranger.{i}": part for i in range(1000)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", tmp_path, ValueError, r"refused: 4,000,000 bytes of tensors in")


def test_tied_weights_are_read(tmp_path):
    weight = torch.ones(10000)
    assert len(read_tensors(save({"a": weight, "b": weight}, tmp_path / "a.pth"), print)) == 2


def test_a_compressed_archive_is_refused(tmp_path):
    source = save(tensors_of("disk"), tmp_path / "a.pth")
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as small:
        for name in archive.namelist():
            small.writestr(name, archive.read(name))
    assert load_pickle(source)
    source.unlink()
    refused(tmp_path / "b.pth", tmp_path, ValueError, "b.pth: refused: a compressed archive")


def test_a_larger_file_than_is_read_is_refused(tmp_path, monkeypatch):
    source = save(tensors_of("disk"), tmp_path / "a.pth")
    monkeypatch.setattr(reading, "LARGEST_FILE", 1000)
    refused(source, tmp_path, OSError, "more than the 1,000 that are read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero"):
        with pytest.raises(OSError, match="device or pipe, and no file"):
            convert(str(path), tmp_path / "out", log=print)


@pytest.mark.parametrize("layers", [2**31, 10**9])
def test_a_configuration_of_too_many_layers_is_refused(tmp_path, layers):
    model = whole_model()
    model.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": layers}))
    directory = path.parent
    loads = (
        lambda: convert(str(directory), tmp_path / "out", log=print),
        lambda: AutoModel.from_pretrained(directory),
    )
    for load in loads:
        with pytest.raises(ValueError, match=f"num_hidden_layers.*{layers}"):
            load()


def test_a_large_configuration_is_refused(tmp_path):
    whole_model().save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/config.json").write_text(" " * (LARGEST_JSON + 1))
    refused(tmp_path / "saved", tmp_path, OSError, r"config\.json has 1,048,577 bytes")


def test_a_safetensors_header_that_lies_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(tmp_path / "a.safetensors", tmp_path, ValueError, "broken safetensors")


# -- what a file is


def test_other_kinds_are_named(tmp_path):
    detector = save({"desc_head.agg_weights": torch.ones(2, 2, 2)}, tmp_path / "aliked.pth")
    matcher = save(tensors_of("disk"), tmp_path / "disk.pth")
    with pytest.raises(ValueError, match=r"--detector: disk\.pth is no detector of this package: this is a LightGlue"):
        convert(str(matcher), tmp_path / "out", str(matcher), log=print)
    with pytest.raises(ValueError, match="not an ALIKED checkpoint"):
        convert(str(detector), tmp_path / "out", log=print)
    strange = save({"stranger": torch.ones(1)}, tmp_path / "strange.pth")
    with pytest.raises(ValueError, match="not a LightGlue checkpoint: unknown tensors, stranger"):
        convert(str(strange), tmp_path / "out", log=print)


@pytest.mark.parametrize("key", ["model", "state_dict", "extractor"])
def test_nested_tensors(tmp_path, key):
    said = []
    source = save({key: small_superpoint(), "epoch": 3}, tmp_path / "a.pth")
    convert(str(source), tmp_path / "out", log=said.append)
    assert "left out, of training only: epoch" in said
    weight = AutoModel.from_pretrained(tmp_path / "out").encoder.conv_blocks[0].conv_a.weight
    assert torch.equal(weight, small_superpoint()["conv1a.weight"])


def test_a_file_has_no_way_back(tmp_path):
    source = save(tensors_of("disk"), tmp_path / "a.pth")
    for to in ("cvg", "transformers"):
        with pytest.raises(ValueError, match=r"a\.pth is a file: --to takes a directory with config\.json and model"):
            convert_back(source, tmp_path / "out", to)


# -- remote code

REMOTE = """
from pathlib import Path
Path({trace!r}).write_text("executed")
from transformers import PretrainedConfig
class Hostile(PretrainedConfig):
    model_type = "hostile"
"""
LOAD = """
import sys
from pathlib import Path
from transformers import AutoModel
from lightglue_hf import LightGlueForKeypointMatching
from lightglue_hf.convert.directories import convert, convert_back

where, out = sys.argv[1], sys.argv[2]
loads = {
    "convert": lambda: convert(where, out),
    "as a detector": lambda: convert(sys.argv[3], out, where),
    "to cvg": lambda: convert_back(where, out + ".pth", "cvg"),
    "to transformers": lambda: convert_back(where, out, "transformers"),
    "our class": lambda: LightGlueForKeypointMatching.from_pretrained(where),
}
for name, load in loads.items():
    try:
        load()
        print(name, "loaded")
    except (ValueError, OSError) as error:
        print(name, "refused")
"""


@pytest.mark.parametrize("place", ["model", "detector"])
def test_code_of_a_checkpoint_never_runs_whatever_is_answered(tmp_path, place):
    trace, hostile = tmp_path / "executed", tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "code.py").write_text(REMOTE.format(trace=str(trace)))
    (hostile / "configuration_hostile.py").write_text(REMOTE.format(trace=str(trace)))
    values = {
        "model_type": "hostile",
        "auto_map": {"AutoConfig": "configuration_hostile.Hostile", "AutoModel": "configuration_hostile.Hostile"},
    }
    if place == "detector":
        values = {"model_type": "lightglue", "keypoint_detector_config": values, "trust_remote_code": True}
    (hostile / "config.json").write_text(json.dumps(values))
    (hostile / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Hostile", "auto_map": {"AutoImageProcessor": "code.Hostile"}})
    )
    save_file({"a": torch.ones(1)}, hostile / "model.safetensors", {"format": "pt"})
    matcher = save(tensors_of("sp"), tmp_path / "matcher.pth")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(hostile), str(tmp_path / "out"), str(matcher)],
        input="y\n" * 20,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 5, done.stdout
    assert not trace.exists()
    if place == "model":
        code = "import sys, transformers; transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)"
        environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
        subprocess.run([sys.executable, "-c", code, str(hostile)], env=environment, check=True)
        assert trace.exists(), "it is meant to be hostile"
