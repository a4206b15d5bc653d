import numpy as np
import pytest
from PIL import ExifTags, Image

from lightglue_hf.collection.photos import (
    check_names,
    gps_position,
    load_stored,
    natural_order,
    photo_names,
    stored_size,
)
from lightglue_hf.utils.errors import InputError

from .conftest import SIZES


def save_with_exif(path, orientation=None, gps=None):
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    if gps:
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    Image.new("RGB", (40, 30)).save(path, exif=exif)


def test_names_are_paths_below_the_folder(photos):
    assert photo_names(photos) == sorted(SIZES)


def test_a_folder_that_looks_like_a_photo_is_none(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(InputError, match="no photos"):
        photo_names(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        photo_names(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a b.jpg"], "spaces"),
        (["a\tb.jpg"], "spaces"),
        (["a\u00a0b.jpg"], "spaces"),
        (["#a.jpg"], "comment"),
        (["\udcff.jpg"], "UTF-8"),
        (["x/a.jpg", "b.jpg", "x-a.jpg"], "'x/a.jpg' and 'x-a.jpg'"),
    ],
)
def test_names_that_the_files_cannot_hold_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        check_names(names)


def test_other_names_are_taken():
    check_names(["ä.jpg", "a.JPG", "a.jpg", "x/y/z.jpg", "100%.png", "a'b\".jpg", "照片.jpg"])


def test_the_orientation_is_ignored(tmp_path):
    save_with_exif(tmp_path / "a.jpg", orientation=6)
    assert stored_size(tmp_path / "a.jpg") == (30, 40)
    assert load_stored(tmp_path / "a.jpg").size == (40, 30)


@pytest.mark.parametrize(("references", "signs"), [(("N", "E"), (1, 1)), (("S", "W"), (-1, -1))])
def test_gps(tmp_path, references, signs):
    gps = {1: references[0], 2: (48.0, 53.0, 12.0), 3: references[1], 4: (2.0, 20.0, 35.16)}
    save_with_exif(tmp_path / "a.jpg", gps=gps)
    np.testing.assert_allclose(gps_position(tmp_path / "a.jpg"), np.multiply(signs, (48.886667, 2.3431)), atol=1e-6)


@pytest.mark.parametrize(
    "gps", [None, {1: "N"}, {2: (48.0,), 4: (2.0, 0.0, 0.0)}, {2: (98.0, 0.0, 0.0), 4: (2.0, 0.0, 0.0)}]
)
def test_no_gps(tmp_path, gps):
    save_with_exif(tmp_path / "a.jpg", gps=gps)
    assert gps_position(tmp_path / "a.jpg") is None


def test_numbers_count_by_their_value():
    names = ["f10.jpg", "f2.jpg", "f1.jpg", "a/9.jpg", "a/10.jpg", "²x.jpg"]
    assert sorted(names[:5], key=natural_order) == ["a/9.jpg", "a/10.jpg", "f1.jpg", "f2.jpg", "f10.jpg"]
    assert len(sorted(names, key=natural_order)) == 6
