"""`lightglue-hf track` on small made videos."""

import json

import numpy as np
import pytest
from PIL import Image

from lightglue_hf import cli
from lightglue_hf.video import open_frames, read_tracks, writing_video

av = pytest.importorskip("av")
pytest.importorskip("h5py")
pytest.importorskip("poselib")
HEIGHT, WIDTH, FRAMES = 120, 160, 7


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A photo that passes by, 2 pixels a frame."""
    data = pytest.importorskip("skimage.data")
    photo = np.asarray(Image.fromarray(data.astronaut()).resize((320, 320), Image.Resampling.LANCZOS))
    path = tmp_path_factory.mktemp("video") / "photo.mp4"
    with writing_video(path, (HEIGHT, WIDTH), 25.0) as add:
        for t in range(FRAMES):
            add(photo[20 : 20 + HEIGHT, 40 + 2 * t : 40 + 2 * t + WIDTH], t / 25)
    return path


def run(capsys, *arguments):
    status = cli.main(["track", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


SMALL = ("--longest-edge", 160, "--max-keypoints", 64)


def test_tracks_are_drawn_saved_and_summed_up(video, tmp_path, capsys):
    files = ("-o", tmp_path / "out.mp4", "--save", tmp_path / "out.h5")
    status, out, err = run(capsys, video, *files, *SMALL, "--json")
    assert (status, err) == (0, "")
    summary = json.loads(out)
    assert summary["frames"] == FRAMES
    assert summary["frames_per_second"] > 0
    assert summary["tracks"] > 20
    assert 2 <= summary["mean_track_length"] <= FRAMES
    with open_frames(tmp_path / "out.mp4") as frames:
        assert frames.size == (HEIGHT, WIDTH)
        assert len(list(frames)) == FRAMES
    saved = read_tracks(tmp_path / "out.h5")
    assert len(saved) == FRAMES
    assert saved.image_size == (HEIGHT, WIDTH)
    assert saved.settings["window"] == 60
    _, counts = saved.lengths()
    assert (counts > 1).sum() == summary["tracks"]
    assert counts[counts > 1].mean() == pytest.approx(summary["mean_track_length"], abs=0.01)
    moves = []
    for id in saved.lengths()[0][counts == FRAMES]:
        _, points = saved.track(id)
        moves.append(points[-1] - points[0])
    assert len(moves) > 10
    np.testing.assert_allclose(np.median(moves, 0), (-2 * (FRAMES - 1), 0), atol=1)


def test_points_are_in_pixels_of_the_frames_whatever_the_model_sees(video, tmp_path, capsys):
    for edge in (160, 320):
        path = tmp_path / f"{edge}.h5"
        assert run(capsys, video, "--save", path, "--longest-edge", edge, "--max-keypoints", 64, "-q")[0] == 0
        _, points = read_tracks(path).frame(0)
        assert points[:, 0].max() > 0.6 * WIDTH
        assert points.max(0)[0] < WIDTH
        assert points.max(0)[1] < HEIGHT


def test_a_folder_of_pictures(video, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    with open_frames(video) as frames:
        for frame in frames:
            Image.fromarray(frame.image).save(tmp_path / "pictures" / f"{frame.number}.png")
    status, out, _ = run(
        capsys, tmp_path / "pictures", *SMALL, "--rate", 10, "--max-frames", 4, "-o", tmp_path / "o.mp4"
    )
    assert status == 0
    assert "tracks of two frames or more" in out
    assert f"wrote {tmp_path / 'o.mp4'}" in out
    with open_frames(tmp_path / "o.mp4") as frames:
        assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3], abs=2e-3)


def test_a_plane_is_found(video, tmp_path, capsys):
    with open_frames(video) as frames:
        first = next(iter(frames)).image
    Image.fromarray(first[10:110, 20:140]).save(tmp_path / "template.png")
    files = ("-o", tmp_path / "out.mp4", "--save", tmp_path / "out.h5")
    options = ("--longest-edge", 160, "--max-keypoints", 256, "--json")
    status, out, _ = run(capsys, video, "--template", tmp_path / "template.png", *files, *options)
    assert status == 0
    assert json.loads(out)["found"] >= FRAMES - 1
    saved = read_tracks(tmp_path / "out.h5")
    assert saved.template_size == (100, 120)
    there = saved.homographies[0] @ (60, 50, 1)
    np.testing.assert_allclose(there[:2] / there[2], (80, 60), atol=3)


def test_what_shows_nothing_has_no_tracks(tmp_path, capsys):
    with writing_video(tmp_path / "black.mp4", (HEIGHT, WIDTH), 25.0) as add:
        for t in range(3):
            add(np.zeros((HEIGHT, WIDTH, 3), np.uint8), t / 25)
    status, out, _ = run(capsys, tmp_path / "black.mp4", *SMALL, "--json")
    assert status == 0
    assert json.loads(out)["tracks"] == 0


def test_errors_are_one_line_and_leave_nothing(video, tmp_path, error):
    (tmp_path / "bad.mp4").write_text("no video")
    out = ("-o", tmp_path / "o.mp4", "--save", tmp_path / "o.h5")
    assert "bad.mp4 is no video" in error("track", tmp_path / "bad.mp4", *out)
    assert "does not exist" in error("track", tmp_path / "no.mp4", *out)
    assert "must end in .mp4" in error("track", video, "-o", tmp_path / "o.gif")
    assert "must end in .h5" in error("track", video, "--save", tmp_path / "o.txt")
    assert "it would be overwritten" in error("track", video, "-o", video)
    assert "no.png" in error("track", video, *out, "--template", tmp_path / "no.png", *SMALL)
    Image.new("RGB", (80, 80)).save(tmp_path / "black.png")
    assert "nothing stands out" in error("track", video, *out, "--template", tmp_path / "black.png", *SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mp4", "black.png"]


def test_without_a_screen_it_is_said(video, error, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "there is no screen" in error("track", video, "--show", *SMALL)


def test_a_window_ends_it(video, tmp_path, capsys, monkeypatch):
    from contextlib import contextmanager

    shown = []

    @contextmanager
    def showing(title):
        yield lambda image: shown.append(image) or len(shown) < 3

    monkeypatch.setattr("lightglue_hf.video.window.showing", showing)
    status, out, _ = run(capsys, video, "--show", *SMALL, "--json", "-o", tmp_path / "o.mp4")
    assert status == 0
    assert json.loads(out)["frames"] == len(shown) == 3
    with open_frames(tmp_path / "o.mp4") as frames:
        assert len(list(frames)) == 3
