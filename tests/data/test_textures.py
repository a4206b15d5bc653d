"""Tests of the procedural canvases and the shapes of cut-outs."""

from __future__ import annotations

import numpy as np
import pytest

from lightglue_hf.data import textures
from lightglue_hf.data.textures import cut_out_coverage, render_textures


def test_canvases_depend_on_seed_and_index_only() -> None:
    many = render_textures(3, 96, 128, seed=5)
    assert many.dtype == np.uint8
    assert many.shape == (3, 96, 128)
    assert np.array_equal(many[:2], render_textures(2, 96, 128, seed=5))
    assert not np.array_equal(many[0], many[1])
    assert not np.array_equal(many[0], render_textures(1, 96, 128, seed=6)[0])


def test_canvases_have_edges_and_use_the_range() -> None:
    for canvas in render_textures(8, 192, 256, seed=1).astype(np.float32):
        slopes = np.abs(np.diff(canvas, axis=1))
        assert canvas.std() > 8
        assert (slopes > 12).mean() > 0.005  # edges somewhere
        assert (slopes < 12).mean() > 0.4  # calm areas too


@pytest.mark.parametrize("texture", [entry[0] for entry in textures._BANK])
def test_every_bank_texture_is_in_range_and_not_flat(texture: textures.Callable) -> None:
    for seed in range(4):
        tile = texture(np.random.default_rng(seed), 96)
        assert tile.shape == (96, 96)
        assert np.isfinite(tile).all()
        assert tile.min() >= 0
        assert tile.max() <= 1
        assert tile.std() > 0.005


@pytest.mark.parametrize("size", [32, 77])
def test_cut_outs_are_opaque_within_and_clear_at_the_rim(size: int) -> None:
    shares = []
    for seed in range(60):
        coverage = cut_out_coverage(np.random.default_rng(seed), size)
        assert coverage.shape == (size, size)
        assert coverage.dtype == np.uint8
        assert coverage.max() == 255
        assert coverage[2:-2, 2:-2].sum() == coverage.sum()  # so that averages over 3 x 3 pixels end within
        shares.append(coverage.mean() / 255)
    assert 0.2 < np.mean(shares) < 0.8
    assert np.std(shares) > 0.1
