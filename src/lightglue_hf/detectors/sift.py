"""SIFT keypoints and descriptors (Lowe, IJCV 2004) by OpenCV, which runs on the CPU, image by image.

Source of the settings, of what is kept of OpenCV's keypoints and of RootSIFT's rounding: cvg/LightGlue@1fd587b. Unlike
there, `max_keypoints` are counted after the duplicates are gone, and in the region that is asked for.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..features import KeypointDetector, KeypointFeatures
from ..loading import CheckedLoading
from ..utils.optional import import_optional
from .configuration_sift import DifferenceOfGaussiansConfig, SIFTConfig
from .selection import max_pool


def detect_and_describe(image: np.ndarray, config: DifferenceOfGaussiansConfig, describe: bool) -> KeypointFeatures:
    """All keypoints that OpenCV finds in an image.

    Args:
        image: `(height, width)` uint8.
        describe: also give SIFT's descriptors, `(n, 128)` float32 in [0, 255].

    Returns:
        Features of `shape` `()`: scales are OpenCV's sizes, twice the Gaussian's standard deviation; orientations in
        [0, 2 pi), clockwise from the x axis as the image is seen; several keypoints of a place differ by those.

    Raises:
        ImportError: OpenCV is not installed.
    """
    cv2 = import_optional("cv2", "sift")
    sift = cv2.SIFT_create(
        nfeatures=0,
        nOctaveLayers=config.num_octave_layers,
        contrastThreshold=config.keypoint_threshold,
        edgeThreshold=config.edge_threshold,
        enable_precise_upscale=config.precise_upscale,
    )
    image = np.ascontiguousarray(image)
    found, descriptors = sift.detectAndCompute(image, None) if describe else (sift.detect(image, None), None)
    numbers = torch.tensor([(*k.pt, k.response, k.size, k.angle) for k in found], dtype=torch.float32).reshape(-1, 5)
    if describe:
        descriptors = torch.zeros(0, 128) if descriptors is None else torch.from_numpy(descriptors)
    return KeypointFeatures(
        keypoints=numbers[:, :2],
        scores=numbers[:, 2],
        scales=numbers[:, 3],
        orientations=numbers[:, 4].deg2rad(),
        descriptors=descriptors,
    )


def of_points(features: KeypointFeatures, index: Tensor) -> KeypointFeatures:
    """The features of some of the points of an image."""
    return KeypointFeatures(**{name: value[index] for name, value in features.items()})


def best_of_pixels(features: KeypointFeatures, height: int, width: int, nms_radius: int) -> Tensor:
    """Of each pixel the keypoint of the best score, then of the smallest orientation; and these `nms_radius` apart.

    A pixel here is a square between whole coordinates, as in cvg/LightGlue@1fd587b.

    Returns:
        `(k,)` int64, which keypoints, in their order.
    """
    points, scores, orientations = (features[name].numpy() for name in ("keypoints", "scores", "orientations"))
    x, y = np.floor(points).astype(np.int64).T
    pixels = y * width + x
    order = np.lexsort((orientations, -scores, pixels))
    _, first = np.unique(pixels[order], return_index=True)
    keep = torch.from_numpy(np.sort(order[first]))
    if nms_radius > 0:
        at, best = torch.from_numpy(pixels)[keep], features["scores"][keep]
        score_map = torch.zeros(height * width).index_put((at,), best).view(1, height, width)
        keep = keep[max_pool(score_map, nms_radius).flatten()[at] == best]
    return keep


def in_region(keypoints: Tensor, region: Tensor) -> Tensor:
    """`(n,)` bool: the pixel that a keypoint lies on is in the region, `(height, width)`."""
    height, width = region.shape
    x, y = keypoints.round().long().unbind(-1)
    return region.bool()[y.clamp(0, height - 1), x.clamp(0, width - 1)]


def select_best(features: KeypointFeatures, max_keypoints: int) -> KeypointFeatures:
    """The keypoints of the best scores, in descending order if not all are kept."""
    if not 0 <= max_keypoints < len(features["scores"]):
        return features
    return of_points(features, features["scores"].argsort(descending=True, stable=True)[:max_keypoints])


def to_root_sift(descriptors: Tensor, eps: float = 1e-6) -> Tensor:
    """RootSIFT of SIFT's `(..., 128)`: divided by their sums, at least `eps`, square roots, of unit length."""
    return F.normalize(F.normalize(descriptors, p=1, dim=-1, eps=eps).clamp(min=eps).sqrt(), dim=-1)


