"""Readers of photos with depth and poses, and labels against a world whose geometry is known in closed form."""

import math
import pickle

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightglue_hf.data.posed_pairs import (
    DepthPair,
    depth_at,
    matches_from_depth,
    project_with_depth,
    read_depth,
    read_depth_list,
    read_features,
    read_posed_pairs,
    read_scene,
    resizing,
)

HEIGHT, WIDTH = 60, 80
K = np.array([[70.0, 0, 39.5], [0, 70.0, 29.5], [0, 0, 1]])
WALL, CARD = 4.0, 2.0  # depths along z in the first camera's coordinates


def pose(angle=0.05, shift=(0.3, 0.1, -0.1)):
    transform = np.eye(4)
    transform[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    transform[:3, 3] = shift
    return transform


def trace(x, y, T):
    """The ray of pixel (x, y) of the camera T: depth of what it sees, a card before a wall, and its world point."""
    inverse = np.linalg.inv(T)
    direction = inverse[:3, :3] @ np.linalg.inv(K) @ [x, y, 1]
    centre = inverse[:3, 3]
    on_card = centre + direction * ((CARD - centre[2]) / direction[2])
    if abs(on_card[0]) < 0.4 and abs(on_card[1]) < 0.4:
        return (CARD - centre[2]) / direction[2], on_card
    return (WALL - centre[2]) / direction[2], centre + direction * ((WALL - centre[2]) / direction[2])


def depth_map(T):
    return np.array([[trace(x, y, T)[0] for x in range(WIDTH)] for y in range(HEIGHT)], dtype=np.float32)


def test_labels_against_ray_tracing():
    T = pose()
    transforms = (np.eye(4), T)
    depths = [depth_map(transform) for transform in transforms]
    depths[0][:, :6] = 0  # unknown
    rng = np.random.default_rng(0)
    points0 = rng.uniform([0, 0], [WIDTH - 1, HEIGHT - 1], (150, 2)).round()
    worlds = [trace(x, y, np.eye(4))[1] for x, y in points0]
    projected = np.array([K @ (T[:3, :3] @ world + T[:3, 3]) for world in worlds])
    projected = projected[:, :2] / projected[:, 2:]
    inside = ((projected > 0) & (projected < [WIDTH - 1, HEIGHT - 1])).all(1)
    half = np.flatnonzero(inside)[::2]
    points1 = projected[half] + rng.uniform(-0.3, 0.3, (len(half), 2))
    labels0, labels1 = matches_from_depth(
        (torch.from_numpy(points0), torch.from_numpy(points1)),
        tuple(torch.from_numpy(depth) for depth in depths),
        torch.tensor([[HEIGHT, WIDTH]] * 2),
        torch.from_numpy(np.stack([K, K])),
        torch.from_numpy(T),
    )
    hidden = matched = 0
    for i, (point, world) in enumerate(zip(points0, worlds)):
        label = labels0[i].item()
        if point[0] < 6:
            assert label == -2, "no depth, no truth"
            continue
        if not inside[i]:
            assert label == -1 or np.abs(projected[i] - [39.5, 29.5]).tolist() <= [40, 30], "within half a pixel"
            continue
        seen = trace(*projected[i], T)[1]
        if np.linalg.norm(seen - world) > 0.3:
            hidden += 1
            assert label < 0
        elif label >= 0:
            matched += 1
            assert np.linalg.norm(points1[label] - projected[i]) < 3
            assert labels1[label] == i
        elif label == -1:
            assert np.linalg.norm(points1 - projected[i], axis=1).min() > 5
    assert hidden >= 3
    assert matched > 30


def test_swapped_images_give_the_inverse_labels():
    T = pose()
    depths = (torch.from_numpy(depth_map(np.eye(4))), torch.from_numpy(depth_map(T)))
    generator = torch.Generator().manual_seed(0)
    points = tuple(torch.rand(n, 2, generator=generator) * torch.tensor([WIDTH - 1, HEIGHT - 1]) for n in (200, 170))
    sizes, intrinsics = torch.tensor([[HEIGHT, WIDTH]] * 2), torch.from_numpy(np.stack([K, K]))
    there = matches_from_depth(points, depths, sizes, intrinsics, torch.from_numpy(T))
    back = matches_from_depth(points[::-1], depths[::-1], sizes, intrinsics, torch.linalg.inv(torch.from_numpy(T)))
    assert (there[0] >= 0).sum() > 20
    assert torch.equal(there[0], back[1])
    assert torch.equal(there[1], back[0])


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (0, 0)])
def test_no_keypoints(counts):
    labels = matches_from_depth(
        tuple(torch.full((count, 2), 20.0) for count in counts),
        (torch.ones(HEIGHT, WIDTH),) * 2,
        torch.tensor([[HEIGHT, WIDTH]] * 2),
        torch.from_numpy(np.stack([K, K])),
        torch.eye(4),
    )
    assert [label.tolist() for label in labels] == [[-1] * count for count in counts]


