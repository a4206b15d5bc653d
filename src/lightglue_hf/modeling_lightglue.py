"""LightGlue keypoint matcher (Lindenberger, Sarlin, Pollefeys, ICCV 2023, arXiv:2306.13643).

Parameter names, configuration and output are those of transformers' LightGlue, so checkpoints are exchangeable both
ways; the mathematics is checked against cvg/LightGlue@1fd587b. One file, to be read from top to bottom: attention, a
layer, assignment, and the model with its adaptive depth (a pair stops when it is confident) and width (points certain
to be unmatchable are pruned), where every pair of a batch gets exactly what it gets alone.
"""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForKeypointDetection, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .configuration_lightglue import LightGlueConfig
from .detectors import model_class
from .features import (
    KeypointFeatures,
    check_images,
    check_one_mode,
    features_of_detector,
    features_of_pairs,
    looks_at_values,
    refuse_non_integers,
)
from .loading import CheckedLoading
from .utils.tensors import as_autocast, is_traced, low_memory_cpu

STRIP, KEPT = (
    1 << 20,
    1 << 22,
)  # similarities that are computed at once, and kept, on a CPU: of 1024 and of 2048 points
LARGE = 1 << 19  # values of an image's points whose tensors do not stay in the caches: 1024 points of twice 256
MASKED = -1e9  # similarity of padding: finite, so that a row of nothing but padding stays free of NaN
PADDING_OFFSET = 1 << 24  # more than there are keypoints: sorts behind them (OpenVINO computes indices in 32 bits)
POINTS_AT_ONCE = 1 << 12  # on a CPU, of all pairs that are matched together; with more, the caches do not hold a layer
UNMATCHED, IGNORED = -1, -2  # in labels
# The layer, from 0, after which pairs are given up, if at all. With published checkpoints 1 to 5% of 1024 keypoints
# match after it where nothing overlaps, and 18 to 30% where something does (medians); one layer earlier a repeated
# texture looks the same as that.
REJECTING_LAYER = 1


@dataclass
class LightGlueKeypointMatchingOutput(ModelOutput):
    """Matches of `batch` pairs of images with at most `n` keypoints each.

    Args:
        loss: scalar, only with `labels`.
        matches: `(batch, 2, n)` int64, index of the matched keypoint in the other image, -1 for none.
        matching_scores: `(batch, 2, n)`, probability that the mutually best pair is a match; also given where it is
            below `config.filter_threshold` and so no match.
        keypoints: `(batch, 2, n, 2)` float32, (x, y) pixels divided by the (width, height) of each one's
            `image_sizes`; absent if those are unknown.
        prune: `(batch, 2, n)` int64, 1 + the rounds of pruning survived; the number of layers where
            `config.width_confidence` turns pruning off; 0 where padding.
        mask: `(batch, 2, n)` int32, 1 for a keypoint and 0 for padding.
        hidden_states: seven per layer that ran: its input, after self-attention, the self-attention's feed-forward
            input (twice as wide) and output, the layer's output, the cross-attention's feed-forward input and output.
            `(2 * pairs, k, width)`, of the pairs that had not stopped and their remaining points.
        attentions: two per layer that ran, self and cross, `(2 * pairs, heads, k, k)`.
        stop: `(batch,)` int64, the layer after which each pair stopped, 1 to the number of layers.
        image_sizes: `(batch, 2, 2)` int64, (height, width) that `keypoints` are relative to.
    """

    loss: Tensor | None = None
    matches: Tensor | None = None
    matching_scores: Tensor | None = None
    keypoints: Tensor | None = None
    prune: Tensor | None = None
    mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    stop: Tensor | None = None
    image_sizes: Tensor | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Positions


def normalize_keypoints(keypoints: Tensor, mask: Tensor | None, image_sizes: Tensor | None) -> Tensor:
    """Centre an image's keypoints and divide them by half its longer side, the same for both axes.

    Args:
        keypoints: `(..., n, 2)` float32 pixels (x, y).
        mask: `(..., n)` bool, `False` for padding.
        image_sizes: `(..., 2)` (height, width); without it the extent of the keypoints, 1 + max - min.

    Source: cvg/LightGlue@1fd587b, `normalize_keypoints`.
    """
    if image_sizes is not None:
        size = image_sizes.flip(-1).to(keypoints.dtype)
    elif keypoints.shape[-2] == 0:
        return keypoints
    else:
        low, high = keypoints, keypoints
        if mask is not None:
            low = low.masked_fill(~mask[..., None], math.inf)
            high = high.masked_fill(~mask[..., None], -math.inf)
        extent = high.amax(-2) - low.amin(-2)
        size = 1 + torch.where(extent.isfinite(), extent, 0)
    return (keypoints - size[..., None, :] / 2) / (size.amax(-1)[..., None, None] / 2)


