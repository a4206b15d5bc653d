"""DoGHardNet: OpenCV's SIFT keypoints, described by HardNet (Mishchuk et al., NIPS 2017, arXiv:1705.10872).

HardNet's layers and their names are those of DagnyT/hardnet and of kornia 0.8.1, so its checkpoints fit. What of an
image it sees is what kornia shows it in cvg/LightGlue@1fd587b, half a pixel's shift and the sense of rotation
included; see [`cut_patches`].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..features import KeypointDetector, KeypointFeatures
from ..loading import CheckedLoading
from ..utils.tensors import vector
from .configuration_doghardnet import DoGHardNetConfig
from .sift import collate, find_keypoints

PATCH = 32  # pixels a side
AT_ONCE = 512  # patches, for which the activations take 64 MB a layer

# channels and stride of the 3x3 convolutions
LAYERS = ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))


class HardNet(nn.Module):
    """Patches to descriptors."""

    def __init__(self) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        channels = 1
        for width, stride in LAYERS:
            convolution = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
            modules += [convolution, nn.BatchNorm2d(width, affine=False), nn.ReLU()]
            channels = width
        last = nn.Conv2d(channels, channels, kernel_size=PATCH // 4, bias=False)
        modules += [nn.Dropout(0.3), last, nn.BatchNorm2d(channels, affine=False)]
        self.features = nn.Sequential(*modules)

    def forward(self, patches: Tensor) -> Tensor:
        """`(n, 1, 32, 32)` float32 -> `(n, 128)`, of unit length, in the type of the weights."""
        deviation, mean = torch.std_mean(patches, (1, 2, 3), keepdim=True)
        normalized = (patches - mean) / (deviation + 1e-6)
        hidden = self.features(normalized.to(next(self.parameters()).dtype))
        return F.normalize(hidden.flatten(1), dim=1)


def halve(image: Tensor) -> Tensor:
    """`(1, 1, height, width)` smoothed by the binomial 1 4 6 4 1 along both axes, at half the height and width."""
    weights = image.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    smooth = F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), weights.outer(weights)[None, None])
    height, width = image.shape[-2:]
    return F.interpolate(smooth, (height // 2, width // 2), mode="bilinear", align_corners=False)


def cut_patches(
    image: Tensor, keypoints: Tensor, scales: Tensor, orientations: Tensor, extent: float, clockwise: bool
) -> Tensor:
    """A square patch around each keypoint, turned by its orientation, out of the image or a smaller version of it.

    The image is halved while there are two of its pixels to one of the patch, and 32 to its shorter side.

    Args:
        image: `(1, 1, height, width)` float32.
        keypoints: `(n, 2)`, pixels, (x, y), centre of the first pixel = (0, 0).
        scales: `(n,)`, pixels.
        orientations: `(n,)`, radians.
        extent: half the side of a patch, in units of the scale.
        clockwise: the sense in which patches are turned.

    Returns:
        `(n, 1, 32, 32)`.

    Source: kornia 0.8.1's `extract_patches_from_pyramid`, of frames by `laf_from_center_scale_ori`. The position k of
    an image of n pixels is looked up at k n / (n - 1) - 0.5: half a pixel off at the borders and right in the middle.
    Patches so large that kornia has no image for them, and leaves them black, come from the smallest image here.
    """
    radii = extent * scales
    smallest = min(image.shape[-2:])
    halvings = max(0, min(smallest // PATCH - 1, smallest.bit_length() - PATCH.bit_length() + 1))
    levels = (2 * radii / PATCH).log2().clamp(0, halvings).long()
    cos, sin = orientations.cos(), orientations.sin() * (1 if clockwise else -1)
    axis = (torch.arange(PATCH, device=image.device) + 0.5) * 2 / PATCH - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin, radius = (values[:, None, None] for values in (cos, sin, radii))
    offsets = radius[..., None] * torch.stack([cos * u - sin * v, sin * u + cos * v], -1)

    def last_pixel(image: Tensor) -> Tensor:
        return vector(image.shape[-1] - 1, image.shape[-2] - 1, image.device)

    relative = keypoints / last_pixel(image)
    patches = image.new_zeros(len(keypoints), 1, PATCH, PATCH)
    for level in range(int(levels.max()) + 1 if len(levels) else 0):
        if level:
            image = halve(image)
        here = levels == level
        last = last_pixel(image)
        shrunk = (min(image.shape[-2:]) - 1) / (smallest - 1)
        positions = relative[here][:, None, None] * last + offsets[here] * shrunk
        grid = (2 * positions / last - 1).flatten(1, 2)  # (k, 1024, 2): the patches of one image, one below the other
        cut = F.grid_sample(image, grid[None], padding_mode="border", align_corners=False)
        patches[here] = cut.view(-1, 1, PATCH, PATCH)
    return patches


class DoGHardNetForKeypointDetection(KeypointDetector, CheckedLoading, PreTrainedModel):
    """DoGHardNet: keypoints, scores, scales, orientations and descriptors of a batch of images.

    Keypoints are found on the CPU in 8 bits; patches are cut in float32.

    Example:

    ```python
    >>> import torch
    >>> from lightglue_hf import DoGHardNetConfig, DoGHardNetForKeypointDetection
    >>> model = DoGHardNetForKeypointDetection(DoGHardNetConfig(max_keypoints=20)).eval()
    >>> model.extract_features(torch.rand(2, 1, 120, 160)).descriptors.shape
    torch.Size([2, 20, 128])

    ```
    """

    config_class = DoGHardNetConfig
    base_model_prefix = "doghardnet"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False

    def __init__(self, config: DoGHardNetConfig) -> None:
        super().__init__(config)
        self.hardnet = HardNet()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As in DagnyT/hardnet."""
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight, gain=0.6)

    def detect(
        self, pixel_values: Tensor, region: Tensor | None = None, fixed_shapes: bool = False
    ) -> KeypointFeatures:
        found = find_keypoints(pixel_values, self.config, region, describe=False)
        images = [features.to(pixel_values.device) for features in found]
        for pixels, features in zip(pixel_values[:, :1].float().split(1), images):
            features.descriptors = self.describe(pixels, features)
        return collate(images, self.config, fixed_shapes).to(pixel_values.device)

    def describe(self, image: Tensor, features: KeypointFeatures) -> Tensor:
        """`(n, 128)` descriptors of the keypoints, `shape` `()`, of an image `(1, 1, height, width)` float32."""
        clockwise = self.config.patch_rotation == "clockwise"
        keypoints, scales, orientations = (features[name] for name in ("keypoints", "scales", "orientations"))
        patches = cut_patches(image, keypoints, scales, orientations, self.config.patch_extent, clockwise)
        parts = [self.hardnet(part) for part in patches.split(AT_ONCE) if len(part)]
        return torch.cat([patches.new_zeros(0, self.config.descriptor_dim, dtype=self.dtype), *parts])


__all__ = ["DoGHardNetConfig", "DoGHardNetForKeypointDetection"]
