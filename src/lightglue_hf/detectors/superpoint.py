"""SuperPoint keypoint detector and descriptor (DeTone, Malisiewicz, Rabinovich, CVPRW 2018, arXiv:1712.07629).

Parameter names, configuration and output are those of transformers' SuperPoint, so checkpoints are exchangeable both
ways. Unlike there, the whole batch is processed at once, photos of different sizes can share a batch, points are kept
away from all four borders, coordinates stay in float32 and the network can be trained.
"""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_superpoint import CELL, SuperPointConfig

STRIP = 1 << 16  # pixels that are convolved at once on a CPU: 64 channels of them fit into the caches


@dataclass
class SuperPointKeypointDescriptionOutput(ModelOutput):
    """Keypoints of a batch of images, padded to the largest count.

    Args:
        loss: scalar, only with `labels`.
        keypoints: `(batch, n, 2)` float32, (x, y) pixels (centre of the first pixel = (0, 0)) divided by the
            (width, height) of `pixel_values`; 0 where padding.
        scores: `(batch, n)` float32, 0 where padding.
        descriptors: `(batch, n, descriptor_decoder_dim)`, unit length, 0 where padding.
        mask: `(batch, n)` int32, 1 for a keypoint and 0 for padding. Keypoints come before padding.
        hidden_states: the output of each encoder block, `(batch, channels, height, width)`.
    """

    loss: Tensor | None = None
    keypoints: Tensor | None = None
    scores: Tensor | None = None
    descriptors: Tensor | None = None
    mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def vector(a: int, b: int, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """`(2,)`, made on the device: `torch.tensor` would copy it there, and wait for that."""
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in (a, b)])