class FullPrecisionLinear(nn.Linear):
    """Computes in float32 whatever the type of its weights, and is no linear layer to quantize."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias)


class LightGluePositionalEncoder(nn.Module):
    """Learned Fourier frequencies of the positions, for the rotary encoding (paper, section 3.1)."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        inputs = 4 if config.add_scale_ori else 2
        width = config.descriptor_dim // config.num_attention_heads // 2
        self.projector = FullPrecisionLinear(inputs, width, bias=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`(..., n, 2 or 4)` -> cosines and sines `(..., n, head_dim / 2)`, in float32 whatever the weights."""
        angles = self.projector(positions.float()).float()
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the adjacent pairs of `(batch, heads, n, head_dim)` by the angles of `(batch, n, head_dim / 2)`."""
    cos, sin = (angle[:, None] for angle in rotary)
    pairs = x.to(torch.promote_types(x.dtype, cos.dtype)).unflatten(-1, (-1, 2))
    if is_traced():  # compilers and exporters know no complex numbers
        even, odd = pairs.unbind(-1)
        rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    else:  # in one pass
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return rotated.flatten(-2).to(x.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Attention


@dataclass
class AttentionMask:
    """Which keys exist, `(batch, keys)` bool, and which queries, `(batch, queries)` bool."""

    keys: Tensor
    queries: Tensor

    def visible(self) -> Tensor:
        """`(batch, 1, 1, keys)` bool; an image of nothing but padding attends to all of it, which is finite."""
        return (self.keys | ~self.keys.any(-1, keepdim=True))[:, None, None, :]

    def additive(self, dtype: torch.dtype) -> Tensor:
        """`(batch, 1, 1, keys)`, the lowest finite number where padding."""
        visible = self.visible()
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None, scaling: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """`(batch, heads, n, head_dim)` -> the same and the weights `(batch, heads, queries, keys)`."""
    similarity = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        similarity = similarity.masked_fill(~mask.visible(), torch.finfo(similarity.dtype).min)
    weights = similarity.softmax(-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value, weights


def packed_attention(
    module: "LightGlueAttention", query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, **kwargs: Any
) -> Tensor:
    """Flash attention among images of different counts: their points are packed without padding.

    transformers' own unpadding takes one mask for queries and keys, which cross-attention does not have.
    """

    def lengths(valid: Tensor) -> tuple[Tensor, int]:
        counts = valid.sum(1)
        return F.pad(counts.cumsum(0), (1, 0)).int(), int(counts.max())

    queries, keys = mask.queries, mask.keys
    cu_seq_lens_q, max_length_q = lengths(queries)
    cu_seq_lens_k, max_length_k = lengths(keys)
    packed, _ = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation](
        module,
        *(
            x.transpose(1, 2)[valid][None].transpose(1, 2)
            for x, valid in ((query, queries), (key, keys), (value, keys))
        ),
        None,
        cu_seq_lens_q=cu_seq_lens_q,
        cu_seq_lens_k=cu_seq_lens_k,
        max_length_q=max_length_q,
        max_length_k=max_length_k,
        **kwargs,
    )
    output = torch.zeros_like(query.transpose(1, 2))
    output[queries] = packed[0].to(output.dtype)
    return output.transpose(1, 2)


class LightGlueAttention(nn.Module):
    """Multi-head attention, of an image's points among themselves or to the other image's."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.descriptor_dim // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width, key_value_width = config.descriptor_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, key_value_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, key_value_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, width, bias=config.attention_bias)

    def shares_query_key(self) -> bool:
        """Whether queries and keys are one product: one layer makes both, and no adapter stands in its place."""
        return self.q_proj is self.k_proj and type(self.q_proj) is nn.Linear

    def forward(
        self,
        hidden: Tensor,
        mask: AttentionMask | None,
        rotary: tuple[Tensor, Tensor] | None = None,
        cross: bool = False,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden: `(2 * pairs, n, width)`, image 0 and 1 of each pair in turn.
            mask: of keys and queries; `None` if there is no padding.
            rotary: of self-attention.
            cross: to the other image of the pair.
            output_attentions: also return the weights `(2 * pairs, heads, n, n)`, computed by plain attention.
        """
        hidden = as_autocast(hidden)
        query = self.split_heads(self.q_proj(hidden))
        key = query if cross and self.shares_query_key() else self.split_heads(self.k_proj(hidden))
        value = self.split_heads(self.v_proj(hidden))
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if cross:
            key, value = swap_images(key), swap_images(value)
        attended, weights = self.attend(query, key, value, mask, output_attentions)
        return self.o_proj(attended.transpose(1, 2).flatten(2)), weights

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        implementation = self.config._attn_implementation
        dropout = self.config.attention_dropout if self.training else 0.0
        groups = self.num_key_value_groups
        if output_attentions or implementation in ("eager", None):
            key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
            return eager_attention(query, key, value, mask, self.scaling, dropout)
        if implementation == "sdpa":
            visible = None if mask is None else mask.visible()
            attended = F.scaled_dot_product_attention(
                query, key, value, visible, dropout, scale=self.scaling, enable_gqa=groups > 1
            )
            return attended, None
        if mask is not None and "flash" in implementation:
            return packed_attention(self, query, key, value, mask, dropout=dropout, scaling=self.scaling), None
        if mask is not None and implementation == "flex_attention" and query.device.type == "cpu":
            # its kernels for CPUs, as of torch 2.13, corrupt memory when they are given a mask
            raise ValueError('attn_implementation="flex_attention" takes no padding on a CPU: use "sdpa" there')
        additive = None if mask is None else mask.additive(query.dtype).expand(-1, -1, query.shape[2], -1)
        attend = ALL_ATTENTION_FUNCTIONS[implementation]
        attended, _ = attend(self, query, key, value, additive, dropout=dropout, scaling=self.scaling)
        return attended.transpose(1, 2), None


def swap_images(x: Tensor) -> Tensor:
    """`(2 * pairs, ...)` -> the same with the images of each pair exchanged."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


class LightGlueMLP(nn.Module):
    """Linear, LayerNorm, activation, Linear; twice as wide as the points."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.intermediate_size, config.intermediate_size)
        self.layer_norm = nn.LayerNorm(config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.descriptor_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(2 * pairs, n, 2 * width)` -> `(2 * pairs, n, width)`; on a CPU images of many points one by one."""
        if low_memory_cpu(self, hidden) and hidden.shape[1] * hidden.shape[2] >= LARGE:
            return torch.cat([self.of_points(image) for image in hidden.split(1)])
        return self.of_points(hidden)

    def of_points(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.layer_norm(self.fc1(hidden))))


class LightGlueTransformerLayer(GradientCheckpointingLayer):
    """Self-attention in each image, then cross-attention between them, each with a feed-forward network."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.self_attention = LightGlueAttention(config)
        self.self_mlp = LightGlueMLP(config)
        self.cross_attention = LightGlueAttention(config)
        if config.shared_query_key:
            self.cross_attention.k_proj = self.cross_attention.q_proj
        self.cross_mlp = LightGlueMLP(config)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """`(2 * pairs, n, width)` -> the same, the layer's seven hidden states if asked for, and two attentions."""
        self_mask = cross_mask = None
        if mask is not None:
            self_mask = AttentionMask(keys=mask, queries=mask)
            cross_mask = AttentionMask(keys=swap_images(mask), queries=mask)
        message, self_weights = self.self_attention(hidden, self_mask, rotary, output_attentions=output_attentions)
        middle, self_states = self.update(self.self_mlp, hidden, message, output_hidden_states)
        message, cross_weights = self.cross_attention(
            middle, cross_mask, cross=True, output_attentions=output_attentions
        )
        output, cross_states = self.update(self.cross_mlp, middle, message, output_hidden_states)
        states = (hidden, middle, *self_states, output, *cross_states) if output_hidden_states else ()
        return output, states, (self_weights, cross_weights)

    @staticmethod
    def update(mlp: nn.Module, hidden: Tensor, message: Tensor, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What a message makes of the points; and, to be kept or not, what goes into the network and comes out."""
        joined = torch.cat([hidden.to(message.dtype), message], -1)
        change = mlp(joined)
        return hidden + change, (joined, change) if keep else ()


# ---------------------------------------------------------------------------------------------------------------------
# Assignment


class LightGlueMatchAssignmentLayer(nn.Module):
    """Similarity of the points of a pair and how matchable each is (paper, section 3.2)."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.final_projection = nn.Linear(config.descriptor_dim, config.descriptor_dim)
        self.matchability = nn.Linear(config.descriptor_dim, 1)

    def forward(self, descriptors: Tensor, mask: Tensor | None) -> "Assignment":
        """Log P of equation 8: log-softmax over rows and over columns, and both matchabilities, in float32.

        Args:
            descriptors: `(pairs, 2, n, width)`.
            mask: `(pairs, 2, n)` bool; `None` if there is no padding.
        """
        return Assignment.from_projections(self.final_projection(descriptors), self.matchability(descriptors), mask)

    def matches(self, descriptors: Tensor, mask: Tensor | None, filter_threshold: float) -> tuple[Tensor, Tensor]:
        """As [`Assignment.matches`], of the arguments of a call; on a CPU no tensor has n x n values."""
        projected, matchability = self.final_projection(descriptors), self.matchability(descriptors)
        if not low_memory_cpu(self, projected) or len(projected) == 0:
            return Assignment.from_projections(projected, matchability, mask).matches(filter_threshold)
        certainty = F.logsigmoid(matchability.squeeze(-1).float())
        masks = [None] * len(projected) if mask is None else mask
        partners = [best_partners(*of_pair) for of_pair in zip(projected, certainty, masks)]
        best, columns, highest = (torch.stack(of_pairs) for of_pairs in zip(*partners))
        return mutual_matches(best, columns, highest, projected.shape[2], filter_threshold)

    def unmatchable(self, descriptors: Tensor, width_confidence: float) -> Tensor:
        """The points that are unmatchable with at least that confidence."""
        return self.matchability(descriptors).squeeze(-1).float().sigmoid() <= 1 - width_confidence


@dataclass
class Assignment:
    """Soft partial assignment of the points of each pair, in float32.

    Args:
        log_p: `(pairs, n, n)` log probability of each match, -inf where either point is padding.
        matchability: `(pairs, 2, n)` logits.
        mask: `(pairs, 2, n)` bool, `False` for padding; `None` if there is none.
    """

    log_p: Tensor
    matchability: Tensor
    mask: Tensor | None

    @classmethod
    def from_projections(cls, projected: Tensor, matchability: Tensor, mask: Tensor | None) -> "Assignment":
        """From the projections `(pairs, 2, n, width)` and matchabilities `(pairs, 2, n, 1)` of the points."""
        projected = projected / projected.shape[-1] ** 0.25
        similarity = (projected[:, 0] @ projected[:, 1].transpose(1, 2)).float()
        matchability = matchability.squeeze(-1).float()
        certainty = F.logsigmoid(matchability)
        if mask is not None:
            excluded = ~(mask[:, 0, :, None] & mask[:, 1, None, :])
            similarity = similarity.masked_fill_(excluded, MASKED)
        rows = (certainty[:, 0] - similarity.logsumexp(2))[:, :, None]
        columns = (certainty[:, 1] - similarity.logsumexp(1))[:, None, :]
        log_p = (rows + columns).add_(similarity, alpha=2)  # in place: each n x n tensor is the largest there is
        if mask is not None:
            log_p = log_p.masked_fill_(excluded, -math.inf)
        return cls(log_p, matchability, mask)

    def matches(self, filter_threshold: float) -> tuple[Tensor, Tensor]:
        """See [`mutual_matches`]."""
        # of the mask, if there is one: ONNX's exporter takes the other's number of points for a constant
        n = (self.matchability if self.mask is None else self.mask).shape[2]
        return mutual_matches(*self.log_p.max(2), self.log_p.amax(1), n, filter_threshold)

    def negative_log_likelihood(self, labels: Tensor) -> Tensor:
        """`(pairs,)` loss of ground-truth labels `(pairs, 2, n)`: half matchable, half unmatchable points.

        Source: glue-factory@2d17e3b, NLL loss with balancing 0.5.
        """
        positive = labels[:, 0] >= 0
        partner = labels[:, 0].clamp(min=0)
        log_p = self.log_p.gather(2, partner[..., None])[..., 0]
        positives = log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(min=1)
        negative = labels == UNMATCHED
        log_unmatchable = F.logsigmoid(-self.matchability).masked_fill(~negative, 0)
        negatives = log_unmatchable.sum((1, 2)) / negative.sum((1, 2)).clamp(min=1)
        return -0.5 * (positives + negatives)

    def assigned(self) -> Tensor:
        """`(pairs, 2, n)` int64: to which point each is most likely assigned, `n` for "unmatchable"."""
        log_unmatchable = F.logsigmoid(-self.matchability)
        n = self.log_p.shape[1]
        if n == 0:  # an empty axis has no maximum
            return torch.zeros_like(log_unmatchable, dtype=torch.int64)
        best = [self.log_p.max(2 - image) for image in (0, 1)]
        return torch.stack(
            [torch.where(best[i].values > log_unmatchable[:, i], best[i].indices, n) for i in (0, 1)], 1
        )


def best_partners(projected: Tensor, certainty: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What [`mutual_matches`] takes of a pair, from strips of `Assignment.log_p` instead of the whole.

    What is written is still in the caches when it is read, and the largest tensor of the model is never made. Of many
    points the similarities are computed twice.

    Args:
        projected: `(2, n, width)`, n >= 1.
        certainty: `(2, n)` float32, log-sigmoid of the matchabilities.
        mask: `(2, n)` bool; `None` if there is no padding.

    Returns:
        The maximum of each row, `(n,)` float32; its column, `(n,)` int64; and the maximum of each column.
    """
    first, second = projected / projected.shape[-1] ** 0.25
    n = len(second)
    size = max(STRIP // n, 1)
    strips = [slice(start, start + size) for start in range(0, n, size)]

    def similarity_of(strip: slice) -> Tensor:
        similarity = (first[strip] @ second.T).float()
        return similarity if mask is None else similarity.masked_fill_(~(mask[0, strip, None] & mask[1]), MASKED)

    kept = [similarity_of(strip) for strip in strips] if n * n <= KEPT else None
    rows, columns = [], torch.full_like(certainty[1], -math.inf)
    for strip, similarity in zip(strips, kept or map(similarity_of, strips)):
        rows.append((certainty[0, strip] - similarity.logsumexp(1))[:, None])
        columns = torch.logaddexp(columns, similarity.logsumexp(0))
    columns = certainty[1] - columns
    best, highest = [], torch.full_like(columns, -math.inf)
    for strip, row, similarity in zip(strips, rows, kept or map(similarity_of, strips)):
        log_p = (row + columns).add_(similarity, alpha=2)
        if mask is not None:
            log_p = log_p.masked_fill_(~(mask[0, strip, None] & mask[1]), -math.inf)
        best.append(log_p.max(1))
        highest = torch.maximum(highest, log_p.amax(0))
    return torch.cat([of.values for of in best]), torch.cat([of.indices for of in best]), highest


def mutual_matches(
    best: Tensor, partners: Tensor, highest: Tensor, n: int, filter_threshold: float
) -> tuple[Tensor, Tensor]:
    """Mutually best pairs: matches `(pairs, 2, n)`, -1 for none or not above the threshold, and their scores.

    Args:
        best, partners: `(pairs, n)`, the maximum of each row of `Assignment.log_p`, and its column.
        highest: `(pairs, n)`, the maximum of each column.
        n: how many points there are.
    """
    indices = torch.arange(n, device=best.device).expand_as(partners)
    # the maximum of a column costs a tenth of its place, which only a row that attains it needs to know
    attained = (best >= highest.gather(1, partners)) & (best > -math.inf)
    matches1 = torch.full_like(F.pad(partners, (0, 1)), -1)
    matches1 = matches1.scatter(1, torch.where(attained, partners, n), indices)[:, :n]
    mutual0 = attained & (matches1.gather(1, partners) == indices)  # of equal maxima one counts
    mutual1 = matches1 >= 0
    scores0 = best.exp() * mutual0
    scores1 = scores0.gather(1, matches1.clamp(min=0)) * mutual1
    scores = torch.stack([scores0, scores1], 1)
    valid = torch.stack([mutual0, mutual1], 1) & (scores > filter_threshold)
    return torch.stack([partners, matches1], 1).masked_fill(~valid, -1), scores


class LightGlueTokenConfidenceLayer(nn.Module):
    """How sure a point is that later layers will not change its match (paper, section 3.3)."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.token = nn.Linear(config.descriptor_dim, 1)

    def forward(self, descriptors: Tensor) -> Tensor:
        """`(..., n, width)` -> `(..., n)` logits; trained without changing the descriptors."""
        return self.token(descriptors.detach()).squeeze(-1).float()


def confidence_threshold(layer: int, num_layers: int) -> float:
    """Confidence that counts as sure after `layer` (from 0): lower later (paper, appendix; cvg/LightGlue@1fd587b)."""
    return min(max(0.8 + 0.1 * math.exp(-4.0 * layer / num_layers), 0.0), 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# The model


@dataclass
class Points:
    """The points still in play, of the pairs still in play.

    Args:
        pair: `(pairs,)` int64, row in the batch.
        index: `(pairs, 2, k)` int64, column in the batch.
        mask: `(pairs, 2, k)` bool; `None` if there is no padding.
        descriptors: `(pairs, 2, k, width)`.
        cos, sin: `(pairs, 2, k, head_dim / 2)`.
    """

    pair: Tensor
    index: Tensor
    mask: Tensor | None
    descriptors: Tensor
    cos: Tensor
    sin: Tensor

    def of_pairs(self, rows: Tensor) -> "Points":
        """The pairs `rows` alone."""
        mask = None if self.mask is None else self.mask[rows]
        return Points(self.pair[rows], self.index[rows], mask, self.descriptors[rows], self.cos[rows], self.sin[rows])

    def kept(self, keep: Tensor, count: int, padded: bool) -> "Points":
        """The points `keep` `(pairs, 2, k)` alone, in their order, in `count` columns."""
        order = torch.where(keep, self.index, self.index + PADDING_OFFSET).argsort(dim=-1)[..., :count]

        def gather(x: Tensor) -> Tensor:
            return x.gather(2, order[..., None].expand(-1, -1, -1, x.shape[-1]))

        mask = keep.gather(2, order) if padded else None
        index = self.index.gather(2, order)
        return Points(self.pair, index, mask, gather(self.descriptors), gather(self.cos), gather(self.sin))

    def in_columns(self, matches: Tensor, scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Matches of these points, and scores, `(pairs, 2, k)`, in the batch's columns, `(pairs, 2, n)`."""
        partners = self.index.flip(1).gather(2, matches.clamp(min=0))
        matches = torch.where(matches >= 0, partners, -1)
        shape = (*matches.shape[:2], n)
        return (
            matches.new_full(shape, -1).scatter(2, self.index, matches),
            scores.new_zeros(shape).scatter(2, self.index, scores),
        )


@dataclass
class Result:
    """The fields of [`LightGlueKeypointMatchingOutput`] that the layers fill."""

    matches: Tensor
    matching_scores: Tensor
    prune: Tensor
    stop: Tensor

    @classmethod
    def no_matches(cls, valid: Tensor, dtype: torch.dtype, stop: int, prune: int) -> "Result":
        """Of the points `valid` `(batch, 2, n)`."""
        return cls(
            matches=torch.full_like(valid, -1, dtype=torch.int64),
            matching_scores=torch.zeros_like(valid, dtype=dtype),
            prune=valid * prune,
            stop=torch.full_like(valid[:, 0, :0].sum(-1), stop),
        )


def checked_labels(labels: Tensor, exists: Tensor, values: bool) -> Tensor:
    """Ground-truth labels `(pairs, 2, n)` as int64; those of padding are to be ignored.

    Args:
        exists: `(pairs, 2, n)` bool, `False` for padding.
        values: also look at the numbers, for which the device has to finish.

    Raises:
        ValueError: labels of another shape or type, out of range, or of a match that is padding.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels must be a tensor, got {type(labels).__name__}")
    if labels.shape != exists.shape:
        raise ValueError(f"labels must have shape {tuple(exists.shape)}, got {tuple(labels.shape)}")
    refuse_non_integers(labels=labels)
    labels = labels.long().masked_fill(~exists, IGNORED)
    if values and labels.numel():
        low, high, last = int(labels.min()), int(labels.max()), labels.shape[-1] - 1
        if low < IGNORED or high > last:
            wrong = low if low < IGNORED else high
            raise ValueError(f"labels must lie between {IGNORED} and {last}, the last keypoint, got {wrong}")
        partners = exists.flip(1).gather(2, labels.clamp(min=0))
        if ((labels >= 0) & ~partners).any():
            raise ValueError("labels must not name padding of the other image")
    return labels


class Record:
    """The hidden states and attentions that were asked for, otherwise `None`."""

    def __init__(self, output_hidden_states: bool, output_attentions: bool) -> None:
        self.hidden_states: tuple[Tensor, ...] | None = () if output_hidden_states else None
        self.attentions: tuple[Tensor, ...] | None = () if output_attentions else None

    def add(self, states: tuple[Tensor, ...], attentions: tuple[Tensor | None, ...]) -> None:
        if self.hidden_states is not None:
            self.hidden_states += states
        if self.attentions is not None:
            self.attentions += tuple(a for a in attentions if a is not None)

    @property
    def is_empty(self) -> bool:
        """Whether neither was asked for."""
        return self.hidden_states is None and self.attentions is None


class LightGluePreTrainedModel(CheckedLoading, PreTrainedModel):
    config_class = LightGlueConfig
    base_model_prefix = "lightglue"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would guess it from the source

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], **kwargs: Any) -> None:
        """As in transformers, of the matcher; a detector keeps its own unless a dictionary names it."""
        if isinstance(attn_implementation, str):
            attn_implementation = {"": attn_implementation}
        super().set_attn_implementation(attn_implementation, **kwargs)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
    ) -> None:
        """As in transformers, but never re-entrant: all layers share the rotary encoding, with its gradient."""
        not_reentrant = partial(gradient_checkpointing_func, use_reentrant=False)
        super()._set_gradient_checkpointing(enable, not_reentrant, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """See [`CheckedLoading`]; equal weights of queries and keys are shared if the configuration does not say."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.shared_query_key is None:
            model.share_equal_projections()
        return loaded

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """As in transformers; shared projections are written by both their names, as transformers' model has them."""
        if self.config.shared_query_key:
            tensors = self.state_dict() if state_dict is None else state_dict
            state_dict = {
                name: tensor.clone() if "cross_attention.k_proj." in name else tensor
                for name, tensor in tensors.items()
            }
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # by the modules that have parameters of their own: transformers 5 passes no others of custom code
        if isinstance(module, nn.Linear):
            is_frequencies = module is getattr(self.positional_encoder, "projector", None)
            nn.init.normal_(module.weight, std=1.0 if is_frequencies else self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class LightGlueForKeypointMatching(LightGluePreTrainedModel):
    """Match the keypoints of pairs of images.

    `forward` is `extract_features` followed by `match_features`, each of use alone: features extracted once can be
    matched against many.

    Example:

    ```python
    >>> import torch
    >>> from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching
    >>> config = LightGlueConfig(descriptor_dim=64, num_hidden_layers=2)
    >>> model = LightGlueForKeypointMatching(config).eval()
    >>> photos = torch.rand(3, 3, 120, 160)
    >>> features = model.extract_features(photos)
    >>> pairs = [[0, 1], [0, 2], [1, 2]]
    >>> outputs = model.match_features(features.pairs(pairs))
    >>> outputs.stop.shape
    torch.Size([3])

    ```
    """

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__(config)
        if config.use_keypoint_detector:
            detector_config = config.keypoint_detector_config
            # eager, whatever the matcher's: a detector without attention declares no other
            if own := model_class(detector_config):
                self.keypoint_detector = own._from_config(detector_config, attn_implementation="eager")
            else:
                self.keypoint_detector = AutoModelForKeypointDetection.from_config(
                    detector_config, attn_implementation="eager", trust_remote_code=False
                )
        else:  # the matcher alone can be had from a whole checkpoint
            self._keys_to_ignore_on_load_unexpected = [r"^keypoint_detector\."]  # type: ignore[assignment]
        width = config.num_input_features
        different = width != config.descriptor_dim
        self.input_projection = nn.Linear(width, config.descriptor_dim) if different else nn.Identity()
        self.positional_encoder = LightGluePositionalEncoder(config)
        layers = range(config.num_hidden_layers)
        self.transformer_layers = nn.ModuleList(LightGlueTransformerLayer(config) for _ in layers)
        self.match_assignment_layers = nn.ModuleList(LightGlueMatchAssignmentLayer(config) for _ in layers)
        self.token_confidence = nn.ModuleList(LightGlueTokenConfidenceLayer(config) for _ in layers[:-1])
        self.post_init()

    def share_equal_projections(self) -> None:
        """Let one layer project queries and keys of cross-attention, where in all layers two have equal weights."""
        attentions: list[Any] = [layer.cross_attention for layer in self.transformer_layers]  # type: ignore[union-attr]
        self.config.shared_query_key = all(
            type(layer) is nn.Linear and layer.weight.device.type != "meta"
            for attention in attentions
            for layer in (attention.q_proj, attention.k_proj)
        ) and all(
            q.shape == k.shape and torch.equal(q, k)
            for attention in attentions
            for q, k in zip(attention.q_proj.parameters(), attention.k_proj.parameters())
        )
        if self.config.shared_query_key:
            for attention in attentions:
                attention.k_proj = attention.q_proj

    def with_all_layers(self) -> "LightGlueForKeypointMatching":
        """This model, of the same weights and detector, under a copy of its configuration that runs all layers."""
        whole = copy.copy(self)
        whole.config = copy.deepcopy(self.config)
        whole.config.keypoint_detector_config = self.config.keypoint_detector_config
        whole.config.run_all_layers()
        return whole

    # -- the two halves

    def extract_features(
        self, pixel_values: Tensor, image_sizes: Tensor | None = None, region: Tensor | None = None
    ) -> KeypointFeatures:
        """Detect and describe the keypoints of images.

        Args:
            pixel_values: `(batch, 2, channels, height, width)` or `(images, channels, height, width)`, in [0, 1].
            image_sizes: `(batch, 2, 2)` or `(images, 2)`, (height, width) of the images within `pixel_values`, the
                rest of which is padding; all of it by default.
            region: `(batch, 2, height, width)` or `(images, height, width)` bool, where keypoints may lie; the best
                of those are kept. Anywhere by default.

        Returns:
            Features of `shape` `(batch, 2)` or `(images,)`.

        Raises:
            ValueError: no detector, another shape, NaN or Inf in `pixel_values`, or `image_sizes` beyond them.
        """
        if not self.config.use_keypoint_detector:
            raise ValueError("this model has no keypoint detector: give match_features keypoints and descriptors")
        check_images(pixel_values, image_sizes, region, values=False)  # at which the detector looks
        height, width = pixel_values.shape[-2:]
        detector: Any = self.keypoint_detector
        # a traced graph has one number of keypoints, and a size in numbers would be a constant of it
        fixed = (self._is_static() or torch.jit.is_tracing()) and detector.config.max_keypoints >= 0
        weights = (weight for weight in detector.parameters() if weight.is_floating_point())
        dtype = next((weight.dtype for weight in weights), pixel_values.dtype)  # replicas have no parameters
        features = features_of_detector(
            detector,
            pixel_values.reshape(-1, *pixel_values.shape[-3:]).to(dtype),
            None if image_sizes is None else image_sizes.reshape(-1, 2),
            None if region is None else region.reshape(-1, height, width),
            fixed,
        )
        if pixel_values.ndim == 5:
            features = KeypointFeatures(**{name: value.unflatten(0, (-1, 2)) for name, value in features.items()})
        return features

    def match_features(
        self,
        keypoints: KeypointFeatures | Tensor,
        descriptors: Tensor | None = None,
        mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        scales: Tensor | None = None,
        orientations: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        labels: Tensor | None = None,
    ) -> LightGlueKeypointMatchingOutput:
        """Match the keypoints of pairs of images.

        Args:
            keypoints: features of pairs, `shape` = `(batch, 2)`, in which case the other features are left out; or
                `(batch, 2, n, 2)` float32 pixels (x, y), centre of the first pixel = (0, 0).
            descriptors: `(batch, 2, n, d)`, d as the model was made for.
            mask: `(batch, 2, n)`, nonzero for a keypoint and 0 for padding, wherever it stands; all are keypoints by
                default.
            image_sizes: `(batch, 2, 2)` (height, width) of each image; without it the extent of its keypoints.
            scales: `(batch, 2, n)`, only (and always) for models with `config.add_scale_ori`.
            orientations: `(batch, 2, n)` radians, likewise.
            output_hidden_states, output_attentions: also return those.
            labels: `(batch, 2, n)` int64, index of the true match in the other image, -1 for none, -2 to ignore.
                With labels all layers run, whatever the confidences, and there is a loss in place of `matches`,
                `matching_scores`, `prune` and `stop`, which are `None`.

        Returns:
            Of each pair the matches, their scores and how far the layers went: see
            [`LightGlueKeypointMatchingOutput`].

        Raises:
            ValueError: an argument of another shape or missing, NaN, Inf or numbers beyond 1e6 in it, sizes that are
                not positive, or labels out of range or of padding, named. (In static mode on an accelerator values
                are not looked at, because that would wait for the device.)
        """
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions
        given = (keypoints, descriptors, mask, image_sizes, scales, orientations)
        points = keypoints.keypoints if isinstance(keypoints, KeypointFeatures) else keypoints
        values = points is None or looks_at_values(points, self._is_static())
        features = features_of_pairs(config, *given, values=values)
        assert features.keypoints is not None
        mask = None if features.mask is None else features.mask.bool()
        features = replace(features, keypoints=features.keypoints.float(), mask=mask)
        assert features.keypoints is not None
        sizes = features.image_sizes
        relative = None if sizes is None else features.keypoints / sizes.flip(-1)[:, :, None, :]
        exists = torch.ones_like(features.keypoints[..., 0], dtype=torch.bool) if mask is None else mask
        record = Record(output_hidden_states, output_attentions)
        loss = result = None
        if labels is not None:
            loss = self._loss(self._points(features), checked_labels(labels, exists, values), record)
        elif record.is_empty and low_memory_cpu(self, features.keypoints):
            at_once = max(1, POINTS_AT_ONCE // max(1, 2 * features.keypoints.shape[2]))
            starts = range(0, len(features.keypoints), at_once) or [0]  # an empty batch is one part
            results = [vars(self._match(features[i : i + at_once], record)) for i in starts]
            result = Result(**{name: torch.cat([r[name] for r in results]) for name in results[0]})
        else:
            result = self._match(features, record)
        return LightGlueKeypointMatchingOutput(
            loss=loss,
            keypoints=relative,
            mask=exists.int(),
            image_sizes=sizes,
            hidden_states=record.hidden_states,
            attentions=record.attentions,
            **({} if result is None else vars(result)),
        )

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        image_sizes: Tensor | None = None,
        keypoints: Tensor | None = None,
        descriptors: Tensor | None = None,
        mask: Tensor | None = None,
        scales: Tensor | None = None,
        orientations: Tensor | None = None,
        region: Tensor | None = None,
    ) -> LightGlueKeypointMatchingOutput | tuple:
        """Match pairs of images, or of features that were extracted before.

        Args:
            pixel_values: `(batch, 2, channels, height, width)` in [0, 1]; or else
            keypoints, descriptors, mask, scales, orientations: as in [`match_features`].
            labels: as in [`match_features`]; of the keypoints that the detector finds, or that are given.
            output_attentions, output_hidden_states: also return those.
            return_dict: `False` returns the tuple of the fields that are not `None`.
            image_sizes: `(batch, 2, 2)` (height, width) of each image; with `pixel_values` all of it by default.
            region: with `pixel_values`, as in [`extract_features`].

        Returns:
            See [`LightGlueKeypointMatchingOutput`]; a tuple with `return_dict=False`.

        Raises:
            ValueError: an argument of another shape or missing, or NaN or Inf in it, or one that does not go with
                pixels, or with features, named.
        """
        check_one_mode(
            {"pixel_values": pixel_values, "region": region},
            {
                "keypoints": keypoints,
                "descriptors": descriptors,
                "mask": mask,
                "scales": scales,
                "orientations": orientations,
            },
        )
        if pixel_values is None:
            features = KeypointFeatures(keypoints, descriptors, mask, image_sizes, None, scales, orientations)
        elif pixel_values.ndim == 5:
            features = self.extract_features(pixel_values, image_sizes, region)
        else:
            raise ValueError(
                f"pixel_values must be (batch, 2, channels, height, width), got shape {tuple(pixel_values.shape)}"
            )
        outputs = self.match_features(
            features,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            labels=labels,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return outputs if return_dict else outputs.to_tuple()

    # -- how the layers are run

    def _match(self, features: KeypointFeatures, record: Record) -> Result:
        assert features.keypoints is not None
        mask = features.mask
        valid = torch.ones_like(features.keypoints[..., 0], dtype=torch.bool) if mask is None else mask
        if mask is not None and not self._is_static() and bool(mask.all()):
            features = replace(features, mask=None)
        points = self._points(features)
        if self._is_static() or valid.shape[-1] == 0:
            return self._match_all_layers(points, valid, record)
        return self._match_adaptively(points, valid, record)

    def _is_static(self) -> bool:
        """Nothing is adaptive: shapes do not depend on values, and nothing waits for the device."""
        return not self.config.is_adaptive

    def _points(self, features: KeypointFeatures) -> Points:
        """The points as the first layer takes them, all of all pairs; the mask, if any, is bool."""
        keypoints, descriptors = features.keypoints, features.descriptors
        assert keypoints is not None
        assert descriptors is not None
        positions = normalize_keypoints(keypoints, features.mask, features.image_sizes)
        if features.scales is not None and features.orientations is not None:
            turned = (features.scales[..., None].float(), features.orientations[..., None].float())
            positions = torch.cat([positions, *turned], -1)
        cos, sin = self.positional_encoder(positions)
        batch, _, n, _ = keypoints.shape
        return Points(
            pair=torch.arange(batch, device=keypoints.device),
            index=torch.arange(n, device=keypoints.device).expand(batch, 2, n),
            mask=features.mask,
            # contiguous: detectors may lay them out by feature, and sums would keep that through all layers
            descriptors=self.input_projection(
                descriptors.to(self.positional_encoder.projector.weight.dtype).contiguous()
            ),
            cos=cos,
            sin=sin,
        )

    def _run_layer(self, i: int, points: Points, record: Record) -> None:
        mask = None if points.mask is None else points.mask.flatten(0, 1)
        rotary = points.cos.flatten(0, 1), points.sin.flatten(0, 1)
        hidden, states, attentions = self.transformer_layers[i](
            points.descriptors.flatten(0, 1),
            rotary,
            mask,
            record.hidden_states is not None,
            record.attentions is not None,
        )
        record.add(states, attentions)
        points.descriptors = hidden.unflatten(0, (-1, 2))

    def _match_all_layers(self, points: Points, valid: Tensor, record: Record) -> Result:
        """Static mode: every pair and point through every layer."""
        layers = self.config.num_hidden_layers
        result = Result.no_matches(valid, points.descriptors.dtype, stop=layers, prune=layers)
        result.stop = torch.where(valid.any(-1).all(-1), layers, 1)  # without points in both images no layer is needed
        if valid.shape[-1] == 0:
            return result
        for i in range(layers):
            self._run_layer(i, points, record)
        assignment: Any = self.match_assignment_layers[-1]
        result.matches, scores = assignment.matches(points.descriptors, points.mask, self.config.filter_threshold)
        result.matching_scores = scores.to(points.descriptors.dtype)
        return result

    def _match_adaptively(self, points: Points, valid: Tensor, record: Record) -> Result:
        """Stop each pair when it is confident, or hopeless, and prune its points on the way."""
        config = self.config
        layers = config.num_hidden_layers
        initial = valid.sum(2)
        prune = layers if config.width_confidence <= 0 else 1
        outputs = Result.no_matches(valid, points.descriptors.dtype, stop=layers, prune=prune)
        points = self._drop_empty_pairs(points, valid, outputs, stop=1)
        for i in range(layers - 1):
            if len(points.pair) == 0:
                return outputs
            self._run_layer(i, points, record)
            exists = torch.ones_like(points.index, dtype=torch.bool) if points.mask is None else points.mask
            stopped, rejected, keep, counted = self.stopping_and_pruning(
                points.descriptors, exists, initial[points.pair], i
            )
            prune = outputs.prune[points.pair].scatter_add(2, points.index, counted.to(outputs.prune.dtype))
            outputs.prune[points.pair] = prune
            ended = stopped | rejected
            if ended.any():
                self._assign(points.of_pairs(stopped), i, outputs)
                outputs.stop[points.pair[ended]] = i + 1
                points, keep = points.of_pairs(~ended), keep[~ended]
            points = self._drop_empty_pairs(points, keep, outputs, stop=i + 2)
        if len(points.pair):
            self._run_layer(layers - 1, points, record)
            self._assign(points, layers - 1, outputs)
        return outputs

    def stopping_and_pruning(
        self, descriptors: Tensor, exists: Tensor, initial: Tensor, i: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What layer `i`, not the last, says of pairs and their points.

        Args:
            descriptors: `(pairs, 2, k, width)` after the layer.
            exists: `(pairs, 2, k)` bool, `False` for padding.
            initial: `(pairs, 2)`, how many points each image began with.

        Returns:
            The pairs that stop and those that are given up, both `(pairs,)` bool; the points that the others keep;
            and those of them that are counted as having survived a round of pruning, both `(pairs, 2, k)` bool.
        """
        config = self.config
        assignment_layer: Any = self.match_assignment_layers[i]
        stopped = rejected = torch.zeros_like(initial[:, 0], dtype=torch.bool)
        keep = torch.zeros_like(exists)
        threshold = confidence_threshold(i, config.num_hidden_layers)
        if config.depth_confidence > 0:
            confidence = self.token_confidence[i](descriptors).sigmoid()
            unsure = ((confidence < threshold) & exists).sum((1, 2))
            stopped = 1 - unsure / initial.sum(1) > config.depth_confidence
            keep = confidence <= threshold
        if config.rejection_threshold > 0 and i == REJECTING_LAYER:
            matches, _ = assignment_layer.matches(descriptors, exists, config.filter_threshold)
            share = (matches[:, 0] >= 0).sum(-1) / initial.amin(1)
            rejected = (share < config.rejection_threshold) & ~stopped
        if config.width_confidence <= 0:
            return stopped, rejected, exists, torch.zeros_like(exists)
        keep = keep | ~assignment_layer.unmatchable(descriptors, config.width_confidence)
        pruned = exists.sum(-1, keepdim=True) > config.pruning_min_keypoints
        keep = exists & (keep | ~pruned)
        return stopped, rejected, keep, keep & pruned & ~(stopped | rejected)[:, None, None]

    def _drop_empty_pairs(self, points: Points, keep: Tensor, outputs: Result, stop: int) -> Points:
        """The points `keep` alone. A pair that has none left in an image has no matches: it stops."""
        counts = keep.sum(-1)
        if len(counts) == 0:
            return points
        longest, shortest = int(counts.max()), int(counts.min())
        if shortest == 0:
            full = (counts > 0).all(-1)
            outputs.stop[points.pair[~full]] = stop
            return self._drop_empty_pairs(points.of_pairs(full), keep[full], outputs, stop)
        if shortest == points.index.shape[-1]:
            return points
        return points.kept(keep, longest, padded=shortest < longest)

    def _assign(self, points: Points, i: int, outputs: Result) -> None:
        """Match what is left of the pairs after layer `i`; indices go back to the batch's columns."""
        assignment: Any = self.match_assignment_layers[i]
        matches, scores = assignment.matches(points.descriptors, points.mask, self.config.filter_threshold)
        outputs.matches[points.pair], scores = points.in_columns(matches, scores, outputs.matches.shape[-1])
        outputs.matching_scores[points.pair] = scores.to(outputs.matching_scores.dtype)

    def _loss(self, points: Points, labels: Tensor, record: Record) -> Tensor:
        """Assignment loss of every layer, and of the token confidences, which changes nothing but them.

        The confidence of a layer learns whether a point is assigned as by the last layer. Source: paper, section 3.4;
        glue-factory@2d17e3b with gamma = 1.
        """
        layers = self.config.num_hidden_layers
        assignment_loss = points.cos.new_zeros(())
        logits, assigned = [], []
        for i, assignment_layer in enumerate(self.match_assignment_layers):
            self._run_layer(i, points, record)
            assignment = assignment_layer(points.descriptors, points.mask)
            assignment_loss = assignment_loss + assignment.negative_log_likelihood(labels).mean() / layers
            with torch.no_grad():
                assigned.append(assignment.assigned())
            if i < layers - 1:
                logits.append(self.token_confidence[i](points.descriptors))
        if layers == 1:
            return assignment_loss
        targets = torch.stack([a == assigned[-1] for a in assigned[:-1]]).float()
        losses = F.binary_cross_entropy_with_logits(torch.stack(logits), targets, reduction="none")
        valid = torch.ones_like(losses[0]) if points.mask is None else points.mask.to(losses.dtype)
        per_image = (losses * valid).sum(-1) / valid.sum(-1).clamp(min=1)
        return assignment_loss + per_image.mean()


__all__ = ["LightGlueForKeypointMatching", "LightGluePreTrainedModel"]
