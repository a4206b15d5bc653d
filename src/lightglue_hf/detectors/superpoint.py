"""SuperPoint keypoint detector and descriptor (DeTone, Malisiewicz, Rabinovich, CVPRW 2018, arXiv:1712.07629).

Parameter names, configuration and output are those of transformers' SuperPoint, so checkpoints are exchangeable both
ways. Unlike there, the whole batch is processed at once, photos of different sizes can share a batch, points are kept
away from all four borders, coordinates stay in float32 and the network can be trained.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..features import (
    KeypointDetectionOutput,
    KeypointDetector,
    KeypointFeatures,
    check_detector_inputs,
    detection_output,
)
from ..geometry import pixels_inside
from ..loading import CheckedLoading
from ..utils.tensors import full_precision_conv, low_memory_cpu, vector
from .configuration_superpoint import CELL, SuperPointConfig
from .selection import non_maximum_suppression, select_keypoints

TEACHER_SCALE = 10.0  # factor of the cosine similarities that are compared with a teacher's
STRIP = 1 << 16  # pixels that are convolved at once on a CPU: 64 channels of them fit into the caches


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


def pool_valid(valid: Tensor) -> Tensor:
    """What a 2x2 pooling leaves of an image: a row or column without a partner is lost, as it is without padding."""
    return -F.max_pool2d(-valid, 2)


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
        strips = -(-height * width // STRIP) if low_memory_cpu(self, hidden) and self.pool else 1
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
        hidden = (full_precision_conv(self.conv_a, hidden) if pixels else self.conv_a(hidden)).relu_()
        if valid is not None:  # the next convolution sees zeros outside each image, as if it were alone
            hidden = hidden * valid
        hidden = self.conv_b(hidden)
        if self.pool:  # before what is the same on a quarter of the pixels
            hidden = pool_cells(hidden, self.min_pooled)
            valid = None if valid is None else pool_valid(valid)
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
                valid = pool_valid(valid)
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
        return full_precision_conv(self.conv_score_b, self.conv_score_a(features).relu_()).float()


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


class SuperPointForKeypointDetection(KeypointDetector, SuperPointPreTrainedModel):
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

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        labels: dict[str, Tensor] | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        image_sizes: Tensor | None = None,
        fixed_shapes: bool = False,
        region: Tensor | None = None,
    ) -> KeypointDetectionOutput | tuple:
        """Detect and describe keypoints.

        Args:
            pixel_values: `(batch, channels, height, width)` in [0, 1]; the first channel is used. Height and width
                beyond a multiple of 8 see no keypoints.
            labels: see [`superpoint_loss`]. With labels only `loss` (and `hidden_states`) are returned.
            output_hidden_states: also return the output of each encoder block, `(batch, channels, height, width)`.
            return_dict: `False` returns the tuple of the fields that are not `None`.
            image_sizes, region, fixed_shapes: as in [`extract_features`].

        Raises:
            ValueError: labels that are no dictionary, or see [`check_detector_inputs`].
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        if labels is not None and not isinstance(labels, dict):
            raise ValueError(
                f"SuperPoint learns from a dictionary of labels, see superpoint_loss, got {type(labels).__name__}"
            )
        check_detector_inputs(self.config, pixel_values, image_sizes, region, fixed_shapes)
        logits, descriptor_map, cells, *hidden_states = self._maps(
            pixel_values, image_sizes, bool(output_hidden_states)
        )
        if labels is not None:
            loss = superpoint_loss(logits, descriptor_map, **labels, grid=self.config.descriptor_grid)
            outputs = KeypointDetectionOutput(loss=loss)
        else:
            features = self._select(logits, descriptor_map, cells, region, fixed_shapes)
            outputs = detection_output(features, *pixel_values.shape[-2:])
        outputs.hidden_states = tuple(hidden_states) if output_hidden_states else None
        return outputs if return_dict else outputs.to_tuple()

    def extract_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        region: Tensor | None = None,
        fixed_shapes: bool = False,
    ) -> KeypointFeatures:
        """See [`KeypointDetector.extract_features`]; images of different sizes go through the network together.

        Source: sides are cut to a multiple of the stride as cvg/LightGlue@1fd587b does it, by its poolings.
        """
        check_detector_inputs(self.config, pixel_values, image_sizes, region, fixed_shapes)
        logits, descriptor_map, cells = self._maps(pixel_values, image_sizes)
        features = self._select(logits, descriptor_map, cells, region, fixed_shapes)
        if image_sizes is None:
            height, width = pixel_values.shape[-2:]
            image_sizes = vector(height, width, pixel_values.device).expand(pixel_values.shape[0], 2)
        features.image_sizes = image_sizes
        return features

    def _maps(
        self, pixel_values: Tensor, image_sizes: Tensor | None, output_hidden_states: bool = False
    ) -> tuple[Tensor, ...]:
        """Logits and descriptors of the cells, how many cells each image has, and the hidden states if asked for.

        The cells are `(batch, 2)` (rows, columns), or `(1, 2)` where images fill `pixel_values`.
        """
        stride = self.config.stride
        height, width = pixel_values.shape[-2:]
        if min(height, width) < stride:  # no cell fits: let there be one, outside the image
            if image_sizes is None:
                image_sizes = vector(height, width, pixel_values.device)[None]
            pixel_values = F.pad(pixel_values, (0, max(stride - width, 0), 0, max(stride - height, 0)))
        rows, columns = (length // stride for length in pixel_values.shape[-2:])
        grey = pixel_values[:, 0]
        if image_sizes is None:
            valid, cells = None, vector(rows, columns, pixel_values.device)[None]
        else:
            inside = pixels_inside(image_sizes, *grey.shape[-2:])
            grey = grey * inside
            valid = inside[:, None].to(grey.dtype)
            cells = (image_sizes // stride).minimum(vector(rows, columns, image_sizes.device))
        # One channel, laid out as channels last: the convolutions keep that and are about twice as fast on a CPU.
        # In an exported graph one plain reshape: OpenVINO rewrites others, and then rounds the pixels to bfloat16.
        grey = grey.reshape(-1, 1, *grey.shape[1:]) if torch.jit.is_tracing() else grey[..., None].permute(0, 3, 1, 2)
        logits, descriptor_map, *hidden_states = self._run(grey, valid, output_hidden_states)
        return logits, descriptor_map, cells, *hidden_states

    def _run(self, grey: Tensor, valid: Tensor | None, output_hidden_states: bool) -> tuple[Tensor, ...]:
        """What the network makes of images: logits, descriptors, and the hidden states if asked for."""
        if low_memory_cpu(self, grey) and len(grey) > 1:
            masks = [None] * len(grey) if valid is None else valid.expand(len(grey), -1, -1, -1).split(1)
            parts = [self._run(*part, output_hidden_states) for part in zip(grey.split(1), masks)]
            return tuple(torch.cat(maps) for maps in zip(*parts))
        hidden_states = self.encoder(grey, valid)
        features = hidden_states[-1]
        maps = self.keypoint_decoder(features), self.descriptor_decoder(features)
        return (*maps, *hidden_states) if output_hidden_states else maps

    def _select(
        self, logits: Tensor, descriptor_map: Tensor, cells: Tensor, region: Tensor | None, fixed_shapes: bool
    ) -> KeypointFeatures:
        """Keypoints, in pixels, their scores and descriptors out of the maps."""
        config = self.config
        scores = F.pixel_shuffle(logits.softmax(1)[:, :-1], CELL)[:, 0]
        height, width = scores.shape[-2:]
        scores = non_maximum_suppression(scores * pixels_inside(CELL * cells, height, width), config.nms_radius)
        allowed = pixels_inside(CELL * cells, height, width, config.border_removal_distance, config.remove_far_borders)
        if region is not None:  # which an image smaller than a cell does not fill
            region = F.pad(
                region[:, :height, :width].bool(),
                (0, max(width - region.shape[2], 0), 0, max(height - region.shape[1], 0)),
            )
            allowed = allowed & region
        indices, values = select_keypoints(
            scores * allowed, config.keypoint_threshold, config.max_keypoints, fixed_shapes
        )
        mask = values > 0
        keypoints = torch.stack([indices % width, indices // width], -1).float() * mask[..., None]
        descriptors = sample_descriptors(descriptor_map, keypoints, cells, config.descriptor_grid) * mask[..., None]
        return KeypointFeatures(
            keypoints=keypoints,
            scores=values,
            descriptors=descriptors.to(descriptor_map.dtype),
            mask=mask.int(),
        )


def superpoint_loss(
    logits: Tensor,
    descriptor_map: Tensor,
    objectness: Tensor,
    location: Tensor,
    correspondences: Tensor,
    correspondence_mask: Tensor,
    descriptor_scale: Tensor | float = 20.0,
    teacher_descriptors: Tensor | None = None,
    grid: str = "stretched",
) -> Tensor:
    """Objectness + 2 location + descriptors, for pairs of images (2i, 2i + 1); of a teacher's, too, if they are given.

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
        teacher_descriptors: `(batch / 2, n, any)` of the same points, zeros where there is none: see
            [`distillation_loss`].
        grid: `config.descriptor_grid`.
    """
    z = logits[:, :-1].logsumexp(1) - logits[:, -1]
    known = objectness >= 0
    errors = F.binary_cross_entropy_with_logits(z[known], objectness[known], reduction="sum")
    object_loss = errors / known.sum().clamp(min=1)

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

    loss = object_loss + 2 * location_loss + descriptor_loss
    if teacher_descriptors is not None:
        loss = loss + distillation_loss(descriptors0, descriptors1, teacher_descriptors, excluded & ~same)
    return loss


def distillation_loss(descriptors0: Tensor, descriptors1: Tensor, teacher: Tensor, excluded: Tensor) -> Tensor:
    """How unlike a teacher's the distribution of a point's matches is: its divergence, the mean over both directions.

    Of the descriptors themselves nothing is asked but their similarities, so a teacher's may be of any width.

    Args:
        descriptors0, descriptors1: `(pairs, n, dim)` of unit length, of the same points in image 0 and image 1.
        teacher: `(pairs, n, any)` of unit length, or zeros where there is none.
        excluded: `(pairs, n, n)` bool, pairs of points that count for nothing.

    Source: relational distillation, Park et al., CVPR 2019, arXiv:1904.05068; of distributions of matches as in
    Hinton et al., arXiv:1503.02531.
    """
    known = teacher.abs().amax(-1) > 0
    excluded = excluded | ~(known[:, :, None] & known[:, None, :])
    wanted = (TEACHER_SCALE * teacher @ teacher.transpose(1, 2)).masked_fill(excluded, -1e4)
    found = (TEACHER_SCALE * descriptors0 @ descriptors1.transpose(1, 2)).masked_fill(excluded, -1e4)
    divergence = sum(
        F.kl_div(found.log_softmax(axis), wanted.log_softmax(axis), log_target=True, reduction="none").sum(axis)
        for axis in (1, 2)
    )
    return 0.5 * (divergence * known).sum() / known.sum().clamp(min=1)  # type: ignore[operator]


SuperPointKeypointDescriptionOutput = KeypointDetectionOutput  # transformers' name

__all__ = ["SuperPointConfig", "SuperPointForKeypointDetection", "SuperPointPreTrainedModel"]
