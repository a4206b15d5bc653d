"""DISK keypoint detector and descriptor (Tyszkiewicz, Fua, Trulls, NeurIPS 2020, arXiv:2006.13566).

A U-Net gives every pixel a descriptor and a score, an unbounded logit: of the published weights some hundreds below
and above zero. Parameter names are those of the checkpoints of cvlab-epfl/disk; keypoints are chosen as kornia 0.9.0
does it, see [`DISKForKeypointDetection`].
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..features import KeypointDetector, KeypointFeatures
from ..loading import CheckedLoading
from ..utils.tensors import FullPrecisionConv2d, low_memory_cpu
from .configuration_disk import DISKConfig
from .selection import select_keypoints

KERNEL = 5  # pixels, the side of every convolution
EPSILON = 1e-5  # of the instance norms
STRIP = 1 << 13  # pixels whose statistics are taken at once: the caches hold them


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1, without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1 and low_memory_cpu(self, x):  # torch's own would turn channels last into channels first
            return F.batch_norm(x, *channel_statistics(x), eps=EPSILON)
        # not that of nn.functional, which refuses the one pixel that is left of a small image: here it becomes 0
        return torch.instance_norm(x, None, None, None, None, True, 0.0, EPSILON, False)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the channels of one image, `(channels,)` float32 each.

    Strip by strip: each is in the caches when it is read again, and its sums in float32 are exact enough.
    """
    sums, squares = [], []
    for strip in x.split(max(STRIP // x.shape[-1], 1), 2):
        strip = strip.to(torch.promote_types(x.dtype, torch.float32))
        sums.append(strip.sum((0, 2, 3)))
        squares.append(strip.square().sum((0, 2, 3)))
    pixels = x.shape[-2] * x.shape[-1]
    mean, square = (torch.stack(parts).double().sum(0) / pixels for parts in (sums, squares))
    variance = (square - mean**2).clamp(min=0)
    return mean.to(sums[0].dtype), variance.to(sums[0].dtype)


class HeadConv(nn.Conv2d):
    """The last convolution: descriptors and, in the last channel, scores.

    The scores are computed everywhere; the descriptors, a hundred times the work, where there are keypoints.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, channels, height, width)` -> scores `(batch, height, width)`, in float32 whatever the weights."""
        weight, bias = self.weight[-1:].float(), self.bias[-1:].float()  # type: ignore[index]
        with torch.autocast(hidden.device.type, enabled=False):
            return F.conv2d(hidden.float(), weight, bias, padding=self.padding)[:, 0]

    def describe(self, hidden: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The descriptors `(batch, n, dim)` of pixels x, y, `(batch, n)` int64 each."""
        height, width = hidden.shape[-2:]
        offset = torch.arange(KERNEL, device=x.device) - KERNEL // 2
        rows, columns = y[..., None, None] + offset[:, None], x[..., None, None] + offset
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)  # the kernel sees zeros elsewhere
        image = torch.arange(hidden.shape[0], device=x.device)[:, None, None, None]
        index = ((image * height + rows) * width + columns) * inside
        pixels = F.embedding(index, hidden.permute(0, 2, 3, 1).flatten(0, 2)) * inside[..., None]
        weight, bias = self.weight[:-1], self.bias[:-1]  # type: ignore[index]
        return F.linear(pixels.flatten(2), weight.permute(0, 2, 3, 1).flatten(1), bias)


def conv_block(conv: nn.Conv2d) -> nn.Sequential:
    """Instance norm, PReLU, a place that is left empty, and a convolution."""
    return nn.Sequential(InstanceNorm(), nn.PReLU(conv.in_channels), nn.Identity(), conv)


class DISKUpBlock(nn.Module):
    """A level of the way up: the level below it, at twice the size, beside that of the way down."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv_block(conv)

    def activate(self, below: Tensor, skip: Tensor) -> Tensor:
        """What the convolution is given."""
        norm, activation, _, _ = self.conv
        below = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        return activation(norm(torch.cat([below, skip], 1)))

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        return self.conv[-1](self.activate(below, skip))


class DISKUnet(nn.Module):
    """RGB images, their sides multiples of the stride, to what the last convolution takes, at every pixel."""

    def __init__(self, config: DISKConfig) -> None:
        super().__init__()
        down, up = config.encoder_hidden_sizes, config.decoder_hidden_sizes
        same: dict[str, Any] = {"kernel_size": KERNEL, "padding": KERNEL // 2}
        first = FullPrecisionConv2d(3, down[0], **same)
        empty = nn.Identity()
        self.path_down = nn.ModuleList([nn.Sequential(empty, nn.Sequential(empty, empty, empty, first))])
        for i in range(1, len(down)):
            conv = nn.Conv2d(down[i - 1], down[i], **same)
            self.path_down.append(nn.Sequential(nn.AvgPool2d(2), conv_block(conv)))
        self.path_up = nn.ModuleList()
        below = down[-1]
        for skip, width in zip(down[-2:0:-1], up):
            self.path_up.append(DISKUpBlock(nn.Conv2d(below + skip, width, **same)))
            below = width
        self.path_up.append(DISKUpBlock(HeadConv(below + down[0], config.descriptor_dim + 1, **same)))

    @property
    def head(self) -> HeadConv:
        return self.path_up[-1].conv[-1]  # type: ignore[return-value,union-attr,index]

    def forward(self, pixels: Tensor) -> Tensor:
        """`(batch, 3, height, width)` -> `(batch, channels, height, width)`."""
        first = self.path_down[0](pixels)
        # The published weights' channels vary by 1% of their mean here, which half precision would round away, and
        # runtimes' plain sums, too. A constant is nothing to the norms that read them: a rough mean is taken away.
        first = first - first[:, :, ::16, ::16].mean((2, 3), keepdim=True)
        levels = [first.to(self.head.weight.dtype)]
        for block in self.path_down[1:]:
            levels.append(block(levels[-1]))
        hidden = levels.pop()
        for block in self.path_up[:-1]:
            hidden = block(hidden, levels.pop())
        return self.path_up[-1].activate(hidden, levels.pop())  # type: ignore[operator]


def strict_maxima(scores: Tensor, radius: int) -> Tensor:
    """The pixels greater than every other of the square of `2 radius + 1` pixels around them.

    Args:
        scores: `(batch, height, width)`.

    Returns:
        `(batch, height, width)` bool, `False` where the square reaches beyond the image.
    """
    height, width = scores.shape[-2:]
    padded = F.pad(scores, (radius, radius, radius, radius), value=torch.inf)
    rows = padded[:, :, :width]
    for i in range(1, 2 * radius + 1):
        rows = torch.maximum(rows, padded[:, :, i : i + width])
    own_row = padded[:, radius : radius + height]
    is_max = torch.ones_like(scores, dtype=torch.bool)
    for i in range(2 * radius + 1):
        if i != radius:
            is_max = is_max & (scores > rows[:, i : i + height]) & (scores > own_row[:, :, i : i + width])
    return is_max


class DISKPreTrainedModel(CheckedLoading, PreTrainedModel):
    config_class = DISKConfig
    base_model_prefix = "disk"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.PReLU):
            nn.init.constant_(module.weight, 0.25)


class DISKForKeypointDetection(KeypointDetector, DISKPreTrainedModel):
    """DISK: keypoints, scores and descriptors of a batch of images.

    A keypoint is a pixel whose score is above the threshold and strictly greater than every other of the 5x5 window
    around it, which lies within the image. The best `config.max_keypoints` are kept. Keypoints always stand in raster
    order.

    Source: `DISK` of kornia 0.9.0. Until 0.8.1 windows were cut at the border, so that keypoints could lie there, and
    a limit of n kept what was above the (n + 1)-th score, or above the last where there were no more than n: the worst
    keypoint was then left out.

    Example:

    ```python
    >>> import torch
    >>> from lightglue_hf import DISKConfig, DISKForKeypointDetection
    >>> model = DISKForKeypointDetection(DISKConfig(max_keypoints=100)).eval()
    >>> outputs = model(torch.rand(2, 3, 64, 80))
    >>> outputs.descriptors.shape[::2]
    torch.Size([2, 128])

    ```
    """

    def __init__(self, config: DISKConfig) -> None:
        super().__init__(config)
        self.unet = DISKUnet(config)
        self.post_init()

    def detect(
        self, pixel_values: Tensor, region: Tensor | None = None, fixed_shapes: bool = False
    ) -> KeypointFeatures:
        """See [`KeypointDetector.detect`]; of grey images, one channel, all three are the same."""
        if low_memory_cpu(self, pixel_values) and len(pixel_values) > 1:
            regions = [None] * len(pixel_values) if region is None else region.split(1)
            parts = zip(pixel_values.split(1), regions)
            return KeypointFeatures.cat(self.detect(*part, fixed_shapes) for part in parts)
        config, unet = self.config, self.unet
        height, width = pixel_values.shape[-2:]
        pixels = pixel_values.expand(-1, 3, -1, -1)
        # zeros, which the instance norms count in
        pixels = F.pad(pixels, (0, -width % config.stride, 0, -height % config.stride))
        hidden = unet(pixels.contiguous(memory_format=torch.channels_last))
        scores = unet.head(hidden)[:, :height, :width]
        is_keypoint = strict_maxima(scores, config.window // 2)
        if region is not None:
            is_keypoint = is_keypoint & region.bool()
        indices, values = select_keypoints(
            scores * is_keypoint, config.keypoint_threshold, config.max_keypoints, fixed_shapes
        )
        order = (indices + (values <= 0) * (height * width)).argsort(1)  # raster; padding last
        indices, values = indices.gather(1, order), values.gather(1, order)
        mask = values > 0
        x, y = indices % width * mask, indices // width * mask
        descriptors = unet.head.describe(hidden, x, y)
        return KeypointFeatures(
            keypoints=torch.stack([x, y], -1).float(),
            scores=values,
            descriptors=(F.normalize(descriptors.float(), dim=-1) * mask[..., None]).to(descriptors.dtype),
            mask=mask.int(),
        )


__all__ = ["DISKConfig", "DISKForKeypointDetection", "DISKPreTrainedModel"]
