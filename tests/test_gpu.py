"""What only a GPU shows: its attention kernels, that nothing waits for it, half precision, pairs rendered on it.

`pytest -m gpu`; where there is none these are skipped. `LIGHTGLUE_HF_TEST_DEVICE=cpu` tries those that a CPU can run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, SuperPointConfig
from lightglue_hf.data.ground_truth import ground_truth_matches
from lightglue_hf.data.homographies import sample_pairs
from lightglue_hf.data.textures import render_textures

from .tiny import SETTINGS, different_pairs, whole_model

DEVICE = os.environ.get("LIGHTGLUE_HF_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU"),
]
needs_kernels = pytest.mark.skipif(DEVICE == "cpu", reason="a kernel, or a mode, of GPUs")
HALVES = [torch.float16, torch.bfloat16]


def matcher(**settings: Any) -> LightGlueForKeypointMatching:
    """A matcher alone, random, with heads as wide as flash attention's kernels take them."""
    torch.manual_seed(0)
    config = LightGlueConfig(
        descriptor_dim=128,
        input_dim=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        use_keypoint_detector=False,
        **{"depth_confidence": -1, "width_confidence": -1, "initializer_range": 0.1, **settings},
    )
    return LightGlueForKeypointMatching(config).eval().to(DEVICE)


def features(padded: bool, n: int = 96) -> dict[str, Tensor]:
    """Three pairs, of which the second image sees the first's points moved; some images with fewer points."""
    generator = torch.Generator().manual_seed(1)
    first = torch.rand(3, n, 2, generator=generator) * torch.tensor([640, 480])
    vectors = torch.randn(3, n, 64, generator=generator)
    moved = vectors + 0.1 * torch.randn(vectors.shape, generator=generator)
    mask = torch.ones(3, 2, n, dtype=torch.int32)
    if padded:
        mask[0, 1, 40:] = mask[1, 0, 64:] = 0
    found = {
        "keypoints": torch.stack([first, first + 3], 1),
        "descriptors": nn.functional.normalize(torch.stack([vectors, moved], 1), dim=-1),
        "mask": mask,
        "image_sizes": torch.tensor([480, 640]).expand(3, 2, 2),
    }
    return {name: value.to(DEVICE) for name, value in found.items()}


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.float().cpu(), expected.float().cpu(), atol=tolerance, rtol=0)


# -- attention


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_sdpa_takes_the_flash_kernel_without_padding(dtype: torch.dtype) -> None:
    model, inputs = matcher(), features(padded=False)
    expected = model.match_features(**inputs).matching_scores
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):  # and no other: it fails where that one cannot be taken
        found = model.to(dtype).match_features(**inputs).matching_scores
    close(found, expected, 0.05)


