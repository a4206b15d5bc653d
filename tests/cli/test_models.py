"""Which model the options name, and what is wrong with it."""

from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file

from lightglue_hf import bundled_checkpoint, cli
from lightglue_hf.utils.errors import InputError


def test_the_bundled_checkpoint_has_a_name():
    assert cli.models.find_checkpoint("tiny") == bundled_checkpoint("tiny")
    for command in (["match", "a", "b"], ["demo"]):
        assert cli.parser().parse_args(command).model == "tiny"


def test_a_name_is_a_directory_or_one_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert cli.models.find_checkpoint("mine") == Path("mine")
    assert cli.models.find_checkpoint("owner/name") == "owner/name"
    with pytest.raises(InputError, match=r"'superpiont' is no directory, no name on the Hub .*: tiny, superpoint"):
        cli.models.find_checkpoint("superpiont")  # and the Hub is not asked


def test_the_revision_goes_to_the_hub_and_remote_code_does_not_run(monkeypatch, error, photos):
    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options["revision"], options["trust_remote_code"]))
        raise OSError("offline")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", from_pretrained)
    error("match", *photos, "--model", "owner/name", "--revision", "v2")
    error("match", *photos, "--model", "owner/name")
    assert asked == [("owner/name", "v2", False), ("owner/name", "main", False)]


def test_only_demo_has_a_number_of_keypoints_of_its_own():
    parse = cli.parser().parse_args
    assert parse(["match", "a", "b"]).max_keypoints is None
    assert parse(["match", "a", "b"]).longest_edge is None
    assert parse(["demo"]).max_keypoints == 1024


def test_errors_of_models(error, photos, checkpoint, tmp_path):
    def copy(name):
        directory = tmp_path / name
        directory.mkdir()
        for file in checkpoint.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        return directory, directory / "model.safetensors"

    assert "nowhere' is no directory" in error("match", *photos, "--model", tmp_path / "nowhere")
    assert "is a file, no directory" in error("match", *photos, "--model", photos[0])
    assert "there is no config.json" in error("match", *photos, "--model", tmp_path)
    assert "some/model from the Hub" in error("match", *photos, "--model", "some/model")  # offline

    directory, weights = copy("truncated")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"cannot load the model {directory}" in error("match", *photos, "--model", directory)

    directory, weights = copy("pickled")
    weights.rename(directory / "pytorch_model.bin")
    assert "safetensors" in error("match", *photos, "--model", directory)

    directory, weights = copy("missing")
    state = load_file(weights)
    del state["positional_encoder.projector.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    line = error("match", *photos, "--model", directory)
    assert "1 missing keys, positional_encoder.projector.weight first" in line

    directory, weights = copy("unexpected")
    state = load_file(weights)
    state["stranger"] = state["positional_encoder.projector.weight"].clone()
    save_file(state, weights, metadata={"format": "pt"})
    assert "1 unexpected keys, stranger first" in error("match", *photos, "--model", directory)

    directory, _ = copy("broken")
    (directory / "config.json").write_text("{")
    assert "broken/config.json is no JSON" in error("match", *photos, "--model", directory)
