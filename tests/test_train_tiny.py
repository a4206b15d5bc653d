"""The bundled checkpoint's photos and stages, on a CPU with a few pairs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightglue_hf import (
    LightGlueForKeypointMatching,
    SuperPointConfig,
    SuperPointForKeypointDetection,
    bundled_checkpoint,
)
from lightglue_hf.data.textures import render_textures
from recipes import photos, tiny

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: Ada
License: GPL-3+

Files: images/land/*
Copyright: Various
License: public-domain
 Taken from morgue-file.com, donated. (Exceptions noted below.)

Files:
 images/land/beach0*
 images/land/city8*
Copyright: Various
License: public-domain
 Taken from a collection
 .
 of donated photographs.

Files: images/land/*-harro*
Copyright: 2018, Harro
License: CC-BY-SA-4.0

Files: images/land/mountain1*
 images/land/mountain-9*
Copyright: Various
License: public-domain

Files: images/land/tree*-berta*
Copyright: Berta
License: CC-BY-4.0

Files: images/land/tree3*
Copyright: Various
License: public-domain

Files: images/land/dune1.jpg
Copyright: Berta,
           Carl
License: CC-BY-4.0

License: CC-BY-4.0
 The text of it.
"""


@pytest.mark.parametrize(
    ("name", "author", "licence", "free"),
    [
        ("images/land/sea3.jpg", "Various", "public-domain", False),  # of a site whose terms say less
        ("images/land/beach0.jpg", "Various", "public-domain", True),
        ("images/land/beach7-harro.jpg", "2018, Harro", "CC-BY-SA-4.0", False),
        ("images/land/mountain1.jpg", "Various", "public-domain", True),
        ("images/land/mountain1@2x.jpg", "Various", "public-domain", True),
        ("images/land/mountain12.jpg", "Various", "public-domain", False),  # another photo, of which nothing is said
        ("images/land/mountain1-harro.jpg", "2018, Harro", "CC-BY-SA-4.0", False),
        ("images/land/mountain12-harro.jpg", "2018, Harro", "CC-BY-SA-4.0", False),
        ("images/land/mountain-9-harro.jpg", "2018, Harro", "CC-BY-SA-4.0", False),
        ("images/land/tree3-berta.jpg", "Berta", "CC-BY-4.0", True),
        ("images/land/tree3.jpg", "Various", "public-domain", True),
        ("images/land/dune1.jpg", "Berta, Carl", "CC-BY-4.0", True),
        ("images/ship.png", "Ada", "GPL-3+", False),
    ],
)
def test_paragraphs_say_the_terms_of_a_file(name, author, licence, free):
    terms = photos.terms_of(name, COPYRIGHT)
    assert (terms.author, terms.licence, terms.free) == (author, licence, free)


def test_a_file_that_no_paragraph_names():
    with pytest.raises(ValueError, match=r"a\.jpg is in no paragraph"):
        photos.terms_of("a.jpg", "Files: b.jpg\nCopyright: Ada\nLicense: CC0-1.0\n")


def test_what_is_wanted_and_free_is_taken(tmp_path):
    source = photos.Source("land", "usr/share/land", "images/land", but=("city*",))
    (tmp_path / "usr/share/land").mkdir(parents=True)
    (tmp_path / "usr/share/doc/land").mkdir(parents=True)
    (tmp_path / "usr/share/doc/land/copyright").write_text(COPYRIGHT)
    for name in ("beach0.jpg", "beach0.txt", "beach7-harro.jpg", "city8.jpg", "dune1.jpg", "sea3.jpg"):
        (tmp_path / "usr/share/land" / name).touch()
    assert [path.name for path, _ in photos.photos(source, tmp_path)] == ["beach0.jpg", "dune1.jpg"]


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """What `--pack` writes, made of other photos and of another teacher."""
    directory = tmp_path / "packed"
    (directory / "photos").mkdir(parents=True)
    for i, canvas in enumerate(render_textures(3, 192, 256, 0)):
        Image.fromarray(canvas).save(directory / "photos" / f"{i}.jpg")
    torch.manual_seed(0)
    sizes = {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "descriptor_decoder_dim": 16}
    SuperPointForKeypointDetection(SuperPointConfig(initializer_range=0.2, **sizes)).save_pretrained(
        directory / "teacher"
    )
    monkeypatch.setattr(tiny, "PACKED", directory)
    return directory


def test_a_stage_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        tiny.main(["--plan", "quick", "--until", "stage3"])
    assert "'stage3'" in capsys.readouterr().err


def test_packing_anew_keeps_runs(packed, monkeypatch, capsys):
    def fetch(arguments):
        Path(arguments[0]).mkdir()
        Path(arguments[0], "new.jpg").write_bytes(b"1234")

    monkeypatch.setattr(photos, "main", fetch)
    monkeypatch.setattr(tiny, "TEACHER", str(packed.rename(packed.with_name("before")) / "teacher"))
    (packed / "photos").mkdir(parents=True)
    (packed / "photos" / "old.jpg").touch()
    (packed / "runs" / "detector").mkdir(parents=True)
    tiny.pack()
    assert sorted(path.name for path in packed.iterdir()) == ["photos", "runs", "teacher"]
    assert [path.name for path in (packed / "photos").iterdir()] == ["new.jpg"]
    assert (packed / "runs" / "detector").is_dir()


def test_all_stages_on_a_cpu_with_a_stop_between(packed, tmp_path, capsys, monkeypatch):
    pytest.importorskip("accelerate")
    short = [replace(stage, fields={**stage.fields, "pairs": 12}) for stage in tiny.PLANS["quick"]]
    monkeypatch.setitem(tiny.PLANS, "quick", short)
    arguments = ["--plan", "quick", "-o", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert tiny.main([*arguments, "--minutes", "0"]) == 0
    assert "step 1 of 3" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "results" / "detector").glob("checkpoint-*")] == ["checkpoint-1"]

    (tmp_path / "results").rename(tmp_path / "runs-elsewhere")
    arguments[3] = str(tmp_path / "runs-elsewhere")
    assert tiny.main(arguments) == 0
    results = tmp_path / "results"
    assert sorted(path.name for path in results.iterdir()) == ["detector", "larger", "matcher", "stage2"]
    assert not [*results.rglob("checkpoint-*"), *results.rglob("textures*"), *results.rglob("teacher*")]
    model = LightGlueForKeypointMatching.from_pretrained(results / "stage2")
    released = LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny"))
    assert model.config.to_dict().keys() == released.config.to_dict().keys()
    assert (results / "stage2" / "preprocessor_config.json").exists()
    weights = model.state_dict()
    changed = [name for name, value in released.state_dict().items() if not torch.equal(value, weights[name])]
    assert {name.split(".")[0] for name in changed} >= {"keypoint_detector", "transformer_layers", "token_confidence"}