@given(st.floats(0, 79), st.floats(0, 59), st.floats(0.5, 20))
def test_projection_there_and_back(x, y, distance):
    T = torch.from_numpy(pose())
    k = torch.from_numpy(K)
    point, depth = torch.tensor([[x, y]], dtype=torch.float64), torch.tensor([distance], dtype=torch.float64)
    moved, there = project_with_depth(point, depth, k, k, T)
    back, again = project_with_depth(moved, there, k, k, torch.linalg.inv(T))
    torch.testing.assert_close(back, point, atol=1e-6, rtol=0)
    torch.testing.assert_close(again, depth)


def test_depth_of_another_resolution_is_read_at_the_same_place():
    depth = torch.arange(12.0).reshape(3, 4) + 1
    points = torch.tensor([[0.0, 0], [7, 5], [3.4, 2.4], [-1, 0], [0, 6]])  # of an image of 6 x 8 pixels
    values = depth_at(points, depth, torch.tensor([6, 8]))
    torch.testing.assert_close(values[:3], torch.tensor([1.0, 12, 6]))
    assert values[3:].isnan().all()
    assert depth_at(points[:1], torch.zeros(3, 4), torch.tensor([6, 8])).isnan().all(), "0 is unknown"


def test_scaled_intrinsics_project_to_the_scaled_pixel():
    point = np.array([0.3, -0.2, 2.0])
    x, y, _ = K @ point / 2
    scaled = resizing((HEIGHT, WIDTH), (30, 160)) @ K @ point / 2
    np.testing.assert_allclose(scaled, [(x + 0.5) * 2 - 0.5, (y + 0.5) / 2 - 0.5, 1])


# -- files


def scene(**changes):
    poses = np.stack([np.eye(4), pose(), pose(0.2)])
    arrays = {
        "image_paths": np.array(["imgs/a.jpg", "imgs/b.jpg", None], dtype=object),
        "depth_paths": np.array(["depths/a.h5", "depths/b.h5", None], dtype=object),
        "intrinsics": np.stack([K, K + 1, K]),
        "poses": poses,
        "overlap_matrix": np.array([[0, 0.5, 0.5], [0, 0, 0.5], [0, 0, 0]]),
    }
    return {**arrays, **changes}


def test_a_scene_of_megadepth(tmp_path):
    np.savez(tmp_path / "0001.npz", **scene())
    (pair,) = read_scene(tmp_path / "0001.npz", "root")
    assert pair.images[1].as_posix() == "root/imgs/b.jpg"
    assert pair.depths[0].as_posix() == "root/depths/a.h5"
    np.testing.assert_array_equal(pair.intrinsics[1], K + 1)
    np.testing.assert_allclose(pair.T_0to1, pose(), atol=1e-12)


def test_a_scene_of_megadepth_with_pairs_and_overlaps(tmp_path):
    infos = np.empty(3, dtype=object)
    infos[:] = [((1, 0), 0.3, np.zeros((2, 2))), ((0, 1), 0.05, None), ((0, 1), 0.9, None)]
    arrays = scene(pair_infos=infos)
    del arrays["overlap_matrix"]
    np.savez(tmp_path / "0001.npz", **arrays)
    (pair,) = read_scene(tmp_path / "0001.npz", tmp_path)
    assert pair.names == ("imgs/b.jpg", "imgs/a.jpg")
    np.testing.assert_allclose(pair.T_0to1, np.linalg.inv(pose()), atol=1e-12)


class Malicious:
    def __reduce__(self):
        return print, ("run",)


def test_a_scene_runs_no_code(tmp_path, capsys):
    evil = np.empty(1, dtype=object)
    evil[0] = Malicious()
    np.savez(tmp_path / "evil.npz", **scene(pair_infos=evil))
    with pytest.raises(ValueError, match=r"evil.npz: refused to load (builtins|__builtin__).print"):
        read_scene(tmp_path / "evil.npz", tmp_path)
    assert "run" not in capsys.readouterr().out


def test_broken_scenes_are_named(tmp_path):
    arrays = scene()
    del arrays["poses"]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"a.npz is no scene of MegaDepth: no poses"):
        read_scene(tmp_path / "a.npz", tmp_path)
    (tmp_path / "b.npz").write_bytes(pickle.dumps("text"))
    with pytest.raises(ValueError, match=r"b.npz"):
        read_scene(tmp_path / "b.npz", tmp_path)


T = pose()


def line(name0="a.png", name1="b.png", rot0=0, rot1=0, K0=K, K1=K, T_0to1=T):
    numbers = " ".join(str(value) for matrix in (K0, K1, T_0to1) for value in np.ravel(matrix))
    return f"{name0} {name1} {rot0} {rot1} {numbers}\n"