def is_traced() -> bool:
    """Whether a graph is made, which is to serve other values too."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def max_pool(scores: Tensor, radius: int) -> Tensor:
    """Maximum over the `(2 radius + 1)`-pixel square around each pixel of `(batch, height, width)`.

    The maximum over a square is the maximum over rows of the maxima over columns, and a window's is that of two
    windows half as wide: 2 log2(k) comparisons a pixel, not k^2, each of them over whole tensors.
    """
    size = 2 * radius + 1
    scores = F.pad(scores, (radius, radius, radius, radius), value=-torch.inf)
    covered = 1
    while covered < size:
        step = min(covered, size - covered)
        scores = torch.maximum(scores[:, :, :-step], scores[:, :, step:])
        scores = torch.maximum(scores[:, :-step], scores[:, step:])
        covered += step
    return scores


def non_maximum_suppression(scores: Tensor, radius: int) -> Tensor:
    """Zero all but the local maxima of `(batch, height, width)` scores >= 0.

    Two more rounds look for maxima among the points that no maximum suppresses.
    Source: SuperPoint's `simple_nms` as in cvg/LightGlue@1fd587b.
    """
    if radius == 0:
        return scores
    is_max = scores == max_pool(scores, radius)
    for _ in range(2):
        suppressed = max_pool(is_max.to(scores.dtype), radius) > 0
        remaining = scores.masked_fill(suppressed, 0)
        is_max = is_max | ((remaining == max_pool(remaining, radius)) & ~suppressed)
    return scores.masked_fill(~is_max, 0)


def select_keypoints(scores: Tensor, threshold: float, max_keypoints: int, fixed: bool) -> tuple[Tensor, Tensor]:
    """The pixels with a score above the threshold, per image.

    Args:
        scores: `(batch, height, width)` float32.
        threshold: strictly exceeded by a keypoint's score.
        max_keypoints: the best so many are kept, then in descending order of score; otherwise all, in raster order.
        fixed: return exactly `max_keypoints` columns and never wait for the device.

    Returns:
        indices `(batch, n)` int64 into the flattened image and values `(batch, n)`, 0 where padding.
    """
    batch, height, width = scores.shape
    flat = scores.flatten(1)
    flat = flat.masked_fill(flat <= threshold, 0)
    if fixed:
        flat = F.pad(flat, (0, max_keypoints))  # an image of fewer pixels has that many columns too
        values, indices = flat.topk(max_keypoints, dim=1)
        # Where all fit, raster order as below; padding (value 0) stays behind.
        all_fit = (flat > 0).sum(1, keepdim=True) <= max_keypoints
        column = torch.arange(max_keypoints, device=flat.device)
        order = torch.where(all_fit, indices, column) + (values <= 0) * (height * width + max_keypoints)
        order = order.argsort(dim=1)
        return indices.gather(1, order), values.gather(1, order)
    image, pixel = flat.nonzero(as_tuple=True)
    counts = torch.bincount(image, minlength=batch)
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(image), device=flat.device) - starts[image]
    n = int(counts.max()) if batch else 0
    indices = pixel.new_zeros(batch, n)
    values = flat.new_zeros(batch, n)
    indices[image, column] = pixel
    values[image, column] = flat[image, pixel]
    if 0 <= max_keypoints < n:
        best_values, best = values.topk(max_keypoints, dim=1)
        all_fit = (counts <= max_keypoints)[:, None]
        values = torch.where(all_fit, values[:, :max_keypoints], best_values)
        indices = torch.where(all_fit, indices[:, :max_keypoints], indices.gather(1, best))
    return indices, values


def sample_descriptors(
    descriptors: Tensor, keypoints: Tensor, sizes: Tensor | None = None, grid: str = "stretched"
) -> Tensor:
    """Descriptors at keypoints, bilinear in the map of cells, of unit length.

    Args:
        descriptors: `(batch, dim, rows, columns)`, the decoder's output.
        keypoints: `(batch, n, 2)`, pixels (x, y).
        sizes: `(batch, 2)` (rows, columns) of the part of the map that belongs to each image; all of it by default.
        grid: `config.descriptor_grid`.

    Returns:
        `(batch, n, dim)` float32.

    Source: the stretched grid is cvg/LightGlue@1fd587b's, (k - 3.5) / (8 columns - 4.5), which ends in the last cell's
    centre; the centred one rpautrat/SuperPoint@ccf3008's, 2 (k + 0.5) / (8 columns) - 1 without aligned corners.
    """
    rows, columns = descriptors.shape[-2:]
    extent = vector(columns, rows, keypoints.device, keypoints.dtype)
    cells = extent if sizes is None else sizes.flip(-1).to(keypoints.dtype)[:, None]
    if grid == "centred":  # zeros beyond the outer centres shorten a descriptor and do not turn it: so does a clamp
        position = ((keypoints - 3.5) / CELL).clamp(min=0).minimum(cells - 1)
    else:
        position = (keypoints - 3.5) / (CELL * cells - 4.5) * (cells - 1)
    aligned = position / (extent - 1).clamp(min=1) * 2 - 1
    descriptors = F.normalize(descriptors.float(), dim=1)
    sampled = F.grid_sample(descriptors, aligned[:, None], mode="bilinear", align_corners=True)
    return F.normalize(sampled[:, :, 0], dim=1).transpose(1, 2)


def pool_cells(hidden: Tensor, min_pooled: int) -> Tensor:
    """2x2 max-pooling; of the last `min_pooled` channels min-pooling."""
    if min_pooled == 0:
        return F.max_pool2d(hidden, 2)
    split = hidden.shape[1] - min_pooled
    return torch.cat([F.max_pool2d(hidden[:, :split], 2), -F.max_pool2d(-hidden[:, split:], 2)], 1)


def in_parts(module: nn.Module, x: Tensor) -> bool:
    """Whether to compute image by image and strip by strip: what is written is still in the caches when it is read.

    Memory is reused, too, where the operating system would hand out new pages. On accelerators more at once is
    better, batch statistics and gradients need the whole, and a graph is for other sizes, too.
    """
    return x.device.type == "cpu" and not (module.training or torch.is_grad_enabled() or is_traced())


def unrounded(conv: nn.Module, x: Tensor) -> Tensor:
    """Convolve in the type of the weights, even under autocast, where keypoints hang on the last bits.

    Of 8-bit pixels, and of scores whose maxima are looked for, bfloat16 loses enough to move one keypoint in twenty.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return conv(x)
    with torch.autocast(device, enabled=False):
        return conv(x.to(next(conv.parameters()).dtype))


