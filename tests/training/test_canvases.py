"""Photos become canvases by the way that all photos go; procedural ones are kept and remade."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf.data.textures import render_textures
from lightglue_hf.training import DetectorRecipe
from lightglue_hf.training.canvases import cached_textures, cut_canvases, read_canvases


@pytest.fixture
def ramp():
    """`(48, 64)` grey in [0, 1]: every pixel another value of 8 bits or between."""
    return np.linspace(0, 1, 48 * 64, dtype=np.float64).reshape(48, 64)


def test_all_depths_and_modes_give_the_same_canvas(ramp, tmp_path):
    eight = np.round(ramp * 255).astype(np.uint8)
    alpha = np.full_like(eight, 255)
    pictures = {
        "8.png": Image.fromarray(eight),
        "rgb.png": Image.fromarray(np.stack([eight] * 3, -1)),
        "16.png": Image.fromarray(np.round(ramp * 65535).astype(np.uint16)),
        "16.tif": Image.fromarray(np.round(ramp * 65535).astype(np.uint16)),
        "float.tif": Image.fromarray(ramp.astype(np.float32)),
        "la.png": Image.fromarray(np.stack([eight, alpha], -1)),
    }
    for name, picture in pictures.items():
        directory = tmp_path / name.replace(".", "-")
        directory.mkdir()
        picture.save(directory / name)
        (canvas,) = read_canvases(directory, 48, 64).numpy().astype(int)
        assert np.abs(canvas - eight).max() <= 1, name
        assert (canvas.min(), canvas.max()) == (0, 255), name


def test_colours_weigh_as_in_the_image_processor_and_alpha_lies_over_white(tmp_path):
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[..., 3] = 255
    pixels[16:, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (canvas,) = read_canvases(tmp_path, 32, 32).numpy()
    assert canvas[4, 4] == round(200 * 0.2989 / (0.2989 + 0.5870 + 0.1140))
    assert canvas[-4, 4] == 255


def test_what_is_no_photo_is_named(tmp_path):
    with pytest.raises(ValueError, match="no photos in"):
        read_canvases(tmp_path, 32, 32)
    (tmp_path / "c.jpg").write_bytes(b"no photo")
    with pytest.raises(OSError, match=r"c\.jpg"):
        read_canvases(tmp_path, 32, 32)
    (tmp_path / "c.jpg").unlink()
    Image.fromarray(np.full((32, 32), np.nan, dtype=np.float32)).save(tmp_path / "d.tif")
    with pytest.raises(ValueError, match=r"d\.tif contains NaN"):
        read_canvases(tmp_path, 32, 32)


def test_kept_canvases_are_read_and_broken_ones_remade(tmp_path, monkeypatch):
    recipe = DetectorRecipe(tmp_path, height=32, width=32, textures=2)
    first = recipe.canvases()
    (path,) = tmp_path.iterdir()
    assert np.array_equal(first.numpy(), render_textures(2, 64, 64, 0))
    whole = path.read_bytes()
    for broken in (b"", whole[:100], whole[:-1], whole[:3] + b"?" + whole[4:]):
        path.write_bytes(broken)
        with pytest.warns(UserWarning, match=rf"{path.name} is broken"):
            again = recipe.canvases()
        assert np.array_equal(first, again)
        assert path.read_bytes() == whole
    with pytest.warns(UserWarning, match="is broken"):  # whole, and of another shape
        assert cached_textures(path, 1, 64, 64, 0).shape == (1, 64, 64)
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr("lightglue_hf.training.canvases.render_textures", None)
    assert cached_textures(path, 1, 64, 64, 0).shape == (1, 64, 64)


def test_pieces_of_photos_take_turns_and_lie_within_them(tmp_path):
    """A photo brightens from left to right, and so does each piece; a small photo is enlarged, a large one is not."""
    levels = np.tile(np.linspace(0, 255, 400).round().astype(np.uint8), (300, 1))
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(levels[:20, :30]).save(tmp_path / "b.png")
    pieces = cut_canvases(tmp_path, 9, 60, 80, 0).float()
    assert pieces.shape == (9, 60, 80)
    steps = pieces.mean(1).diff(dim=1)
    assert (steps >= -1e-3).all()
    slopes = (pieces[:, :, -1] - pieces[:, :, 0]).mean(1)
    level = 255 / 399  # of a pixel of the photo
    assert (slopes[0::2] > 0.99 * 79 * level).all(), "no pixel is made up"
    assert (slopes[0::2] < 1.01 * 399 * level).all()
    assert slopes[0::2].std() > 5
    assert (slopes[1::2] < 30 * level).all()
    assert torch.equal(cut_canvases(tmp_path, 9, 60, 80, 0).float(), pieces)
    with pytest.raises(ValueError, match="no photos in"):
        cut_canvases(tmp_path / "none", 1, 60, 80, 0)


@pytest.mark.parametrize("height", range(240, 260))
def test_a_photo_no_larger_than_a_canvas_is_cut_at_its_borders(tmp_path, height):
    """400 / 640 * 480 is 300; a scale that fits it is a rounding too large for some photos."""
    Image.new("L", (400, height), 77).save(tmp_path / "a.png")
    assert (cut_canvases(tmp_path, 3, 480, 640, 0) == 77).all()


def test_photos_and_procedural_canvases_are_mixed(tmp_path):
    Image.fromarray(np.full((64, 64), 77, dtype=np.uint8)).save(tmp_path / "even.png")
    options = {"photos": str(tmp_path), "height": 32, "width": 48, "textures": 5}
    mixed = DetectorRecipe(str(tmp_path / "run"), photo_share=0.4, **options).canvases()
    assert mixed.shape == (5, 64, 96)
    assert [(canvas == 77).all().item() for canvas in mixed] == [True, True, False, False, False]
    assert DetectorRecipe(str(tmp_path / "run"), photo_share=0.0, **options).canvases().shape == (5, 64, 96)
    assert DetectorRecipe(str(tmp_path / "run"), **options).canvases().shape == (1, 64, 96)
