"""Readers on small folders made here, and truths that the pixels themselves bear out."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from lightglue_hf.evaluation import project, symmetric_epipolar_distance
from lightglue_hf.evaluation.datasets import (
    BUILT_IN,
    SKIMAGE_PHOTOS,
    Disparity,
    Homography,
    Pose,
    hpatches,
    posed,
    stereo,
    turned_intrinsics,
    unposed,
    upright,
    warped,
)

K = np.array([[500.0, 0, 320], [0, 510.0, 240], [0, 0, 1]])
T = np.array([[0.8, 0, 0.6, 1], [0, 1, 0, 2], [-0.6, 0, 0.8, 3], [0, 0, 0, 1]])


def picture(path, width=40, height=30, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


# -- what scikit-image brings along -----------------------------------------------------------------------------------


def test_stereo():
    pytest.importorskip("skimage")
    (pair,) = stereo()
    assert pair.images[0].size == pair.images[1].size == (741, 500)
    assert isinstance(pair.truth, Disparity)
    assert pair.truth.values.shape == (500, 741)


def test_shift_moves_pixels_and_changes_none():
    pytest.importorskip("skimage")
    dataset = BUILT_IN["shift"]()
    assert len(dataset) == 2 * len(SKIMAGE_PHOTOS)
    for index in (0, 4, len(SKIMAGE_PHOTOS), len(SKIMAGE_PHOTOS) + 4):  # square and wide, by both shifts
        pair = dataset.load(dataset.entries[index])
        first, second = (np.asarray(image) for image in pair.images)
        shift = pair.truth.x
        assert pair.group == f"{shift} px"
        assert max(pair.images[0].size) == 640
        np.testing.assert_array_equal(first[:, shift:], second[:, :-shift])
        assert not np.array_equal(first, second)
    assert {pair.truth.x for pair in map(dataset.load, dataset.entries[:: len(SKIMAGE_PHOTOS)])} == {3, 4}


def test_a_warp_shows_the_same_pixels_where_its_truth_says():
    pytest.importorskip("skimage")
    dataset = BUILT_IN["warped-hard"]()
    assert len(dataset) == 2 * len(SKIMAGE_PHOTOS)
    for entry in (dataset.entries[0], dataset.entries[4], dataset.entries[5]):  # astronaut, camera, camera
        pair = dataset.load(entry)
        first, second = (np.asarray(image.convert("L"), dtype=float) for image in pair.images)
        assert first.shape == second.shape
        rows, columns = np.mgrid[20 : first.shape[0] - 20 : 7, 20 : first.shape[1] - 20 : 7]
        points = np.stack([columns.ravel(), rows.ravel()], axis=1)
        there = np.rint(project(pair.truth.matrix, points)).astype(int)
        inside = ((there >= 2) & (there < (first.shape[1] - 2, first.shape[0] - 2))).all(axis=1)
        assert inside.mean() > 0.2

        def difference(way, first=first, second=second, points=points, there=there, inside=inside):
            x, y = there[inside].T + np.array(way)[:, None]
            return np.abs(first[points[inside, 1], points[inside, 0]] - second[y, x]).mean()

        assert difference((0, 0)) < 0.8 * min(difference(way) for way in ((-2, 0), (2, 0), (0, -2), (0, 2)))


def test_warps_stay_within_their_limits_and_use_them():
    pytest.importorskip("skimage")
    turns, scales = [], []
    dataset = warped("turned", rotation=30, scale=1.5, corners=0)
    matrices = [pair.truth.matrix for pair in dataset]
    for matrix in matrices:
        np.testing.assert_allclose(matrix[2], [0, 0, 1], atol=1e-12)
        scale = np.sqrt(np.linalg.det(matrix[:2, :2]))
        scales.append(scale)
        turns.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    assert 25 < np.abs(turns).max() <= 30
    assert 1.4 < max(scales) <= 1.5
    assert 1 / 1.5 <= min(scales) < 1 / 1.4
    assert min(turns) < 0 < max(turns)
    assert len({matrix.tobytes() for matrix in matrices}) == len(matrices)

    dataset = warped("moved", rotation=0, scale=1, corners=0.1)
    pair = next(iter(dataset))
    width, height = pair.images[0].size
    rim = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
    moves = np.abs(project(pair.truth.matrix, rim) - rim) / (width, height)
    assert 0.02 < moves.max() <= 0.1


def test_corners_are_moved_before_the_turn():
    pytest.importorskip("skimage")
    turned, moved = (next(iter(warped("", rotation, 1.5, 0.2))) for rotation in (40, 0))
    similarity = turned.truth.matrix @ np.linalg.inv(moved.truth.matrix)
    assert abs(similarity[1, 0]) > 0.05
    np.testing.assert_allclose(similarity[2] / similarity[2, 2], [0, 0, 1], atol=1e-9)
    centre = (np.array(turned.images[0].size) - 1)[None] / 2
    np.testing.assert_allclose(project(similarity, centre), centre)


def test_a_warp_is_the_same_every_time():
    pytest.importorskip("skimage")
    first, second = (next(iter(BUILT_IN["warped-easy"]())) for _ in range(2))
    assert first.images[1].tobytes() == second.images[1].tobytes()
    np.testing.assert_array_equal(first.truth.matrix, second.truth.matrix)


@pytest.mark.parametrize("name", BUILT_IN)
def test_without_scikit_image_it_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ImportError, match=r"install lightglue-hf\[eval\]"):
        BUILT_IN[name]()


# -- HPatches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sequences(tmp_path):
    """Two sequences; the second image of each is twice as large as the first, 60 x 120."""
    for index, name in enumerate(("v_wall", "i_lamp")):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(1, 7):
            scale = 2 if number == 2 else 1
            picture(folder / f"{number}.ppm", 120 * scale, 60 * scale, seed=10 * index + number)
        for number in range(2, 7):
            np.savetxt(folder / f"H_1_{number}", [[number, 0, 0.5], [0, number, 0.5], [0, 0, 1]])
    (tmp_path / "readme").write_text("neither a folder nor a sequence")
    return tmp_path


def test_hpatches(sequences):
    dataset = hpatches(sequences)
    pairs = list(dataset)
    assert len(dataset) == len(pairs) == 10
    assert [pair.name for pair in pairs[:6]] == [*(f"i_lamp 1 {number}" for number in range(2, 7)), "v_wall 1 2"]
    assert [pair.group for pair in pairs] == ["illumination"] * 5 + ["viewpoint"] * 5
    assert all(image.size == (960, 480) for pair in pairs for image in pair.images)
    assert all(isinstance(pair.truth, Homography) for pair in pairs)
    # Second image: x' = 2x + 0.5 takes borders to borders, so after the resize to one size nothing moves.
    np.testing.assert_allclose(pairs[0].truth.matrix, np.eye(3), atol=1e-9)
    # Third: x' = 3x + 0.5 of 60 rows, seen on 480: X = 8x + 3.5 -> 8 (3 (X - 3.5) / 8 + 0.5) + 3.5 = 3X - 3.
    np.testing.assert_allclose(pairs[1].truth.matrix, [[3, 0, -3], [0, 3, -3], [0, 0, 1]], atol=1e-9)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 0 0\n0 1 0\n", "6 numbers instead of 9"),
        ("1 0 0\n0 one 0\n0 0 1", "could not convert"),
        ("1 0 0\n0 1 0\n0 0 nan", "singular or not finite"),
        ("1 2 3\n2 4 6\n0 0 1", "singular or not finite"),
        ("", "0 numbers instead of 9"),
    ],
)
def test_a_malformed_homography_is_named_at_once(sequences, text, problem):
    (sequences / "v_wall" / "H_1_4").write_text(text)
    with pytest.raises(ValueError, match=rf"H_1_4 is no homography: .*{problem}"):
        hpatches(sequences)


@pytest.mark.parametrize("name", ["H_1_3", "1.ppm", "6.ppm"])
def test_a_missing_file_is_named_at_once(sequences, name):
    (sequences / "i_lamp" / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        hpatches(sequences)
    assert str(error.value.filename) == str(sequences / "i_lamp" / name)


def test_a_folder_without_sequences(tmp_path):
    with pytest.raises(ValueError, match="no sequences of HPatches"):
        hpatches(tmp_path)
    with pytest.raises(FileNotFoundError):
        hpatches(tmp_path / "nowhere")


# -- posed pairs ------------------------------------------------------------------------------------------------------


def line(name0="a.png", name1="b.png", rot0=0, rot1=0, K0=K, K1=K, T_0to1=T):
    numbers = " ".join(str(value) for matrix in (K0, K1, T_0to1) for value in np.ravel(matrix))
    return f"{name0} {name1} {rot0} {rot1} {numbers}\n"


def test_posed(tmp_path):
    images = tmp_path / "images"
    (images / "there").mkdir(parents=True)
    first, second = picture(images / "a.png"), picture(images / "there" / "b.png", seed=1)
    path = tmp_path / "pairs.txt"
    path.write_text(line(name1="there/b.png", rot1=1))
    dataset = posed(path, images)
    (pair,) = dataset
    assert (dataset.name, pair.name, pair.group) == ("pairs.txt", "a.png there/b.png", "")
    np.testing.assert_array_equal(np.asarray(pair.images[0]), first)
    np.testing.assert_array_equal(np.asarray(pair.images[1]), np.rot90(second))
    np.testing.assert_array_equal(pair.truth.K0, K)
    (images / "there" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        posed(path, images)


def test_posed_turns_stored_images_and_leaves_exif_alone(tmp_path):
    """Intrinsics and rotations of a list are of the pixels as they are stored."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("L", (80, 60)).save(tmp_path / "a.png", exif=exif)
    Image.new("L", (80, 60)).save(tmp_path / "b.png", exif=exif)
    (tmp_path / "pairs.txt").write_text(line(rot1=1))
    (pair,) = posed(tmp_path / "pairs.txt", tmp_path)
    assert [image.size for image in pair.images] == [(80, 60), (60, 80)]


