"""The list of checkpoints that have a name, and fetching them."""

import json

from lightglue_hf import bundled_checkpoint, cli
from lightglue_hf.convert import published


def test_the_list_has_every_name_and_its_licence(capsys):
    assert cli.main(["checkpoints"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*published.BUNDLED, *published.CHECKPOINTS]
    assert "non-commercial (Magic Leap)" in next(line for line in lines if line.startswith("superpoint "))
    assert " here " in lines[0]
    assert cli.main(["checkpoints", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [line.split()[0] for line in lines]
    assert all(row["megabytes"] > 0 for row in rows)


def test_fetching_prints_the_directory(capsys):
    assert cli.main(["checkpoints", "fetch", "tiny"]) == 0
    assert capsys.readouterr().out.strip() == str(bundled_checkpoint("tiny"))


def test_what_cannot_be_fetched_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.delenv("LIGHTGLUE_HF_WEIGHTS", raising=False)
    assert cli.main(["checkpoints", "fetch"]) == 2
    assert "fetch what?" in capsys.readouterr().err
    assert cli.main(["checkpoints", "fetch", "superpiont"]) == 2
    assert "no checkpoint is called 'superpiont'" in capsys.readouterr().err
    assert cli.main(["checkpoints", "fetch", "aliked"]) == 2  # the tests are offline
    assert "lightglue-hf checkpoints fetch aliked" in capsys.readouterr().err
