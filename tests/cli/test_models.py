"""Which model the options name, and what is wrong with it."""

from safetensors.torch import load_file, save_file

from lightglue_hf import cli


def test_demo_and_match_use_the_bundled_checkpoint_by_name(monkeypatch, photos, checkpoint, capsys):
    asked = []
    monkeypatch.setattr(cli.models, "bundled_checkpoint", lambda name: asked.append(name) or checkpoint)
    assert cli.main(["match", *photos]) == 0
    assert cli.main(["match", *photos, "--model", str(checkpoint)]) == 0
    assert asked == ["tiny"]


def test_only_demo_has_a_number_of_keypoints_of_its_own():
    parse = cli.parser().parse_args
    assert parse(["match", "a", "b"]).max_keypoints is None
    assert parse(["match", "a", "b"]).size is None
    assert parse(["demo"]).max_keypoints == 1024


def test_errors_of_models(error, photos, checkpoint, tmp_path):
    def copy(name):
        directory = tmp_path / name
        directory.mkdir()
        for file in checkpoint.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        return directory, directory / "model.safetensors"

    assert "no directory with a model" in error("match", *photos, "--model", tmp_path / "nowhere")
    assert "no directory with a model" in error("match", *photos, "--model", photos[0])
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
    assert f"cannot load the model {directory}" in error("match", *photos, "--model", directory)
