"""XFeat keypoint detector and descriptor (Potje, Cadar, Araujo, Martins, Nascimento, CVPR 2024, arXiv:2404.19174).

Parameter names are those of the checkpoints of verlab/accelerated_features, whose sparse mode this is. Its rules are
kept, the odd ones included: they give the keypoints that its matcher, LighterGlue, knows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..features import KeypointDetector, KeypointFeatures
from ..loading import CheckedLoading
from ..utils.tensors import FullPrecisionConv2d, is_traced, low_memory_cpu, vector
from .configuration_xfeat import XFeatConfig
from .selection import max_pool, select_keypoints

CELL = 8  # pixels a side that one vector of scores and one descriptor describe


class XFeatLayer(nn.Module):
    """Convolution, batch norm without weights, ReLU; in the type of what it is given."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels, affine=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.layer(x)
        conv: Any
        norm: Any
        conv, norm, _ = self.layer
        # the norm goes into the weights, which are fewer than the pixels
        scale = (norm.running_var.float() + norm.eps).rsqrt()
        weight = conv.weight.float() * scale[:, None, None, None]
        bias = -norm.running_mean.float() * scale
        return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), conv.stride, conv.padding).relu_()


def fine_matcher(descriptor_dim: int) -> nn.Sequential:
    """From two descriptors to offsets within a cell: of the semi-dense mode, which is not here; its weights are."""
    hidden = 512
    blocks: list[nn.Module] = []
    for width in (2 * descriptor_dim, hidden, hidden, hidden):
        blocks += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden, affine=False), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Linear(hidden, CELL**2))


def normalize_images(grey: Tensor) -> Tensor:
    """Each of `(batch, 1, height, width)` to mean 0 and variance 1."""
    centred = grey - grey.mean((1, 2, 3), keepdim=True)
    return centred * (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).rsqrt()


def cells_as_channels(grey: Tensor) -> Tensor:
    """`(batch, 1, height, width)` -> `(batch, 64, rows, columns)`: the pixels of a cell, row by row."""
    cells = grey[:, 0].unflatten(2, (-1, CELL)).unflatten(1, (-1, CELL))
    return cells.permute(0, 1, 3, 2, 4).flatten(3).permute(0, 3, 1, 2)


def interpolation_weights(pixels: int, cells: int, device: torch.device) -> Tensor:
    """`(pixels, cells)`: what each cell counts for at each pixel of a side, bilinear with zeros beyond the map.

    Pixel p lies at p cells / (pixels - 1) - 0.5: exact in the middle, and half a pixel off at the ends.
    Source: verlab/accelerated_features, `InterpolateSparse2d`.
    """
    position = torch.arange(pixels, device=device) * (cells / (pixels - 1)) - 0.5
    return (1 - (position[:, None] - torch.arange(cells, device=device)).abs()).clamp(min=0)


def spread(cells: Tensor, height: int, width: int) -> Tensor:
    """A map `(batch, rows, columns)` read at every pixel of an image: `(batch, height, width)` float32."""
    rows, columns = cells.shape[-2:]
    with torch.autocast(cells.device.type, enabled=False):
        across = cells.float() @ interpolation_weights(width, columns, cells.device).T
        return interpolation_weights(height, rows, cells.device) @ across


def sample_descriptors(features: Tensor, points: Tensor) -> Tensor:
    """Descriptors at pixels, bicubic in the map of cells and by the rule of [`interpolation_weights`], of unit length.

    Args:
        features: `(batch, dim, rows, columns)`.
        points: `(batch, n, 2)` float32, pixels (x, y) of the image of 8 rows times 8 columns.

    Returns:
        `(batch, n, dim)` float32.
    """
    rows, columns = features.shape[-2:]
    grid = 2 * points / vector(columns * CELL - 1, rows * CELL - 1, points.device, points.dtype) - 1
    features = F.normalize(features.float(), dim=1)
    sampled = F.grid_sample(features, grid[:, None], mode="bicubic", align_corners=False)
    return F.normalize(sampled[:, :, 0], dim=1).transpose(1, 2)


class XFeatPreTrainedModel(CheckedLoading, PreTrainedModel):
    config_class = XFeatConfig
    base_model_prefix = "xfeat"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.reset_running_stats()


