"""Files are there whole or not at all, and what a killed process left does not stay for ever."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lightglue_hf.utils.files import json_object, refilling, regular_file, replacing

HOLD = """
import sys, time
from lightglue_hf.utils.files import replacing
with replacing(sys.argv[1]) as (_, path):
    path.write_text("unfinished")
    print("made", flush=True)
    time.sleep(60)
"""


def test_what_is_made_takes_its_place_when_it_is_whole(tmp_path):
    out = tmp_path / "out"
    with replacing(out) as (temporary, made):
        made.mkdir()
        (made / "file").write_text("whole")
        assert not out.exists()
        assert temporary.parent == tmp_path  # on the same file system
    assert (out / "file").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [out]


def test_an_error_leaves_nothing(tmp_path):
    def interrupted():
        with replacing(tmp_path / "out") as (_, made):
            made.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced(tmp_path):
    out = tmp_path / "out"

    def late():
        with replacing(out) as (_, made):
            made.write_text("late")
            out.write_text("early")  # another process was faster

    with pytest.raises(FileExistsError, match="exists already"):
        late()
    assert out.read_text() == "early"
    with pytest.raises(FileExistsError), replacing(out):
        pytest.fail("it exists")
    with pytest.raises(FileNotFoundError, match="does not exist"), replacing(tmp_path / "no/out"):
        pytest.fail("there is no such directory")


@pytest.mark.skipif(sys.platform == "win32", reason="directories cannot be locked")
def test_a_killed_process_is_cleaned_up_after_and_a_living_one_is_not_disturbed(tmp_path):
    out = tmp_path / "o[u]t"  # no pattern of names
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "made\n"
        with replacing(out) as (_, made):
            assert len(list(tmp_path.iterdir())) == 2
            made.write_text("whole")
        assert len(list(tmp_path.iterdir())) == 2  # the result, and what the other still makes
        out.unlink()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(out) as (_, made):
        made.write_text("whole")
    assert list(tmp_path.iterdir()) == [out]


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_text("text")
    assert regular_file(tmp_path / "file", 4) == tmp_path / "file"
    with pytest.raises(OSError, match="4 bytes, more than the 3 that are read"):
        regular_file(tmp_path / "file", 3)
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "nothing")
    with pytest.raises(OSError, match="directory, and no file"):
        regular_file(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(OSError, match="device or pipe, and no file"):
                regular_file(path)


REFILL = """
import sys, itertools
from lightglue_hf.utils.files import refilling
sets = {"old": ("a", "b", "key"), "new": ("b", "c", "d", "key")}
print("ready", flush=True)
for kind in itertools.cycle(sets):
    with refilling(sys.argv[1], ("a", "b", "c", "d", "key"), "key") as directory:
        for name in sets[kind]:
            (directory / name).write_text(kind)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="directories cannot be locked")
def test_killed_at_any_moment_a_directory_is_old_or_new_or_nobody_reads_it(tmp_path):
    out, moments = tmp_path / "out", random.Random(0)
    whole = []
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", REFILL, str(out)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.005, 0.05))
        process.kill()
        process.wait()
        found = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
        assert len(set(found.values())) <= 1, "two sets"
        if "key" in found:
            assert sorted(found) == {"old": ["a", "b", "key"], "new": ["b", "c", "d", "key"]}[found["key"]]
            whole.append(found["key"])
    assert whole, "it was never seen whole"
    (out / "other").write_text("stays")
    with refilling(out, ("a", "b", "c", "d", "key"), "key") as directory:
        (directory / "key").write_text("last")
    assert sorted(path.name for path in out.iterdir()) == ["key", "other"], "something was left"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_json_of_something_else_is_named(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.json (is no JSON|must have fields)"):
        json_object(tmp_path / "file.json")
    (tmp_path / "file.json").write_text('{"a": 1}')
    assert json_object(tmp_path / "file.json") == {"a": 1}
