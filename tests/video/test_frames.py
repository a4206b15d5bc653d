"""Frames in are frames out: videos, folders, and what is wrong with them in one line."""

from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from lightglue_hf.utils.errors import InputError
from lightglue_hf.video import open_frames, writing_video
from lightglue_hf.video.frames import _stream, camera_device, upright

av = pytest.importorskip("av")
HEIGHT, WIDTH = 48, 64


def flat(value, height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), value, np.uint8)


def write(path, count=6, height=HEIGHT, width=WIDTH, times=None):
    """Frames that get brighter; left halves are darker by 40."""
    with writing_video(path, (height, width), 25.0) as add:
        for i in range(count):
            image = flat(60 + 20 * (i % 8), height, width)
            image[:, : width // 2] -= 40
            add(image, 0.04 * i if times is None else times[i])
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_frames_in_are_frames_out(tmp_path, name):
    write(tmp_path / name)
    with open_frames(tmp_path / name) as frames:
        assert frames.size == (HEIGHT, WIDTH)
        assert frames.rate == pytest.approx(25, rel=0.01)
        assert not frames.live
        assert frames.count in (None, 6)
        seen = list(frames)
    assert [frame.number for frame in seen] == list(range(6))
    for i, frame in enumerate(seen):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.image.dtype == np.uint8
        assert frame.time == pytest.approx(0.04 * i, abs=2e-3)
        assert frame.image[:, 40:].mean() == pytest.approx(60 + 20 * i, abs=4)
        assert frame.image[:, :24].mean() == pytest.approx(20 + 20 * i, abs=4)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_rate_that_varies_stays(tmp_path):
    times = [0.0, 0.04, 0.2, 0.233, 1.0, 1.5]
    with open_frames(write(tmp_path / "a.mp4", times=times)) as frames:
        assert [frame.time for frame in frames] == pytest.approx(times, abs=2e-3)


def test_times_that_do_not_go_on_are_moved_on(tmp_path):
    with open_frames(write(tmp_path / "a.mp4", times=[0.0, 0.04, 0.04, 0.03, 0.1, 0.2])) as frames:
        times = [frame.time for frame in frames]
    assert len(times) == 6
    assert (np.diff(times) > 0).all()


def test_odd_sides_get_a_row_and_a_column_more(tmp_path):
    with open_frames(write(tmp_path / "a.mp4", height=47, width=63)) as frames:
        assert frames.size == (48, 64)
        assert len(list(frames)) == 6


@pytest.mark.parametrize(
    ("degrees", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1)), (-90, (0, -1))]
)
def test_pictures_are_turned_upright(degrees, corner):
    image = flat(0, 4, 6)
    image[0, 0] = 255
    turned = upright(image, degrees)
    assert turned[corner].tolist() == [255] * 3
    assert turned.shape == ((6, 4, 3) if degrees % 180 else (4, 6, 3))


def test_rotation_of_a_file_is_applied(tmp_path):
    """As phones write it: in the matrix of the track's header."""
    path = write(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    one = (1 << 16).to_bytes(4, "big")
    plain = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4, "big")
    header = data.index(b"tkhd")
    at = data.index(plain, header)
    turned = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(16) + plain[-4:]
    data[at : at + 36] = turned
    path.write_bytes(data)
    with open_frames(path) as frames:
        assert frames.size == (WIDTH, HEIGHT)
        first = next(iter(frames)).image
    assert first.shape == (WIDTH, HEIGHT, 3)
    dark = [first[:20].mean(), first[-20:].mean()]
    assert min(dark) == pytest.approx(20, abs=4)  # the left half is above now, by the quarter turn to the right
    assert dark[0] < dark[1]


def test_a_folder_is_a_video_of_its_pictures_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        Image.fromarray(flat(number)).save(tmp_path / f"frame{number}.png")
    Image.fromarray(flat(3)[..., 0]).save(tmp_path / "frame3.png")  # grey
    with open_frames(tmp_path, rate=10) as frames:
        assert (frames.size, frames.rate, frames.count) == ((HEIGHT, WIDTH), 10, 4)
        seen = list(frames)
    assert [int(frame.image[0, 0, 0]) for frame in seen] == [1, 2, 3, 10]
    assert [frame.time for frame in seen] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert all(frame.image.shape == (HEIGHT, WIDTH, 3) for frame in seen)


def test_pictures_of_different_sizes_are_refused(tmp_path):
    Image.fromarray(flat(1)).save(tmp_path / "1.png")
    Image.fromarray(flat(1, 50, 64)).save(tmp_path / "2.png")
    with open_frames(tmp_path) as frames, pytest.raises(InputError, match=r"frame 1 has 64 x 50 .* before 64 x 48"):
        list(frames)


def test_what_is_broken_is_said_in_one_line(tmp_path):
    path = write(tmp_path / "a.mp4")
    data = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "folder").mkdir()
    for name in ("cut.mp4", "empty.mp4", "text.mp4"):
        with (
            pytest.raises(InputError, match=f"{name} is no video, or a broken one") as caught,
            open_frames(tmp_path / name),
        ):
            pass
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"), open_frames(tmp_path / "no.mp4"):
        pass
    with pytest.raises(InputError, match="there are no photos in"), open_frames(tmp_path / "folder"):
        pass
    (tmp_path / "folder" / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png"), open_frames(tmp_path / "folder"):
        pass


def test_damage_on_the_way_is_said_with_its_place(tmp_path):
    class Damaged:
        """A container that is broken after its first frame."""

        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def decode(self, stream):
            yield next(self.container.decode(stream))
            raise av.error.InvalidDataError(1, "bad data")

    with av.open(str(write(tmp_path / "a.mp4"))) as container:
        frames = iter(_stream("a.mp4", av, Damaged(container), live=False))
        assert next(frames).number == 0
        with pytest.raises(InputError, match=r"a\.mp4 is broken after 1 frames: bad data"):
            next(frames)


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("before")
    with suppress(KeyboardInterrupt), writing_video(path, (HEIGHT, WIDTH), 25.0) as add:
        add(flat(0), 0.0)
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_number_is_a_camera_unless_it_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    assert camera_device("0") == ("v4l2", "/dev/video0")
    assert camera_device("walk.mp4") is None
    assert camera_device("/dev/null") is None
    (tmp_path / "0").touch()
    assert camera_device("0") is None


def test_a_camera_that_is_not_there_is_said_in_one_line():
    with pytest.raises(InputError) as caught, open_frames("987"):
        pass
    assert "\n" not in str(caught.value)