@pytest.mark.parametrize("rot", range(4))
def test_a_turned_camera_sees_points_where_the_turned_image_shows_them(rot):
    width, height = 6, 4
    skewed = np.array([[5, 0.3, 2.0], [0, 7, 1.5], [0, 0, 1]])
    turned, axes = turned_intrinsics(skewed, (height, width), rot)
    assert turned[2].tolist() == [0, 0, 1]
    assert min(turned[0, 0], turned[1, 1]) > 0
    np.testing.assert_array_equal(axes[:3, :3] @ axes[:3, :3].T, np.eye(3))
    for y in range(height):
        for x in range(width):
            pixels = np.zeros((height, width), np.uint8)
            pixels[y, x] = 255
            ((y_turned, x_turned),) = np.argwhere(np.asarray(upright(Image.fromarray(pixels), rot)))
            point = 3 * np.linalg.inv(skewed) @ (x, y, 1)
            np.testing.assert_allclose(
                project(turned, (axes[:3, :3] @ point)[None, :2] / 3), [[x_turned, y_turned]], atol=1e-9
            )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_quarter_turns_leave_epipolar_distances_alone(rot0, rot1, seed):
    """Turned points in turned cameras are as far from their epipolar lines as the points as stored."""
    generator = np.random.default_rng(seed)
    size = (480, 640)
    points = generator.uniform(0, 400, (2, 20, 2))
    stored = symmetric_epipolar_distance(*points, K, K, T)

    turned, cameras, axes = [], [], []
    for rot, original in zip((rot0, rot1), points):
        width, height = 640, 480
        for _ in range(rot):  # where np.rot90 puts (x, y)
            original = np.stack([original[:, 1], width - 1 - original[:, 0]], axis=1)
            width, height = height, width
        turned.append(original)
        camera, turn = turned_intrinsics(K, size, rot)
        cameras.append(camera)
        axes.append(turn)
    distance = symmetric_epipolar_distance(*turned, *cameras, axes[1] @ T @ axes[0].T)
    np.testing.assert_allclose(distance, stored, rtol=1e-6)


