"""ALIKED keypoint detector and descriptor (Zhao, Wu, Chen, Chen, Xu, Lee, IEEE TIM 2023, arXiv:2304.03608).

Parameter names are those of the published files (Shiaoming/ALIKED, BSD 3-Clause), and so are the results. What differs
is the way there, which never holds the map of all features: most of the published code's time goes into upsampling,
concatenating and normalising it.

- The first layer of the score head, 1x1, is applied to each stage before it is upsampled, which changes nothing but
  the number of channels: 8, not 128.
- Features are put together and normalised at the pixels that descriptors are sampled from, and only there.
"""

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..features import KeypointDetector, KeypointFeatures
from ..geometry import pixels_inside
from ..loading import CheckedLoading
from ..utils.tensors import is_traced, low_memory_cpu, vector
from .configuration_aliked import STAGES, ALIKEDConfig
from .selection import non_maximum_suppression, pixels_at, select_keypoints

EPSILON = 1e-5  # of the batch norms
TEMPERATURE = 0.1  # of the scores around a maximum, whose mean position the keypoint is
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
SCORE_WIDTHS = (8, 4, 4, 1)
STRIP = 1 << 14  # pairs of pixels that are convolved at once on a CPU: 32 channels of them fit into the caches
GROUP, GROUPS = 32, 8  # keypoints that a thread describes at once on a CPU, and how many such groups there are then


# ---------------------------------------------------------------------------------------------------------------------
# Sampling and convolutions


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Maps at points, bilinear, with zeros around them.

    Args:
        maps: `(batch, channels, height, width)`.
        points: `(batch, n, 2)` float32, (x, y) pixels of the map, centre of the first pixel = (0, 0).

    Returns:
        `(batch, channels, n)` float32: of half precision a coordinate cannot be.
    """
    height, width = maps.shape[-2:]
    grid = (2 * points + 1) / vector(width, height, points.device, points.dtype) - 1
    sampled = F.grid_sample(maps.float(), grid[:, None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled[:, :, 0]


def float32_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """Convolve in float32, in a model of half precision and under autocast, too.

    8-bit pixels, and scores whose maxima are looked for, have more digits than bfloat16.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x.float(), weight.float(), None if bias is None else bias.float(), padding=padding)


def pointwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution in float32."""
    if x.device.type != "cpu" or is_traced():
        return float32_conv(x, weight)
    with torch.autocast("cpu", enabled=False):  # of few channels a product of matrices is faster, laid out as they are
        return (x.float().movedim(1, -1) @ weight.float().flatten(1).t()).movedim(-1, 1)


def selu(x: Tensor) -> Tensor:
    """SELU, in place; in a graph by ELU, which OpenVINO computes within the convolution before it."""
    return F.elu(x, SELU_ALPHA) * SELU_SCALE if is_traced() else F.selu_(x)


class FrozenBatchNorm(nn.Module):
    """Batch norm by the running statistics, in training, too: an image's features do not depend on other images."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and the bias of a convolution, without bias, that is followed by this."""
        scale = self.weight.float() / (self.running_var.float() + EPSILON).sqrt()
        bias = self.bias - self.running_mean * scale
        return (weight * scale[:, None, None, None]).to(weight.dtype), bias.to(weight.dtype)


