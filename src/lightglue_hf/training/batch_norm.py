"""Batch norms that a SuperPoint has while it is trained, and that are folded into its convolutions at the end."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..detectors.superpoint import SuperPointForKeypointDetection


@torch.no_grad()
def insert_batch_norm(model: SuperPointForKeypointDetection, images: Tensor | None = None) -> None:
    """Give every convolution before a ReLU a batch norm.

    Args:
        images: `(batch, 1, height, width)`; a trained model keeps its function, with batch norms that undo themselves
            given the statistics of these images. Without any, all convolutions get He-initialised weights.
    """
    norms = []
    for parent, name in convolutions_before_relu(model):
        conv = getattr(parent, name)
        norms.append(nn.BatchNorm2d(conv.out_channels))
        if images is None:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        else:
            conv.register_forward_hook(partial(fit_norm, norms[-1]))
    if images is None:
        for conv in (model.keypoint_decoder.conv_score_b, model.descriptor_decoder.conv_descriptor_b):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    else:
        model.train()(images)  # not in training it would go through in parts
    for (parent, name), norm in zip(convolutions_before_relu(model), norms):
        conv = getattr(parent, name)
        conv._forward_hooks.clear()
        setattr(parent, name, nn.Sequential(conv, norm))


def fit_norm(norm: nn.BatchNorm2d, conv: nn.Module, inputs: Any, output: Tensor) -> None:
    """Set `norm` to the identity on channels with the mean and variance of this output of `conv`."""
    variance, mean = torch.var_mean(output.float(), dim=(0, 2, 3), correction=0)
    norm.load_state_dict(
        {
            "running_mean": mean,
            "running_var": variance,
            "weight": (variance + norm.eps).sqrt(),
            "bias": mean,
            "num_batches_tracked": torch.tensor(1),
        }
    )


@torch.no_grad()
def fold_batch_norm(model: SuperPointForKeypointDetection) -> None:
    """Undo [`insert_batch_norm`]: a plain SuperPoint that computes what the model in `eval()` mode computes."""
    model.eval()
    for parent, name in convolutions_before_relu(model):
        conv, norm = getattr(parent, name)
        setattr(parent, name, fuse_conv_bn_eval(conv, norm))


def convolutions_before_relu(model: SuperPointForKeypointDetection) -> list[tuple[nn.Module, str]]:
    blocks = [(block, name) for block in model.encoder.conv_blocks for name in ("conv_a", "conv_b")]
    return [*blocks, (model.keypoint_decoder, "conv_score_a"), (model.descriptor_decoder, "conv_descriptor_a")]