def to_grey_levels(pixel_values: Tensor) -> np.ndarray:
    """The first channel of `(images, channels, height, width)` in [0, 1] as `(images, height, width)` uint8.

    By truncation, as in cvg/LightGlue@1fd587b; pixels in half precision lie to either side of theirs and are rounded.
    """
    levels = 255 * pixel_values[:, 0].detach().float().cpu()
    if pixel_values.dtype in (torch.float16, torch.bfloat16):
        levels = levels.round()
    return levels.clamp(0, 255).byte().numpy()


def find_keypoints(
    pixel_values: Tensor, config: DifferenceOfGaussiansConfig, region: Tensor | None, describe: bool
) -> list[KeypointFeatures]:
    """The keypoints of images by OpenCV, those that a configuration wants; see [`KeypointDetector.detect`].

    Args:
        describe: see [`detect_and_describe`].

    Returns:
        For each image features of `shape` `()`, on the CPU, without padding or mask.
    """
    height, width = pixel_values.shape[-2:]
    found = []
    for i, image in enumerate(to_grey_levels(pixel_values)):
        features = detect_and_describe(image, config, describe)
        features = of_points(features, best_of_pixels(features, height, width, config.nms_radius))
        if region is not None:
            features = of_points(features, in_region(features["keypoints"], region[i].cpu()))
        found.append(select_best(features, config.max_keypoints))
    return found


def collate(
    images: list[KeypointFeatures], config: DifferenceOfGaussiansConfig, fixed_shapes: bool
) -> KeypointFeatures:
    """Features of single images, `shape` `()`, as one, `(images,)`, padded to the most keypoints or to all columns."""
    empty = torch.zeros(0)
    nothing = KeypointFeatures(
        torch.zeros(0, 2), torch.zeros(0, config.descriptor_dim), scores=empty, scales=empty, orientations=empty
    )
    features = KeypointFeatures.cat(image[None] for image in images or [nothing])[: len(images)]
    return features.padded(config.max_keypoints) if fixed_shapes else features


class SIFTForKeypointDetection(KeypointDetector, CheckedLoading, PreTrainedModel):
    """SIFT: keypoints, scores, scales, orientations and descriptors of a batch of images.

    It has no weights. It is computed on the CPU in 8 bits, whatever its device and type; features are where the
    pixels are.

    Example:

    ```python
    >>> import torch
    >>> from lightglue_hf import SIFTConfig, SIFTForKeypointDetection
    >>> model = SIFTForKeypointDetection(SIFTConfig(max_keypoints=20))
    >>> model.extract_features(torch.rand(2, 1, 120, 160)).orientations.shape
    torch.Size([2, 20])

    ```
    """

    config_class = SIFTConfig
    base_model_prefix = "sift"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False

    def __init__(self, config: SIFTConfig) -> None:
        super().__init__(config)
        self.register_buffer("place", torch.zeros(()), persistent=False)  # moves with the model, for `device`
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """As in transformers, from the configuration alone: there are no weights, and no file of them to look for."""
        kwargs = {name: value for name, value in kwargs.items() if name not in ("dtype", "torch_dtype")}
        if not isinstance(config, SIFTConfig):
            where = config or pretrained_model_name_or_path
            config, kwargs = SIFTConfig.from_pretrained(where, return_unused_kwargs=True, **kwargs)
        return super().from_pretrained(None, *model_args, config=config, state_dict={}, **kwargs)

    @property
    def device(self) -> torch.device:
        return self.place.device  # type: ignore[union-attr, return-value]

    @property
    def dtype(self) -> torch.dtype:
        """float32, always: of the pixels it takes and of the descriptors it gives."""
        return torch.float32

    def _init_weights(self, module: nn.Module) -> None:
        """There are none."""

    def detect(
        self, pixel_values: Tensor, region: Tensor | None = None, fixed_shapes: bool = False
    ) -> KeypointFeatures:
        images = find_keypoints(pixel_values, self.config, region, describe=True)
        for features in images:
            to_unit = to_root_sift if self.config.rootsift else F.normalize
            features.descriptors = to_unit(features["descriptors"])
        return collate(images, self.config, fixed_shapes).to(pixel_values.device)


__all__ = ["SIFTConfig", "SIFTForKeypointDetection"]