def packed_by_torch(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any) -> tuple:
    """Flash attention of packed sequences as PyTorch has it, with the arguments of transformers' function."""
    from torch.nn.attention.varlen import varlen_attn

    assert mask is None
    width, images, n = query.shape[-1], query.shape[0], query.shape[2]
    lengths = [kwargs.get(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    if lengths[0] is None:
        starts = torch.arange(0, (images + 1) * n, n, dtype=torch.int32, device=query.device)
        lengths = [starts, starts, n, n]
    packed = [
        x.transpose(1, 2).flatten(0, 1).contiguous() for x in (query * kwargs["scaling"] * width**0.5, key, value)
    ]
    attended = varlen_attn(*packed, *lengths)
    return attended.unflatten(0, (images, n)), None


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_flash_attention_itself_packs_what_is_padded(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the package flash-attn where it is installed, and else by the same kernels in PyTorch."""
    model, inputs = matcher(), features(padded=True)
    expected = model.match_features(**inputs)
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        pytest.importorskip("torch.nn.attention.varlen")
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", packed_by_torch)
    model.config._attn_implementation_internal = "flash_attention_2"
    found = model.to(dtype).match_features(**inputs)
    close(found.matching_scores, expected.matching_scores, 0.05)
    assert (found.matches[0, 0] < 40).all()
    assert (found.matches[1, 0, 64:] == -1).all()


@needs_kernels
@torch.no_grad()
def test_flex_attention_takes_padding() -> None:
    model, inputs = matcher(), features(padded=True)
    expected = model.match_features(**inputs)
    model.set_attn_implementation("flex_attention")
    close(model.match_features(**inputs).matching_scores, expected.matching_scores, 5e-3)


# -- waiting


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@torch.no_grad()
def test_static_mode_never_waits(dtype: torch.dtype) -> None:
    detector = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8], descriptor_decoder_dim=16, keypoint_threshold=0.0, max_keypoints=64
    )
    settings: dict[str, Any] = {"descriptor_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LightGlueConfig(detector, depth_confidence=-1, width_confidence=-1, **settings)
    model = LightGlueForKeypointMatching(config).eval().to(DEVICE, dtype)
    pixels = torch.rand(2, 2, 3, 64, 96, device=DEVICE, dtype=dtype)
    expected = model(pixels)  # loads kernels, which waits
    with waiting_is_an_error():
        outputs = model(pixels)
    assert torch.equal(outputs.matches, expected.matches)
    assert outputs.matches.shape == (2, 2, 64)


@needs_kernels
@torch.no_grad()
def test_static_mode_runs_as_a_cuda_graph() -> None:
    model, inputs = matcher(), features(padded=False)
    expected = model.match_features(**inputs)
    compiled = torch.compile(model.match_features, mode="reduce-overhead", dynamic=False)
    for _ in range(3):  # the graph is recorded at the second call
        outputs = compiled(**inputs)
    close(outputs.matching_scores, expected.matching_scores, 1e-3)


# -- precision and adaptivity


@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_half_precision_of_weights_and_under_autocast(dtype: torch.dtype) -> None:
    model, inputs = matcher(), features(padded=True)
    expected = model.match_features(**inputs).matching_scores
    with torch.autocast(DEVICE, dtype):
        close(model.match_features(**inputs).matching_scores, expected, 0.05)
    found = model.to(dtype).match_features(**inputs).matching_scores
    assert found.dtype == dtype
    close(found, expected, 0.05)


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_a_batch_equals_its_singles(depth: float, width: float, rejection: float) -> None:
    settings = {"depth_confidence": depth, "width_confidence": width, "rejection_threshold": rejection}
    model = whole_model(**settings).to(DEVICE)
    pixels = different_pairs().to(DEVICE)
    together = model(pixels)
    for i in range(len(pixels)):
        alone = model(pixels[i : i + 1])
        n = alone.mask.shape[-1]
        assert torch.equal(together.stop[i : i + 1], alone.stop)
        close(together.matching_scores[i, :, :n], alone.matching_scores[0], 1e-3)


# -- training


def test_training_pairs_are_rendered_on_the_device() -> None:
    canvases = torch.from_numpy(render_textures(2, 128, 160, seed=0)).to(DEVICE)
    pairs = sample_pairs(canvases, range(4), 64, 80)
    assert pairs.images.device.type == DEVICE
    assert torch.isfinite(pairs.images).all()
    assert pairs.images.std() > 0.01
    corners = torch.tensor([[20.0, 20.0], [60.0, 40.0]], device=DEVICE).expand(4, 2, 2, 2)
    mask = torch.ones(4, 2, 2, dtype=torch.bool, device=DEVICE)
    labels = ground_truth_matches(corners, mask, pairs.homographies, pairs.layers)
    assert labels.device.type == DEVICE


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_step_of_training(dtype: torch.dtype | None) -> None:
    model, inputs = matcher(initializer_range=0.02).train(), features(padded=True)
    labels = torch.where(inputs["mask"].flip(1) > 0, torch.arange(96, device=DEVICE), -1)
    with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model.match_features(**inputs, labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for name, p in model.named_parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
