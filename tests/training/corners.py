"""A detector by the contract that is unlike SuperPoint: in colour, with scales and orientations."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForKeypointDetection, PretrainedConfig, PreTrainedModel

from lightglue_hf import KeypointDetector, KeypointDetectorConfig, KeypointFeatures
from lightglue_hf.training import strongest_corners


class CornersConfig(KeypointDetectorConfig, PretrainedConfig):
    model_type = "lightglue_hf_test_corners"
    stride = 4
    channels = 3
    has_scale_ori = True

    def __init__(self, descriptor_dim=8, max_keypoints=-1, keypoint_threshold=0.0, **kwargs):
        self.descriptor_dim = descriptor_dim
        self.max_keypoints = max_keypoints
        self.keypoint_threshold = keypoint_threshold
        super().__init__(**kwargs)


class Corners(KeypointDetector, PreTrainedModel):
    config_class = CornersConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.describe = nn.Conv2d(3, config.descriptor_dim, 5, padding=2)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
            nn.init.zeros_(module.bias)

    def detect(self, pixel_values: Tensor, region=None, fixed_shapes=False) -> KeypointFeatures:
        assert pixel_values.shape[1] == 3
        points, responses = strongest_corners(pixel_values.mean(1), self.config.max_keypoints)
        mask = responses > self.config.keypoint_threshold
        x, y = (points * mask[..., None]).long().unbind(-1)
        images = torch.arange(len(x))[:, None]
        descriptors = F.normalize(self.describe(pixel_values)[images, :, y, x], dim=-1)
        return KeypointFeatures(
            keypoints=points * mask[..., None],
            descriptors=descriptors * mask[..., None],
            mask=mask.int(),
            scores=responses * mask,
            scales=(2 + responses) * mask,
            orientations=descriptors[..., 0] * mask,
        )


AutoConfig.register(CornersConfig.model_type, CornersConfig, exist_ok=True)
AutoModelForKeypointDetection.register(CornersConfig, Corners, exist_ok=True)
