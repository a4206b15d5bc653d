"""Batch norms that come and go without changing a detector."""

import torch

from lightglue_hf import SuperPointConfig, SuperPointForKeypointDetection
from lightglue_hf.training import fold_batch_norm, insert_batch_norm

from .small import NARROW


def test_batch_norm_folds_away():
    model = SuperPointForKeypointDetection(SuperPointConfig(**NARROW)).train()
    names = set(model.state_dict())
    insert_batch_norm(model)
    for _ in range(3):  # running statistics
        model.encoder(torch.rand(2, 1, 32, 48))
        model.keypoint_decoder(torch.rand(2, 16, 4, 6))
        model.descriptor_decoder(torch.rand(2, 16, 4, 6))
    model.eval()
    image = torch.rand(1, 1, 32, 48)
    features = model.encoder(image)[-1]
    expected = model.keypoint_decoder(features), model.descriptor_decoder(features)
    fold_batch_norm(model)
    features = model.encoder(image)[-1]
    torch.testing.assert_close(model.keypoint_decoder(features), expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.descriptor_decoder(features), expected[1], atol=1e-4, rtol=1e-4)
    assert set(model.state_dict()) == names