def test_read_posed_pairs(tmp_path):
    K1 = K * [[2, 1, 1], [1, 2, 1], [1, 1, 1]]
    path = tmp_path / "pairs.txt"
    path.write_text(line("a.jpg", "b/c.jpg", 0, 3, K1=K1) + "\n")
    (pair,) = read_posed_pairs(path)
    assert (pair.name0, pair.name1, pair.rot0, pair.rot1) == ("a.jpg", "b/c.jpg", 0, 3)
    np.testing.assert_array_equal(pair.K0, K)
    np.testing.assert_array_equal(pair.K1, K1)
    np.testing.assert_array_equal(pair.T_0to1, T)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("a.jpg b.jpg", "2 fields instead of 38"),
        ("a b 0 0" + " x" * 34, "could not convert"),
        ("a b 0.5 0" + " 1" * 34, "invalid literal"),
        (line(rot0=4), "quarter turns"),
        (line(K0=K * 0), "no intrinsics"),
        (line(K1=K.T), "no intrinsics"),
        (line(K1=K * np.nan), "no intrinsics"),
        (line(T_0to1=T.T), "no pose"),
        (line(T_0to1=T * 2), "no pose"),
        (line(T_0to1=T * [[1, 1, 1, np.inf], *[[1, 1, 1, 1]] * 3]), "no pose"),
        (line(T_0to1=np.diag([1, 1, -1, 1])), "no pose"),
    ],
)
def test_read_posed_pairs_names_the_bad_line(tmp_path, bad, problem):
    path = tmp_path / "pairs.txt"
    path.write_text(f"{line()}\n{bad}\n")
    with pytest.raises(ValueError, match=rf"pairs\.txt, line 3: .*{problem}"):
        read_posed_pairs(path)


def test_an_empty_list(tmp_path):
    (tmp_path / "pairs.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no pairs"):
        read_posed_pairs(tmp_path / "pairs.txt")


def test_a_list_of_pairs_with_depth(tmp_path):
    (tmp_path / "pairs.txt").write_text(line("x/a.jpg", "b.png") + "\n")
    (tmp_path / "depth" / "x").mkdir(parents=True)
    np.save(tmp_path / "depth" / "x" / "a.npy", np.full((3, 4), 2.5))
    with pytest.raises(OSError, match=r"b.png has no depth map"):
        read_depth_list(tmp_path / "pairs.txt", tmp_path, "depth")
    Image.fromarray(np.full((3, 4), 2500, dtype=np.uint16)).save(tmp_path / "depth" / "b.png")
    (pair,) = read_depth_list(tmp_path / "pairs.txt", tmp_path, "depth")
    assert isinstance(pair, DepthPair)
    for path in pair.depths:
        np.testing.assert_array_equal(read_depth(path), np.full((3, 4), 2.5, dtype=np.float32))
    np.testing.assert_allclose(pair.T_0to1, pose())


def test_depth_in_hdf5_and_what_is_no_depth(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["depth"] = np.ones((2, 3))
    assert read_depth(tmp_path / "a.h5").shape == (2, 3)
    np.save(tmp_path / "b.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"b.npy: a depth map must be \(height, width\)"):
        read_depth(tmp_path / "b.npy")
    with pytest.raises(ValueError, match="no depth map"):
        read_depth(tmp_path / "c.jpg")
    with pytest.raises(OSError, match=r"d.h5"):
        read_depth(tmp_path / "d.h5")


@pytest.mark.parametrize(
    "name", ["empty.h5", "broken.h5", "cut.npy", "zip.npy", "text.png", "bytes.png", "colours.png"]
)
def test_a_depth_map_that_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / name
    h5py.File(tmp_path / "empty.h5", "w").close()
    np.save(tmp_path / "cut.npy", np.ones((9, 9)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    Image.new("L", (3, 2), 200).save(tmp_path / "bytes.png")
    Image.new("RGB", (3, 2)).save(tmp_path / "colours.png")
    for other in ("broken.h5", "text.png"):
        (tmp_path / other).write_text("depth")
    with pytest.raises(ValueError, match=f"{name} is no depth map that can be read: ."):
        read_depth(path)


def test_features_in_hdf5(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        group = file.create_group("x/a.jpg")
        group["keypoints"] = np.ones((5, 2))
        group["descriptors"] = np.ones((8, 5), dtype=np.float16)
        group["oris"] = np.ones(5)
        group["image_size"] = [80, 60]
        file.create_group("b.jpg")["keypoints"] = np.ones((5, 2))
    features = read_features(tmp_path / "f.h5", "x/a.jpg")
    assert features["descriptors"].shape == (5, 8)
    assert features["image_size"].tolist() == [60, 80]
    assert set(features) == {"keypoints", "descriptors", "orientations", "image_size"}
    with pytest.raises(ValueError, match=r"no features of c.jpg"):
        read_features(tmp_path / "f.h5", "c.jpg")
    with pytest.raises(ValueError, match=r"b.jpg has no descriptors, image_size"):
        read_features(tmp_path / "f.h5", "b.jpg")