class ALIKEDConv(nn.Conv2d):
    """A 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor, norm: FrozenBatchNorm) -> Tensor:  # type: ignore[override]
        return F.conv2d(x, *norm.fold(self.weight), padding=1)


class ALIKEDPixelConv(ALIKEDConv):
    """A 3x3 convolution of pixels."""

    def forward(self, x: Tensor, norm: FrozenBatchNorm) -> Tensor:  # type: ignore[override]
        return float32_conv(x, *norm.fold(self.weight), padding=1).to(self.weight.dtype)


class ALIKEDDeformableConv(nn.Module):
    """A 3x3 convolution whose nine taps are displaced, at each pixel, as another convolution says.

    Source: deformable convolution (Dai et al., ICCV 2017, arXiv:1703.06211) without modulation; displacements, (y, x)
    for each tap, are clamped to a quarter of the map's longer side as in Shiaoming/ALIKED.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(in_channels, 2 * 9, kernel_size=3, padding=1)
        self.regular_conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor, norm: FrozenBatchNorm) -> Tensor:
        samples = sample(x, self.tap_positions(self.offset_conv(x).float()).flatten(1, 3))  # (b, c, 9 h w)
        samples = samples.to(x.dtype).unflatten(2, (9, -1)).flatten(1, 2)
        weight, bias = norm.fold(self.regular_conv.weight)
        return (weight.flatten(1) @ samples + bias[:, None]).reshape(-1, len(bias), *x.shape[-2:])

    def tap_positions(self, offsets: Tensor) -> Tensor:
        """`(batch, 18, height, width)` displacements, before the clamp -> `(batch, 9, height, width, 2)` pixels."""
        height, width = offsets.shape[-2:]
        limit = vector(height, width, offsets.device, offsets.dtype).max() / 4
        dy, dx = offsets.minimum(limit).maximum(-limit).unflatten(1, (9, 2)).unbind(2)
        tap = torch.arange(-1, 2, device=offsets.device)
        y = torch.arange(height, device=offsets.device)[:, None] + tap.repeat_interleave(3)[:, None, None]
        x = torch.arange(width, device=offsets.device) + tap.repeat(3)[:, None, None]
        return torch.stack([x + dx, y + dy], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Encoder


class ALIKEDConvBlock(nn.Module):
    """Two convolutions, each followed by batch norm and SELU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ALIKEDPixelConv(in_channels, out_channels)
        self.bn1 = FrozenBatchNorm(out_channels)
        self.conv2 = ALIKEDConv(out_channels, out_channels)
        self.bn2 = FrozenBatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return selu(self.conv2(selu(self.conv1(x, self.bn1)), self.bn2))


class ALIKEDResidualBlock(nn.Module):
    """The same, and a 1x1 convolution beside them."""

    def __init__(self, in_channels: int, out_channels: int, deformable: bool) -> None:
        super().__init__()
        conv = ALIKEDDeformableConv if deformable else ALIKEDConv
        self.conv1 = conv(in_channels, out_channels)
        self.bn1 = FrozenBatchNorm(out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.bn2 = FrozenBatchNorm(out_channels)
        self.downsample = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = selu(self.conv1(x, self.bn1))
        return selu(self.conv2(hidden, self.bn2) + self.downsample(x))


# ---------------------------------------------------------------------------------------------------------------------
# Heads


class ALIKEDStageConv(nn.Conv2d):
    """The first layer of the score head: a 1x1 convolution, of one stage at a time."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, SCORE_WIDTHS[0], kernel_size=1, bias=False)

    def forward(self, features: Tensor, stage: int) -> Tensor:  # type: ignore[override]
        """What a stage, `(batch, dim / 4, ...)` at its size, contributes to the layer's output, in float32."""
        return pointwise_conv(features, self.weight.chunk(STAGES, dim=1)[stage])


class ALIKEDScoreHead(nn.Sequential):
    """How much of a keypoint each pixel is, from the features of all stages."""

    def __init__(self, dim: int) -> None:
        layers: list[nn.Module] = [ALIKEDStageConv(dim)]
        for width, next_width in pairwise(SCORE_WIDTHS):
            layers += [nn.SELU(), nn.Conv2d(width, next_width, kernel_size=3, padding=1, bias=False)]
        super().__init__(*layers)

    def forward(self, shares: list[Tensor]) -> Tensor:  # type: ignore[override]
        """What the first layer makes of each stage, at its size -> `(batch, height, width)` float32 logits."""
        upsampled = (F.interpolate(x, shares[0].shape[-2:], mode="bilinear", align_corners=True) for x in shares[1:])
        x = shares[0] + next(upsampled)
        for share in upsampled:
            x += share
        convs: list[Any] = list(self)[2::2]
        for conv in convs:
            x = float32_conv(selu(x), conv.weight, padding=1)
        return x[:, 0]


class ALIKEDDescriptorHead(nn.Module):
    """The sparse deformable descriptor head: a descriptor from samples at positions that a patch tells."""

    def __init__(self, config: ALIKEDConfig) -> None:
        super().__init__()
        dim, size, samples = config.descriptor_dim, config.kernel_size, config.num_sample_positions
        self.kernel_size = size
        self.agg_weights = nn.Parameter(torch.empty(samples, dim, dim))
        self.offset_conv = nn.Sequential(
            nn.Conv2d(dim, 2 * samples, kernel_size=size),
            nn.SELU(),
            nn.Conv2d(2 * samples, 2 * samples, kernel_size=1),
        )
        self.sf_conv = nn.Conv2d(dim, dim, kernel_size=1, bias=False)

    def forward(self, features: "FeatureMap", keypoints: Tensor) -> Tensor:
        """`(batch, n, 2)` keypoints in pixels -> `(batch, n, dim)` descriptors of unit length, float32."""
        offsets = self.offsets(features, keypoints)
        samples = features.sample((keypoints[:, :, None] + offsets).flatten(1, 2)).unflatten(2, (-1, offsets.shape[2]))
        samples = selu(self.sf_conv(samples.to(self.sf_conv.weight.dtype)))
        descriptors = torch.einsum("bcnm,mcd->bnd", samples, self.agg_weights)
        return F.normalize(descriptors.float(), dim=-1)

    def offsets(self, features: "FeatureMap", keypoints: Tensor) -> Tensor:
        """Where a descriptor is sampled: `(batch, n, samples, 2)` pixels (x, y) from its keypoint."""
        size = self.kernel_size
        extent = vector(features.width, features.height, keypoints.device)
        # The patch lies around the truncated position and, as published, never reaches the last row and column.
        corner = keypoints.long() - size // 2
        corner = corner.minimum(extent - size - 1).clamp(min=0)
        step = torch.arange(size, device=keypoints.device)
        patch = torch.stack([step.repeat(size), step.repeat_interleave(size)], -1)
        parts, scale = features.at((corner[:, :, None] + patch).flatten(1, 2))
        patches = (torch.cat(parts, 1) * scale).unflatten(2, (-1, size * size))
        first, _, last = cast(list[nn.Conv2d], list(self.offset_conv))
        hidden = float32_conv(patches, first.weight.flatten(2)[:, :, None], first.bias)  # (b, 2 m, n, 1)
        offsets = float32_conv(selu(hidden), last.weight, last.bias)[..., 0]
        limit = extent.float().max() / 4
        # unlike those of the deformable convolutions, all x come before all y
        return offsets.minimum(limit).maximum(-limit).unflatten(1, (2, -1)).permute(0, 3, 2, 1)


class FeatureMap:
    """The features of images, of unit length at each pixel, computed where they are asked for.

    Args:
        stages: the features of each stage before upsampling, `(batch, channels, ...)` at its size.
        first_conv: what is still to be applied to those of the first stage, followed by SELU.
        left, top: first column and row of the images within the map.
        width, height: of the images.
    """

    def __init__(
        self, stages: list[Tensor], first_conv: nn.Conv2d, left: int, top: int, width: int, height: int
    ) -> None:
        self.stages = [stage.float() for stage in stages]
        self.first_conv = first_conv
        self.left, self.top, self.width, self.height = left, top, width, height

    def expand(self, batch: int) -> "FeatureMap":
        """One image's as that of a batch."""
        first, *others = self.stages  # the first is a table, one for all
        stages = [first, *(stage.expand(batch, -1, -1, -1) for stage in others)]
        return FeatureMap(stages, self.first_conv, self.left, self.top, self.width, self.height)

    def at(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features at `(batch, n, 2)` int64 (x, y) in the images, not yet of unit length.

        Returns:
            Of each stage `(batch, dim / 4, n)` float32, and `(batch, 1, n)`, what they are to be multiplied by.
        """
        device = pixels.device
        places = pixels + vector(self.left, self.top, device)
        points = places.float()
        first = pixels_at(self.stages[0], *places.unbind(-1)).transpose(1, 2)[..., None]
        first = pointwise_conv(first, self.first_conv.weight)
        features = [selu(first[..., 0])]
        height, width = self.stages[0].shape[-2:]
        for stage in self.stages[1:]:  # as upsampling with aligned corners does
            rows, columns = stage.shape[-2:]
            scale = vector(columns - 1, rows - 1, device) / vector(width - 1, height - 1, device)
            features.append(sample(stage, points * scale))
        squares = torch.stack([part.square().sum(1, keepdim=True) for part in features])
        return features, squares.sum(0).clamp(min=1e-24).rsqrt()

    def sample(self, points: Tensor) -> Tensor:
        """Bilinear, zeros around the images: `(batch, n, 2)` pixels (x, y) -> `(batch, dim, n)` float32."""
        extent = vector(self.width, self.height, points.device)
        first = points.floor()
        fraction = points - first
        pixels, weights = [], []
        for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
            pixel = first.long() + vector(x, y, points.device)
            inside = ((pixel >= 0) & (pixel < extent)).all(-1)
            weight = (fraction[..., 0] if x else 1 - fraction[..., 0]) * (
                fraction[..., 1] if y else 1 - fraction[..., 1]
            )
            pixels.append(pixel.minimum(extent - 1).clamp(min=0))
            weights.append(weight * inside)
        features, scale = self.at(torch.cat(pixels, 1))
        weights = (torch.cat(weights, 1)[:, None] * scale).unflatten(2, (4, -1))
        return torch.cat([(part.unflatten(2, (4, -1)) * weights).sum(2) for part in features], 1)


# ---------------------------------------------------------------------------------------------------------------------
# The detector


class ALIKEDPreTrainedModel(CheckedLoading, PreTrainedModel):
    config_class = ALIKEDConfig
    base_model_prefix = "aliked"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False

    def _init_weights(self, module: nn.Module) -> None:
        """SELU keeps the variance of what weights of variance 1 / inputs make of it."""
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ALIKEDDescriptorHead):
            nn.init.normal_(module.agg_weights, std=module.agg_weights[..., 0].numel() ** -0.5)
        elif isinstance(module, FrozenBatchNorm):
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                nn.init.constant_(getattr(module, name), value)


class ALIKEDForKeypointDetection(KeypointDetector, ALIKEDPreTrainedModel):
    """ALIKED: keypoints, scores and descriptors of a batch of images.

    Example:

    ```python
    >>> import torch
    >>> from lightglue_hf import ALIKEDConfig, ALIKEDForKeypointDetection
    >>> model = ALIKEDForKeypointDetection(ALIKEDConfig(max_keypoints=100, keypoint_threshold=0)).eval()
    >>> outputs = model(torch.rand(2, 3, 120, 160))
    >>> outputs.descriptors.shape
    torch.Size([2, 100, 128])

    ```
    """

    def __init__(self, config: ALIKEDConfig) -> None:
        super().__init__(config)
        widths = config.hidden_sizes
        self.block1 = ALIKEDConvBlock(3, widths[0])
        self.block2 = ALIKEDResidualBlock(widths[0], widths[1], deformable=False)
        self.block3 = ALIKEDResidualBlock(widths[1], widths[2], deformable=True)
        self.block4 = ALIKEDResidualBlock(widths[2], widths[3], deformable=True)
        share = config.descriptor_dim // STAGES
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(width, share, kernel_size=1, bias=False) for width in widths
        )
        self.score_head = ALIKEDScoreHead(config.descriptor_dim)
        self.desc_head = ALIKEDDescriptorHead(config)
        self.post_init()

    def detect(
        self, pixel_values: Tensor, region: Tensor | None = None, fixed_shapes: bool = False
    ) -> KeypointFeatures:
        """See [`KeypointDetector.detect`]. The region does not change what passes the threshold.

        Of grey images, one channel, all three are the same.
        """
        if low_memory_cpu(self, pixel_values) and len(pixel_values) > 1:
            regions = [None] * len(pixel_values) if region is None else region.split(1)
            return KeypointFeatures.cat(
                self.detect(*image, fixed_shapes) for image in zip(pixel_values.split(1), regions)
            )
        if not is_traced():  # a graph is of three channels
            pixel_values = pixel_values.expand(-1, 3, -1, -1)
        height, width = pixel_values.shape[-2:]
        padding = self.config.stride
        left, top = -width % padding // 2, -height % padding // 2
        right, bottom = -width % padding - left, -height % padding - top
        stages, shares = self.encode(F.pad(pixel_values, (left, right, top, bottom), mode="replicate"))
        score_map = self.score_head(shares).sigmoid()[:, top : top + height, left : left + width]
        keypoints, mask = self.select(score_map, region, fixed_shapes)
        features = FeatureMap(stages, self.conv1, left, top, width, height)
        return KeypointFeatures(
            keypoints=keypoints * mask[..., None],
            scores=sample(score_map[:, None], keypoints)[:, 0] * mask,
            descriptors=self.describe(features, keypoints).to(pixel_values.dtype) * mask[..., None],
            mask=mask.int(),
        )

    def encode(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """`(batch, 3, height, width)`, sides a multiple of 32 -> what [`FeatureMap`] and the score head take.

        Both are of four stages, at 1, 1/2, 1/8 and 1/32 of the size.
        """
        # a clone: of one image the strides may pass for channels last and be read as channels first
        x, pooled, share = self.first_stage(pixel_values.clone(memory_format=torch.channels_last))
        stages, shares = [x], [share]
        convs = (self.conv2, self.conv3, self.conv4)
        for i, (block, conv) in enumerate(zip((self.block2, self.block3, self.block4), convs), start=1):
            x = block(pooled)
            stages.append(selu(conv(x)))
            shares.append(self.score_head[0](stages[i], i))
            pooled = F.avg_pool2d(x, 4) if i + 1 < STAGES else x
        return stages, shares

    def first_stage(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Features of the first stage, before `conv1`; their 2x2 means; and their share in the score head."""
        height, width = pixels.shape[-2:]
        if not low_memory_cpu(self, pixels):
            x = self.block1(pixels)
            return x, F.avg_pool2d(x, 2), self.score_head[0](selu(self.conv1(x)), 0)
        rows = max(STRIP // width, 1) * 2
        parts = []
        for start in range(0, height, rows):
            first = max(start - 2, 0)  # two rows more, which the convolutions see
            x = self.block1(pixels[:, :, first : start + rows + 2])[:, :, start - first :][:, :, :rows]
            features = selu(pointwise_conv(x, self.conv1.weight))
            parts.append((x, F.avg_pool2d(x, 2), self.score_head[0](features, 0)))
        return tuple(torch.cat(maps, 2) for maps in zip(*parts))

    def select(self, score_map: Tensor, region: Tensor | None, fixed_shapes: bool) -> tuple[Tensor, Tensor]:
        """Keypoints `(batch, n, 2)` in pixels, arbitrary where padding, and their mask `(batch, n)` bool."""
        radius = self.config.nms_radius
        height, width = score_map.shape[-2:]
        extent = vector(height, width, score_map.device)[None]
        maxima = non_maximum_suppression(score_map, radius) * pixels_inside(extent, height, width, radius)
        maxima = maxima.masked_fill(maxima <= self.threshold(maxima, score_map), 0)
        if region is not None:
            maxima = maxima * region
        indices, values = select_keypoints(maxima, 0.0, self.config.max_keypoints, fixed_shapes)
        # the mean position of the scores around a maximum
        step = torch.arange(-radius, radius + 1, device=score_map.device)
        window = torch.stack([step.repeat(len(step)), step.repeat_interleave(len(step))], -1)  # (x, y)
        around = (indices[..., None] + window[:, 0] + width * window[:, 1]).clamp(0, height * width - 1)
        scores = score_map.flatten(1).gather(1, around.flatten(1)).view_as(around)
        offsets = ((scores / TEMPERATURE).softmax(-1)[..., None] * window).sum(-2)
        return torch.stack([indices % width, indices // width], -1) + offsets, values > 0

    def threshold(self, maxima: Tensor, score_map: Tensor) -> Tensor | float:
        """What the score of a maximum has to exceed: a number, or one for each image, `(batch, 1, 1)`.

        Source: the mean in place of the threshold is Shiaoming/ALIKED's.
        """
        threshold = self.config.keypoint_threshold
        if not self.config.fallback_to_mean or (threshold <= 0 <= self.config.max_keypoints):
            return max(threshold, 0.0)
        mean = score_map.mean((1, 2), keepdim=True)
        if threshold <= 0:
            return mean
        return torch.where((maxima > threshold).any(2, keepdim=True).any(1, keepdim=True), threshold, mean)

    def describe(self, features: FeatureMap, keypoints: Tensor) -> Tensor:
        """`(batch, n, 2)` keypoints -> `(batch, n, dim)` descriptors."""
        if not low_memory_cpu(self, keypoints):
            return self.desc_head(features, keypoints)
        # of one image; grid_sample shares out images among threads, not points
        n = keypoints.shape[1]
        groups = F.pad(keypoints, (0, 0, 0, -n % GROUP)).reshape(-1, GROUP, 2)
        parts = [self.desc_head(features.expand(len(several)), several) for several in groups.split(GROUPS)]
        return torch.cat(parts).reshape(len(keypoints), -(-n // GROUP) * GROUP, self.config.descriptor_dim)[:, :n]


__all__ = ["ALIKEDConfig", "ALIKEDForKeypointDetection", "ALIKEDPreTrainedModel"]