class XFeatForKeypointDetection(KeypointDetector, XFeatPreTrainedModel):
    """XFeat: keypoints, scores and descriptors of a batch of images.

    - An image is first resized, bilinearly, to the multiples of 32 pixels below its sides; one smaller than that has
      no keypoints. The points of the resized image are multiplied by the ratio of the sides at the end.
    - A keypoint is a pixel that is one with a probability above the threshold and not less than any other's of the 5x5
      window around it; none lies in the last row or column, nor at (0, 0).
    - Its score is that probability times the reliability of the features there. Keypoints stand in descending order
      of score.

    Source: `detectAndCompute` of verlab/accelerated_features. kornia 0.9.0's XFeat also leaves out the two outermost
    rows and columns of pixels at every side.

    Example:

    ```python
    >>> import torch
    >>> from lightglue_hf import XFeatConfig, XFeatForKeypointDetection
    >>> model = XFeatForKeypointDetection(XFeatConfig(max_keypoints=100)).eval()
    >>> outputs = model(torch.rand(2, 3, 64, 96))
    >>> outputs.descriptors.shape[::2]
    torch.Size([2, 64])

    ```
    """

    def __init__(self, config: XFeatConfig) -> None:
        super().__init__(config)
        width = config.descriptor_dim
        layer = XFeatLayer
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(layer(1, 4), layer(4, 8, stride=2), layer(8, 8), layer(8, 24, stride=2))
        self.block2 = nn.Sequential(layer(24, 24), layer(24, 24))
        self.block3 = nn.Sequential(layer(24, width, stride=2), layer(width, width), layer(width, width, 1))
        self.block4 = nn.Sequential(layer(width, width, stride=2), layer(width, width), layer(width, width))
        wide = 2 * width
        self.block5 = nn.Sequential(
            layer(width, wide, stride=2), layer(wide, wide), layer(wide, wide), layer(wide, width, 1)
        )
        self.block_fusion = nn.Sequential(layer(width, width), layer(width, width), nn.Conv2d(width, width, 1))
        self.heatmap_head = nn.Sequential(
            layer(width, width, 1), layer(width, width, 1), nn.Conv2d(width, 1, 1), nn.Sigmoid()
        )
        pixels = CELL**2
        self.keypoint_head = nn.Sequential(
            *(layer(pixels, pixels, 1) for _ in range(3)), FullPrecisionConv2d(pixels, pixels + 1, 1)
        )
        self.fine_matcher = fine_matcher(width)
        self.post_init()

    def detect(
        self, pixel_values: Tensor, region: Tensor | None = None, fixed_shapes: bool = False
    ) -> KeypointFeatures:
        """See [`KeypointDetector.detect`]; the mean of the channels is used."""
        config = self.config
        height, width = pixel_values.shape[-2:]
        rows, columns = (max(side // config.stride, 1) * config.stride for side in (height, width))
        grey = pixel_values.float().mean(1, keepdim=True)
        if is_traced() or (rows, columns) != (height, width):
            grey = F.interpolate(grey, (rows, columns), mode="bilinear", align_corners=False)
        logits, reliability, features = self._maps(normalize_images(grey))

        scores = F.pixel_shuffle(logits.softmax(1)[:, :-1], CELL)[:, 0]
        y, x = (torch.arange(side, device=scores.device) for side in (rows, columns))
        # of the last row and column the published code reads a score of 0, and it takes the first pixel for padding
        is_keypoint = (y < rows - 1)[:, None] & (x < columns - 1) & (y[:, None] + x > 0)
        if min(height, width) < config.stride:
            is_keypoint = torch.zeros_like(is_keypoint)
        if region is not None:  # by the pixel of the given image that a point comes to lie on
            above = (y * (height / rows)).round().long().clamp(max=height - 1)
            left = (x * (width / columns)).round().long().clamp(max=width - 1)
            region = region[:, above][:, :, left]
            is_keypoint = is_keypoint & region.bool()
        is_keypoint = is_keypoint & (scores > config.keypoint_threshold)
        is_keypoint = is_keypoint & (scores == max_pool(scores, config.nms_radius))
        scores = scores * spread(reliability, rows, columns) * is_keypoint

        indices, values = select_keypoints(scores, 0.0, config.max_keypoints, fixed_shapes)
        order = values.argsort(1, descending=True)
        indices, values = indices.gather(1, order), values.gather(1, order)
        mask = values > 0
        points = torch.stack([indices % columns, indices // columns], -1).float() * mask[..., None]
        scale = vector(width, height, points.device) / vector(columns, rows, points.device)
        return KeypointFeatures(
            keypoints=points * scale,
            scores=values,
            descriptors=(sample_descriptors(features, points) * mask[..., None]).to(features.dtype),
            mask=mask.int(),
        )

    def _maps(self, grey: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network makes of normalised images `(batch, 1, height, width)`.

        Returns:
            Logits of a cell's pixels and of "no keypoint" `(batch, 65, rows, columns)` float32, reliability
            `(batch, rows, columns)` and features `(batch, dim, rows, columns)`.
        """
        if low_memory_cpu(self, grey) and len(grey) > 1:
            maps = zip(*(self._maps(image) for image in grey.split(1)))
            return tuple(torch.cat(parts) for parts in maps)  # type: ignore[return-value]
        if not torch.jit.is_tracing():  # channels last, which the convolutions keep
            grey = grey[:, 0, ..., None].permute(0, 3, 1, 2)
        first, *others = self.block1
        with torch.autocast(grey.device.type, enabled=False):  # pixels: in float32 whatever the weights
            logits = self.keypoint_head(cells_as_channels(grey))
            hidden = first(grey).to(self.dtype)
        for layer in others:
            hidden = layer(hidden)
        level3 = self.block3(self.block2(hidden + self.skip1(grey.to(self.dtype))))
        level4 = self.block4(level3)
        level5 = self.block5(level4)
        level4 = F.interpolate(level4, scale_factor=2, mode="bilinear", align_corners=False)
        level5 = F.interpolate(level5, scale_factor=4, mode="bilinear", align_corners=False)
        features = self.block_fusion(level3 + level4 + level5)
        return logits, self.heatmap_head(features)[:, 0], features


__all__ = ["XFeatConfig", "XFeatForKeypointDetection", "XFeatPreTrainedModel"]