class SuperPointConvBlock(nn.Module):
    """Two 3x3 convolutions, each followed by ReLU, and a 2x2 pooling."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool, min_pooled: int = 0) -> None:
        super().__init__()
        self.min_pooled = min_pooled
        self.conv_a = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv_b = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.pool = pool

    def forward(self, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
        """`(batch, channels, height, width)`; `valid` is `(batch, 1, height, width)`, 0 outside an image."""
        height, width = hidden.shape[-2:]
        strips = -(-height * width // STRIP) if in_parts(self, hidden) and self.pool else 1
        if strips == 1:
            return self.convolve(hidden, valid)
        rows = 2 * -(-height // (2 * strips))
        pooled = []
        for i in range(0, height, rows):
            first = max(i - 2, 0)  # two rows more, which the convolutions see
            window = slice(first, i + rows + 2)
            strip = self.convolve(hidden[:, :, window], None if valid is None else valid[:, :, window])
            pooled.append(strip[:, :, (i - first) // 2 :][:, :, : rows // 2])
        return torch.cat(pooled, 2)

    def convolve(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        pixels = hidden.shape[1] == 1
        hidden = (unrounded(self.conv_a, hidden) if pixels else self.conv_a(hidden)).relu_()
        if valid is not None:  # the next convolution sees zeros outside each image, as if it were alone
            hidden = hidden * valid
        hidden = self.conv_b(hidden)
        if self.pool:  # before what is the same on a quarter of the pixels; an image ends between windows
            hidden = pool_cells(hidden, self.min_pooled)
            valid = None if valid is None else F.max_pool2d(valid, 2)
        hidden = hidden.relu_()
        return hidden if valid is None else hidden * valid


class SuperPointEncoder(nn.Module):
    """Grey images to features of a cell each."""

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__()
        widths = [1, *config.encoder_hidden_sizes]
        min_pooled = [*config.min_pooled_channels, 0]
        last = len(widths) - 2
        self.conv_blocks = nn.ModuleList(
            SuperPointConvBlock(widths[i], widths[i + 1], pool=i < last, min_pooled=min_pooled[i])
            for i in range(last + 1)
        )

    def forward(self, hidden: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        """The output of every block. `valid` is `(batch, 1, height, width)`, 0 outside an image."""
        outputs = []
        for block in self.conv_blocks:
            hidden = block(hidden, valid)
            outputs.append(hidden)
            if valid is not None and block.pool:
                valid = F.max_pool2d(valid, 2)
        return tuple(outputs)


class SuperPointInterestPointDecoder(nn.Module):
    """Features to the logits of a cell's 64 pixels and of "no keypoint"."""

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__()
        self.conv_score_a = nn.Conv2d(
            config.encoder_hidden_sizes[-1], config.decoder_hidden_size, kernel_size=3, padding=1
        )
        self.conv_score_b = nn.Conv2d(config.decoder_hidden_size, config.keypoint_decoder_dim, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """`(batch, 65, rows, columns)` float32 logits: softmax in half precision ties neighbouring scores."""
        return unrounded(self.conv_score_b, self.conv_score_a(features).relu_()).float()


class SuperPointDescriptorDecoder(nn.Module):
    """Features to one descriptor a cell, not normalised."""

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__()
        self.conv_descriptor_a = nn.Conv2d(
            config.encoder_hidden_sizes[-1], config.decoder_hidden_size, kernel_size=3, padding=1
        )
        self.conv_descriptor_b = nn.Conv2d(config.decoder_hidden_size, config.descriptor_decoder_dim, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv_descriptor_b(self.conv_descriptor_a(features).relu_())


class CheckedLoading:
    """`from_pretrained` that reads safetensors alone and wants every weight of the model, no more and no less."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As in transformers, but pickles are never read, and missing or unexpected weights are an error.

        With `output_loading_info=True` those are listed instead, for the caller to judge.

        Raises:
            OSError: no safetensors file, or a broken one; where is said.
            ValueError: missing or unexpected weights, listed; or `use_safetensors=False`.
        """
        where = pretrained_model_name_or_path
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError("use_safetensors=False: only safetensors are read; `lightglue-hf convert` reads others")
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(where, *model_args, **kwargs)  # type: ignore[misc]
        except SafetensorError as error:
            raise OSError(f"{where}: broken safetensors: {error}") from error
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise OSError(f"{error} Only safetensors are read: `lightglue-hf convert` converts pickles.") from error
        if wants_info:
            return model, info
        faults = [
            f"{kind} weights: {', '.join(sorted(info[f'{kind}_keys']))}"
            for kind in ("missing", "unexpected")
            if info[f"{kind}_keys"]
        ]
        if faults:
            raise ValueError(f"{where} is no checkpoint of this {cls.__name__}: {'; '.join(faults)}")
        return model


class SuperPointPreTrainedModel(CheckedLoading, PreTrainedModel):
    config_class = SuperPointConfig
    base_model_prefix = "superpoint"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SuperPointForKeypointDetection(SuperPointPreTrainedModel):
    """SuperPoint: keypoints, scores and descriptors of a batch of images.

    Example:

    ```python
    >>> import torch
    >>> from lightglue_hf import SuperPointConfig, SuperPointForKeypointDetection
    >>> model = SuperPointForKeypointDetection(SuperPointConfig(max_keypoints=100)).eval()
    >>> outputs = model(torch.rand(2, 3, 120, 160))
    >>> outputs.keypoints.shape[::2]
    torch.Size([2, 2])

    ```
    """

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__(config)
        self.encoder = SuperPointEncoder(config)
        self.keypoint_decoder = SuperPointInterestPointDecoder(config)
        self.descriptor_decoder = SuperPointDescriptorDecoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: dict[str, Tensor] | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        image_sizes: Tensor | None = None,
        fixed_shapes: bool = False,
    ) -> SuperPointKeypointDescriptionOutput | tuple:
        """Detect and describe keypoints.

        Args:
            pixel_values: `(batch, channels, height, width)` in [0, 1]; the first channel is used. Height and width
                beyond a multiple of 8 see no keypoints.
            labels: see [`superpoint_loss`]. With labels only `loss` (and `hidden_states`) are returned.
            output_hidden_states: also return the output of each encoder block.
            return_dict: `False` returns the tuple of the fields that are not `None`.
            image_sizes: `(batch, 2)` int, (height, width) of the image within each `pixel_values`, the rest of which,
                to its right and bottom, is padding: no keypoint comes from there, and each image gets what it gets
                alone, with zeros up to a multiple of 8.
            fixed_shapes: return exactly `config.max_keypoints` columns (>= 0) and never wait for the device.

        Raises:
            ValueError: `pixel_values` is not 4-dimensional, or `fixed_shapes` without `max_keypoints`.
        """
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values must be (batch, channels, height, width), got shape {tuple(pixel_values.shape)}"
            )
        config = self.config
        if fixed_shapes and config.max_keypoints < 0:
            raise ValueError("fixed_shapes needs config.max_keypoints >= 0")
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if return_dict is None:
            return_dict = config.return_dict
        height, width = pixel_values.shape[-2:]
        if min(height, width) < CELL:  # no cell fits: let one, of which all but the image is padding
            if image_sizes is None:
                image_sizes = vector(height, width, pixel_values.device)[None]
            pixel_values = F.pad(pixel_values, (0, max(CELL - width, 0), 0, max(CELL - height, 0)))
        rows, columns = (length // CELL for length in pixel_values.shape[-2:])

        grey = pixel_values[:, 0]
        valid = cells = None
        if image_sizes is not None:
            grey = grey * inside(image_sizes, *grey.shape[-2:])
            cells = ((image_sizes + CELL - 1) // CELL).minimum(vector(rows, columns, image_sizes.device))
            valid = inside(CELL * cells, *pixel_values.shape[-2:])[:, None].to(pixel_values.dtype)
        # One channel, laid out as channels last: the convolutions keep that and are about twice as fast on a CPU.
        # In an exported graph one plain reshape: OpenVINO rewrites others, and then rounds the pixels to bfloat16.
        grey = grey.reshape(-1, 1, *grey.shape[1:]) if torch.jit.is_tracing() else grey[..., None].permute(0, 3, 1, 2)
        maps = self._maps(grey, valid, bool(output_hidden_states))
        logits, descriptor_map, *hidden_states = maps

        states = tuple(hidden_states) if output_hidden_states else None
        if labels is not None:
            loss = superpoint_loss(logits, descriptor_map, **labels, grid=config.descriptor_grid)
            outputs = SuperPointKeypointDescriptionOutput(loss=loss, hidden_states=states)
            return outputs if return_dict else outputs.to_tuple()

        scores = F.pixel_shuffle(logits.softmax(1)[:, :-1], CELL)[:, 0]
        if image_sizes is not None:
            scores = scores * inside(image_sizes, *scores.shape[-2:])
        scores = non_maximum_suppression(scores, config.nms_radius)
        scores = scores * self._away_from_borders(scores, image_sizes)
        indices, values = select_keypoints(scores, config.keypoint_threshold, config.max_keypoints, fixed_shapes)
        mask = values > 0
        keypoints = torch.stack([indices % (CELL * columns), indices // (CELL * columns)], -1).float()
        descriptors = sample_descriptors(descriptor_map, keypoints, cells, config.descriptor_grid) * mask[..., None]

        outputs = SuperPointKeypointDescriptionOutput(
            keypoints=keypoints / vector(width, height, keypoints.device) * mask[..., None],
            scores=values,
            descriptors=descriptors.to(descriptor_map.dtype),
            mask=mask.int(),
            hidden_states=states,
        )
        return outputs if return_dict else outputs.to_tuple()

    def _maps(self, grey: Tensor, valid: Tensor | None, output_hidden_states: bool) -> tuple[Tensor, ...]:
        """What the network makes of images: logits, descriptors, and the hidden states if asked for."""
        if in_parts(self, grey) and len(grey) > 1:
            masks = [None] * len(grey) if valid is None else valid.expand(len(grey), -1, -1, -1).split(1)
            parts = [self._maps(*part, output_hidden_states) for part in zip(grey.split(1), masks)]
            return tuple(torch.cat(maps) for maps in zip(*parts))
        hidden_states = self.encoder(grey, valid)
        features = hidden_states[-1]
        maps = self.keypoint_decoder(features), self.descriptor_decoder(features)
        return (*maps, *hidden_states) if output_hidden_states else maps

    def _away_from_borders(self, scores: Tensor, image_sizes: Tensor | None) -> Tensor:
        """`(batch or 1, height, width)` bool: the pixels where a keypoint may lie."""
        border = self.config.border_removal_distance
        height, width = scores.shape[-2:]
        if image_sizes is None:
            image_sizes = vector(height, width, scores.device)[None]
        last = image_sizes - border if self.config.remove_far_borders else image_sizes
        return inside(last, height, width, first=border)


def inside(sizes: Tensor, height: int, width: int, first: int = 0) -> Tensor:
    """`(batch, height, width)` bool: the pixels with `first <= y < sizes[:, 0]` and `first <= x < sizes[:, 1]`."""
    y = torch.arange(height, device=sizes.device)
    x = torch.arange(width, device=sizes.device)
    in_rows = (y >= first) & (y < sizes[:, :1])
    in_columns = (x >= first) & (x < sizes[:, 1:])
    return in_rows[:, :, None] & in_columns[:, None, :]


def superpoint_loss(
    logits: Tensor,
    descriptor_map: Tensor,
    objectness: Tensor,
    location: Tensor,
    correspondences: Tensor,
    correspondence_mask: Tensor,
    descriptor_scale: Tensor | float = 20.0,
    grid: str = "stretched",
) -> Tensor:
    """Objectness + 2 location + descriptors, for pairs of images (2i, 2i + 1).

    Whether a cell holds a point and where in the cell it lies are separate terms on the one softmax over 65 classes,
    z = logsumexp(l_1..l_64) - l_65 and q = softmax(l_1..l_64), so that rare points do not drown the localisation.

    Args:
        logits: `(batch, 65, rows, columns)`.
        descriptor_map: `(batch, dim, rows, columns)`.
        objectness: `(batch, rows, columns)` float, 1 where the cell has a point, 0 where not, negative to ignore.
        location: `(batch, rows, columns, 2)`, (x, y) of the point within its cell, 0..7, NaN where there is none.
        correspondences: `(batch / 2, n, 2, 2)`, (x, y) pixels of the same point in image 0 and image 1.
        correspondence_mask: `(batch / 2, n)` bool, `False` for padding.
        descriptor_scale: factor of the cosine similarities.
        grid: `config.descriptor_grid`.
    """
    z = logits[:, :-1].logsumexp(1) - logits[:, -1]
    known = objectness >= 0
    object_loss = F.binary_cross_entropy_with_logits(z[known], objectness[known])

    has_location = ~location.isnan().any(-1)
    log_q = logits[:, :-1].log_softmax(1).permute(0, 2, 3, 1)[has_location]
    bins = torch.arange(CELL, device=logits.device)
    # the true position spread by a Gaussian of 0.7 pixels over the bins of its cell
    spread = torch.exp(-((location[has_location][:, :, None] - bins) ** 2) / (2 * 0.7**2))
    target = (spread[:, 1, :, None] * spread[:, 0, None, :]).flatten(1)
    target = target / target.sum(1, keepdim=True)
    location_loss = -(target * log_q).sum(1).sum() / max(len(log_q), 1)

    points0, points1 = correspondences.unbind(2)
    descriptors0 = sample_descriptors(descriptor_map[0::2], points0, grid=grid)
    descriptors1 = sample_descriptors(descriptor_map[1::2], points1, grid=grid)
    similarity = descriptor_scale * descriptors0 @ descriptors1.transpose(1, 2)
    # near another's match a descriptor cannot, and need not, differ: within 6 pixels in either view
    near = (torch.cdist(points0, points0) < 6) | (torch.cdist(points1, points1) < 6)
    same = torch.eye(similarity.shape[1], dtype=torch.bool, device=logits.device)
    excluded = (near & ~same) | ~correspondence_mask[:, None, :] | ~correspondence_mask[:, :, None]
    similarity = similarity.masked_fill(excluded & ~same, -1e4)
    log_p = similarity.log_softmax(1).diagonal(dim1=1, dim2=2) + similarity.log_softmax(2).diagonal(dim1=1, dim2=2)
    descriptor_loss = -0.5 * (log_p * correspondence_mask).sum() / correspondence_mask.sum().clamp(min=1)

    return object_loss + 2 * location_loss + descriptor_loss


__all__ = ["SuperPointConfig", "SuperPointForKeypointDetection", "SuperPointPreTrainedModel"]
