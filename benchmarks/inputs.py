"""What is measured on: scikit-image's photos, and a full-size model with seeded weights that finds matches in them.

Trained weights of this size cannot be shipped, and with purely random ones nothing matches, nothing is confident and
nothing is pruned. So the weights are random but for the heads, which are fitted to the photos in closed form:

- SuperPoint's two last convolutions are centred and scaled, so that scores and descriptors depend on the content;
- each layer's final projection whitens that layer's points, so that the two views of a scene match;
- each layer's confidence is a ridge regression of "this pair is to have stopped", such that the pair k stops about
  after layer `STOPS[k]`; each layer's matchability one of "this point has a match", such that a growing share of the
  points is unmatchable.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor, SuperPointConfig
from lightglue_hf.data.textures import render_textures
from lightglue_hf.modeling_lightglue import confidence_threshold

HEIGHT, WIDTH = 480, 640
SCENES = ("astronaut", "brick", "camera", "cat", "coffee", "grass", "gravel", "hubble_deep_field", "rocket")
STOPS = (3, 9, 5, 2, 7, 9, 4, 6, 9, 3)  # of the pairs of views of one scene, the motorcycle first; 9: all layers
PRUNED = 0.07  # of the points, more with every layer


def photos() -> list[Image.Image]:
    """Twenty photos: 2k and 2k + 1 show the same scene; the first two are a stereo pair, the others overlapping cuts.

    Raises:
        ImportError: scikit-image is not installed.
    """
    from skimage import data

    views = [Image.fromarray(view).convert("RGB") for view in data.stereo_motorcycle()[:2]]
    for scene in SCENES:
        photo = Image.fromarray(getattr(data, scene)()).convert("RGB")
        side, shift = (int(0.97 * length) for length in photo.size), [int(0.03 * length) for length in photo.size]
        width, height = side
        views += [photo.crop((x, y, x + width, y + height)) for x, y in ((0, 0), shift)]
    return views


def pixel_values(images: list[Image.Image], height: int, width: int) -> Tensor:
    """`(images, 3, height, width)` in [0, 1], grey."""
    processor = LightGlueImageProcessor(size={"height": height, "width": width})
    pairs = [[image, image] for image in images]
    return processor(pairs, return_tensors="pt")["pixel_values"][:, 0]


def pairs(count: int) -> list[tuple[int, int]]:
    """Pairs of photos by their numbers: those of one scene first, then others, of which few points match."""
    same = [(2 * k, 2 * k + 1) for k in range(len(SCENES) + 1)]
    different = [(i, j) for i, j in all_pairs() if (i, j) not in same]
    return (same + different[:: len(different) // 54])[:count]


def all_pairs() -> list[tuple[int, int]]:
    n = 2 * (len(SCENES) + 1)
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def full_size_config() -> LightGlueConfig:
    """The published widths and depth; every local maximum is a keypoint, so that any number can be had."""
    detector = SuperPointConfig(keypoint_threshold=0.0, max_keypoints=512, remove_far_borders=False)
    return LightGlueConfig(detector)


@torch.no_grad()
def seeded_model(config: LightGlueConfig, pixels: Tensor, seed: int = 0) -> LightGlueForKeypointMatching:
    """A model with weights as described above.

    Args:
        config: of the model.
        pixels: `(2 * pairs, 3, height, width)`, the views that the heads are fitted to, pair after pair.
        seed: of the random weights.
    """
    model = LightGlueForKeypointMatching(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1 and "positional_encoder" not in name:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    model.positional_encoder.projector.weight.normal_(generator=generator)
    for layer in model.transformer_layers:
        for attention in (layer.self_attention, layer.cross_attention):
            for projection in (attention.q_proj, attention.k_proj):  # neither uniform nor all on one point
                projection.weight *= 16
        layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())  # as published
        for mlp in (layer.self_mlp, layer.cross_mlp):  # a layer changes its points by little
            mlp.fc2.weight *= 0.02
    model.share_equal_projections()
    fit_detector(model.keypoint_detector, pixels, generator)
    features = [model.extract_features(batch) for batch in pixels.split(2)]  # bounded memory
    arguments = [torch.stack([getattr(f, name) for f in features]) for name in ("keypoints", "descriptors", "mask")]
    sizes = torch.stack([f.image_sizes for f in features])
    thresholds = config.depth_confidence, config.width_confidence
    config.depth_confidence = config.width_confidence = -1
    outputs = model.match_features(*arguments, sizes, output_hidden_states=True)
    config.depth_confidence, config.width_confidence = thresholds
    for i in range(config.num_hidden_layers):
        points = outputs.hidden_states[7 * i + 4].unflatten(0, (-1, 2))
        fit_heads(model, i, points)
    return model


def fit_detector(detector: nn.Module, pixels: Tensor, generator: torch.Generator) -> None:
    """He's weights for the ReLUs; both decoders' outputs with mean 0, the scores' logits with deviation 3."""
    decoders = detector.keypoint_decoder.conv_score_b, detector.descriptor_decoder.conv_descriptor_b
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.mul_(1 if module in decoders else 2**0.5)
            if module.bias is not None and module not in decoders:
                module.bias.normal_(std=0.1, generator=generator)
    maps = [detector.encoder(grey)[-1] for grey in pixels[::4, :1].split(2)]
    for decoder, last, deviation in zip(
        (detector.keypoint_decoder, detector.descriptor_decoder), decoders, (3.0, None), strict=True
    ):
        outputs = torch.cat([decoder(features) for features in maps])
        scale = 1.0 if deviation is None else deviation / outputs.std((0, 2, 3))
        last.bias.copy_((last.bias - outputs.mean((0, 2, 3))) * scale)
        last.weight.mul_(torch.as_tensor(scale).reshape(-1, 1, 1, 1))