def test_posed_turns_the_pose_with_the_images(tmp_path):
    """A point of space projects to the same spot of the upright images as of the stored ones."""
    picture(tmp_path / "a.png", 640, 480)
    picture(tmp_path / "b.png", 640, 480)
    (tmp_path / "pairs.txt").write_text(line(rot0=1, rot1=3))
    (pair,) = posed(tmp_path / "pairs.txt", tmp_path)
    assert isinstance(pair.truth, Pose)
    point = np.array([0.2, -0.3, 5, 1])
    x, y = project(K, [point[:2] / point[2]])[0]
    there = T @ point
    u, v = project(K, [there[:2] / there[2]])[0]
    _, axes = turned_intrinsics(K, (480, 640), 1)
    seen0 = axes @ point
    seen1 = pair.truth.T_0to1 @ seen0
    np.testing.assert_allclose(project(pair.truth.K0, [seen0[:2] / seen0[2]]), [[y, 639 - x]])
    np.testing.assert_allclose(project(pair.truth.K1, [seen1[:2] / seen1[2]]), [[479 - v, u]])


# -- any two photos ---------------------------------------------------------------------------------------------------


def test_unposed(tmp_path):
    pixels = picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    dataset = unposed(tmp_path / "a.png", tmp_path / "b.png")
    (pair,) = dataset
    assert dataset.name == pair.name == "a.png, b.png"
    assert pair.truth is None
    np.testing.assert_array_equal(np.asarray(pair.images[0]), pixels)
    with pytest.raises(FileNotFoundError, match=r"c\.png"):
        unposed(tmp_path / "a.png", tmp_path / "c.png")
