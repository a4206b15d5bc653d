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
from ..utils.tensors import FullPrecisionConv2d, is_traced, low_memory_cpu
from .configuration_disk import DISKConfig
from .selection import pixels_at, select_keypoints

KERNEL = 5  # pixels, the side of every convolution
BLUR = (3 / 8, 5 / 4, 3 / 8)
EPSILON = 1e-5  # of the instance norms
STRIP = 3 << 11  # pixels that are upsampled and convolved at once on a CPU: the caches hold what comes of them


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1, without parameters; float32."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if len(x) == 1 and not is_traced():  # this of torch's functions leaves channels last as they are
            return torch.batch_norm(x, None, None, None, None, True, 0.0, EPSILON, False)
        # not that of nn.functional, which refuses the one pixel that is left of a small image: here it becomes 0
        return torch.instance_norm(x, None, None, None, None, True, 0.0, EPSILON, False)


class UpsampledNorm(InstanceNorm):
    """Of a map that is still to be upsampled to twice its size: what then has mean 0 and variance 1.

    Upsampling leaves the mean as it is. A pixel becomes 9/16, 3/16, 3/16 and 1/16 of what lies around it, and the sum
    of the squares of all that is x B x, where B blurs by `BLUR` along both axes. Of x after its own norm, whose mean
    square u falls short of 1 by what epsilon is in it, the upsampled variance and epsilon are x B x / (4 pixels) +
    1 - u: this keeps its digits in half precision, too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        kernel = torch.tensor(BLUR, device=x.device)
        kernel = kernel[:, None] * kernel / 4 - torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]], device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
            change = F.conv2d(padded, kernel.expand(self.channels, 1, 3, 3), groups=self.channels)
        return x * (1 + (x * change).mean((2, 3), keepdim=True)).rsqrt()


class HeadConv(nn.Conv2d):
    """The last convolution: descriptors and, in the last channel, scores.

    The scores are computed everywhere; the descriptors, a hundred times the work, where there are keypoints.
    """

    def __init__(self, below: int, skip: int, out_channels: int, **options: Any) -> None:
        super().__init__(below + skip, out_channels, **options)
        self.channels = [below, skip]

    def forward(self, *parts: Tensor) -> Tensor:  # type: ignore[override]
        """`(batch, channels, height, width)` in two parts -> scores `(batch, 1, height, width)` float32.

        Of one channel a convolution is no faster than of sixteen. So the columns of the kernel are five channels,
        and are added up, each shifted by its place.
        """
        width, middle = parts[0].shape[-1], KERNEL // 2
        weight = self.weight[-1].float().permute(2, 0, 1)[..., None]
        weights = weight.split(self.channels, 1)
        with torch.autocast(weight.device.type, enabled=False):
            columns = [F.conv2d(part.float(), of, padding=(middle, 0)) for part, of in zip(parts, weights)]
        padded = F.pad(sum(columns[1:], start=columns[0]), (middle, middle))
        scores = padded[:, :1, :, :width] + self.bias[-1].float()  # type: ignore[index]
        for i in range(1, KERNEL):
            scores = scores + padded[:, i : i + 1, :, i : i + width]
        return scores

    def describe(self, patches: Tensor) -> Tensor:
        """`(batch, n, pixels, channels)` of what the kernel sees -> descriptors `(batch, n, dim)`."""
        weight, bias = self.weight[:-1], self.bias[:-1]  # type: ignore[index]
        return F.linear(patches.flatten(2).to(weight.dtype), weight.permute(0, 2, 3, 1).flatten(1), bias)


class ConvBlock(nn.Sequential):
    """Instance norm, PReLU, a place that is left empty, and a convolution."""

    def __init__(self, conv: nn.Conv2d, *parts: int) -> None:
        super().__init__(InstanceNorm(), nn.PReLU(conv.in_channels), nn.Identity(), conv)
        self.channels = list(parts) or [conv.in_channels]

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(self[0](x))

    def convolve(self, *normalized: Tensor) -> Tensor:
        """What comes after the norm, of its float32 channels, in the parts that were announced."""
        activation: Any
        conv: Any
        _, activation, _, conv = self
        weights = activation.weight.float().split(self.channels)
        parts = [F.prelu(part, of).to(conv.weight.dtype) for part, of in zip(normalized, weights)]
        return conv(*parts) if len(parts) == 1 or isinstance(conv, HeadConv) else conv(torch.cat(parts, 1))


class DISKUpBlock(nn.Module):
    """A level of the way up: the level below it, at twice the size, beside that of the way down."""

    def __init__(self, below: int, skip: int, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = ConvBlock(conv, below, skip)
        self.norm_below = UpsampledNorm(below)

    def normalize(self, below: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Both as the norm of all channels leaves them, the first still to be upsampled."""
        return self.norm_below(below), self.conv[0](skip)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """What the convolution makes of [`normalize`]'s; on a CPU strip by strip."""
        height, width = below.shape[-2:]
        rows = max(STRIP // width, 1) if low_memory_cpu(self, below) else height
        if rows >= height:
            return self.conv.convolve(upsample(below), skip)
        strips = []
        for start in range(0, height, rows):
            stop = start + rows
            first, top = max(start - 2, 0), max(2 * start - KERNEL // 2, 0)  # what upsampling and the kernel see
            seen = slice(top, 2 * stop + KERNEL // 2)
            strip = upsample(below[:, :, first : stop + 2])[:, :, top - 2 * first : seen.stop - 2 * first]
            strip = self.conv.convolve(strip, skip[:, :, seen])
            strips.append(strip[:, :, 2 * start - top :][:, :, : 2 * rows])
        return torch.cat(strips, 2)

    def patches(self, below: Tensor, skip: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """What the convolution sees around pixels.

        Args:
            below, skip: [`normalize`]'s.
            x, y: `(batch, n)` int64 each.

        Returns:
            `(batch, n, KERNEL^2, channels)` float32, row by row.
        """
        height, width = skip.shape[-2:]
        kernel, half = (torch.arange(side, device=x.device) for side in (KERNEL, 4))
        rows, columns = (i[..., None] + kernel - KERNEL // 2 for i in (y, x))
        inside = ((rows >= 0) & (rows < height))[..., None] & ((columns >= 0) & (columns < width))[..., None, :]
        beside = squares_at(skip, columns, rows)
        # Those pixels are upsampled from a square of four by four. (i - 3) // 2 would be truncated in OpenVINO.
        rows_below, columns_below = (((i + 1) // 2 - 2)[..., None] + half for i in (y, x))
        around = squares_at(below, columns_below, rows_below)
        vertical, horizontal = (
            # of small whole numbers, which half precision has, too
            (1 - ((i[..., None] - 2 * j[..., None, :]) / 2 - 0.25).abs()).clamp(min=0)
            for i, j in ((rows, rows_below), (columns, columns_below))
        )
        weights = vertical[..., :, None, :, None] * horizontal[..., None, :, None, :]  # (b, n, KERNEL, KERNEL, 4, 4)
        hidden = torch.cat([weights.flatten(4).flatten(2, 3) @ around, beside], -1)
        activation: Any = self.conv[1]
        hidden = F.prelu(hidden.flatten(0, 2), activation.weight.float()).view_as(hidden)
        return hidden * inside.flatten(2)[..., None]  # the kernel sees zeros beyond the image


def upsample(x: Tensor) -> Tensor:
    """To twice the size."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def squares_at(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of `(batch, channels, height, width)` the columns x of the rows y, `(batch, n, k)` int64 each.

    Returns:
        `(batch, n, k^2, channels)`, row by row; beyond the map what is nearest.
    """
    height, width = maps.shape[-2:]
    columns, rows = x.clamp(0, width - 1), y.clamp(0, height - 1)
    return pixels_at(maps, columns[..., None, :], rows[..., None]).flatten(2, 3)


class DISKUnet(nn.Module):
    """RGB images, their sides multiples of the stride, to two levels that the last one is made of."""

    def __init__(self, config: DISKConfig) -> None:
        super().__init__()
        down, up = config.encoder_hidden_sizes, config.decoder_hidden_sizes
        same: dict[str, Any] = {"kernel_size": KERNEL, "padding": KERNEL // 2}
        first = FullPrecisionConv2d(3, down[0], **same)
        empty = nn.Identity()
        self.path_down = nn.ModuleList([nn.Sequential(empty, nn.Sequential(empty, empty, empty, first))])
        for i in range(1, len(down)):
            conv = nn.Conv2d(down[i - 1], down[i], **same)
            self.path_down.append(nn.Sequential(nn.AvgPool2d(2), ConvBlock(conv)))
        self.path_up = nn.ModuleList()
        below = down[-1]
        for skip, width in zip(down[-2:0:-1], up):
            self.path_up.append(DISKUpBlock(below, skip, nn.Conv2d(below + skip, width, **same)))
            below = width
        head = HeadConv(below, down[0], config.descriptor_dim + 1, **same)
        self.path_up.append(DISKUpBlock(below, down[0], head))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch, 3, height, width)` -> what the last level takes."""
        first = self.path_down[0](pixels)
        # The published weights' channels vary by 1% of their mean here, which half precision would round away, and
        # runtimes' plain sums, too. A constant is nothing to the norms that read them: a rough mean is taken away.
        first = first - first[:, :, ::16, ::16].mean((2, 3), keepdim=True)
        levels = [first]
        for block in self.path_down[1:]:
            levels.append(block(levels[-1]))
        hidden = levels.pop()
        for block in self.path_up[:-1]:
            hidden = block(*block.normalize(hidden, levels.pop()))  # type: ignore[operator]
        return self.path_up[-1].normalize(hidden, levels.pop())  # type: ignore[operator,return-value]


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
        # a clone: of one image the strides may pass for channels last and be read as channels first
        levels = unet(pixels.clone(memory_format=torch.channels_last))
        head: Any = unet.path_up[-1]
        scores = head(*levels)[:, 0, :height, :width]
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
        descriptors = head.conv[-1].describe(head.patches(*levels, x, y))
        return KeypointFeatures(
            keypoints=torch.stack([x, y], -1).float(),
            scores=values,
            descriptors=(F.normalize(descriptors.float(), dim=-1) * mask[..., None]).to(descriptors.dtype),
            mask=mask.int(),
        )


__all__ = ["DISKConfig", "DISKForKeypointDetection", "DISKPreTrainedModel"]