def fit_heads(model: LightGlueForKeypointMatching, i: int, points: Tensor) -> None:
    """Fit what layer `i` says of its points `(pairs, 2, n, width)`."""
    flat = points.flatten(0, 2).double()
    mean, width = flat.mean(0), flat.shape[1]
    variances, directions = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    kept = width // 2
    whitening = torch.zeros(width, width, dtype=torch.float64)
    # the similarity of equal points is about 20, of others about 0
    scale = (20 * width**0.5 / kept) ** 0.5
    whitening[:kept] = scale * (directions / (variances + variances.mean() / 10).sqrt()).T[-kept:]
    assignment_layer = model.match_assignment_layers[i]
    set_linear(assignment_layer.final_projection, whitening, -whitening @ mean)

    assignment_layer.matchability.weight.zero_()
    assignment_layer.matchability.bias.fill_(5.0)
    matches, _ = assignment_layer(points, None).matches(model.config.filter_threshold)
    direction = ridge(flat - mean, (matches >= 0).flatten().double())
    scores = (flat - mean) @ direction
    steepness = 20 / scores.std()
    bias = -4.6 - steepness * (scores.quantile(PRUNED * (i + 1)) + mean @ direction)
    set_linear(assignment_layer.matchability, steepness * direction, bias)

    if i == model.config.num_hidden_layers - 1:
        return
    stops = torch.tensor([STOPS[k % len(STOPS)] for k in range(len(points))])
    stopped = stops <= max(i + 1, int(stops.min()))
    direction = ridge(flat - mean, stopped[:, None, None].expand(points.shape[:3]).flatten().double())
    scores = (flat - mean) @ direction
    # of a pair that is to stop 1 % of the points are not confident; before any is, at least half of its points are not
    share, which = (0.01, torch.min) if i + 1 >= stops.min() else (0.5, torch.max)
    cut = which(scores.reshape(len(points), -1)[stopped].quantile(share, 1))
    steepness = 20 / scores.std()
    threshold = torch.tensor(confidence_threshold(i, model.config.num_hidden_layers)).logit()
    set_linear(
        model.token_confidence[i].token, steepness * direction, threshold - steepness * (cut + mean @ direction)
    )


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """The direction in which centred points `(n, width)` differ by their labels `(n,)`."""
    squares = x.T @ x
    return torch.linalg.solve(
        squares + 1e-3 * squares.diagonal().mean() * torch.eye(x.shape[1]).double(), x.T @ (y - y.mean())
    )


def set_linear(linear: nn.Module, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def textures(directory: Path, count: int = 11) -> Path:
    """The directory, with procedural pictures to quantise by: photos would be those that are then matched."""
    if not directory.exists():
        directory.mkdir()
        for i, texture in enumerate(render_textures(count, HEIGHT, WIDTH, seed=0)):
            Image.fromarray(texture).save(directory / f"{i:02}.png")
    return directory


def save(model: LightGlueForKeypointMatching, directory: Path, height: int, width: int) -> None:
    """A checkpoint with its image processor, as every contestant reads it."""
    model.save_pretrained(directory)
    LightGlueImageProcessor(size={"height": height, "width": width}).save_pretrained(directory)
