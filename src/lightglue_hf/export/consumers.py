"""Programs that run graphs in layouts of their own: OpenCV, COLMAP, and pages in a browser.

A layout is a part of the model with the names, ranks, types and coordinates that a program asks for. Beside what is
traced stands what the program does around it (`call`), so that the check sees a graph as the program uses it.

Sources: opencv/opencv, modules/features/src/{feature2d_aliked,disk,matchers_lightglue}.cpp of 5.0.0;
colmap/colmap, src/colmap/feature/{aliked,onnx_matchers,onnx_utils}.cc of 4.1.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..configuration_lightglue import LightGlueConfig
from ..image_processing_lightglue import GREY
from ..utils.tensors import vector
from . import opencv
from .graphs import Arrays, Axes, Detector, Graph, PairMatcher, Run

IMAGES = (0, 1)  # of a pair


class Layout(nn.Module):
    """A part of the model as a program takes it, one image or one pair at a time.

    Args:
        graph: of the part, in the layout of this package.
        config: of the model.
        height, width: of the images; 0 for any.
        file: the name that the graph gets.
    """

    detectors: ClassVar[tuple[str, ...] | None] = None
    """The types of detectors whose keypoints it is for; `None` for any."""
    scale_ori: ClassVar[bool] = True
    """Whether it knows scales and orientations, for models that take them."""
    fixed_size: ClassVar[bool] = True
    """Whether the program can be told a height and width that all images have."""
    side: ClassVar[int] = 0
    """The height and width of a graph that cannot do without; 0 where it can."""
    inputs: dict[str, Axes]
    outputs: dict[str, Axes]

    def __init__(self, graph: Graph, config: LightGlueConfig, height: int, width: int, file: str) -> None:
        super().__init__()
        if height and not self.fixed_size:
            raise ValueError(f"images of any size are given to {file}: leave height and width out")
        self.part = graph.module
        self.config = config
        self.height, self.width = height, width
        self.file = file

    def call(self, run: Run, inputs: Arrays) -> Arrays:
        """What the program gets from the graph, in the layout of this package.

        Args:
            run: the graph in this layout.
            inputs: of one image or pair, in the layout of this package, without the axis of the batch.
        """
        raise NotImplementedError

    def usage(self) -> str:
        """Lines that use it."""
        raise NotImplementedError

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) of the pictures of the check; multiples of 32, to which COLMAP pads."""
        return ((self.height, self.width),) * 2 if self.height else ((480, 640), (128, 160))

    @staticmethod
    def finish(proto: Any) -> Any:
        """The `onnx.ModelProto` that is written."""
        return proto

    def as_ours(self, run: Run) -> Run:
        """The graph in this layout as one in the layout of this package."""

        def answer(inputs: Arrays) -> Arrays:
            batch = len(next(iter(inputs.values())))
            rows = [self.call(run, {name: values[i] for name, values in inputs.items()}) for i in range(batch)]
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

        return answer


# ---------------------------------------------------------------------------------------------------------------------
# Detectors


class DetectorLayout(Layout):
    """Keypoints of one image, without padding."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inputs = {"image": Axes(torch.float32, (1, 3, self.height or "height", self.width or "width"))}

    def found(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keypoints `(n, 2)` in pixels, scores `(n,)` and descriptors `(n, d)` of `(1, 3, height, width)`."""
        keypoints, scores, descriptors, mask = self.part(image)
        rows = mask[0].nonzero()[:, 0]
        return keypoints[0, rows], scores[0, rows], descriptors[0, rows]

    def in_columns(self, keypoints: np.ndarray, scores: np.ndarray, descriptors: np.ndarray) -> Arrays:
        """The same in the layout of this package, padded."""
        found = {"keypoints": keypoints.astype(np.float32), "scores": scores, "descriptors": descriptors}
        found["mask"] = np.ones(len(keypoints), np.int32)
        columns = self.config.keypoint_detector_config.max_keypoints
        return {name: padded(values, columns) for name, values in found.items()}


class OpenCVDetector(DetectorLayout):
    """A graph of one size, which is that of `cv2.ALIKED` if no other is told."""

    side = 640
    finish = staticmethod(opencv.readable)


class OpenCVALIKED(OpenCVDetector):
    """For `cv2.ALIKED`, which resizes photos to its `inputSize`.

    A keypoint is exact where that is the size of the photo. Elsewhere OpenCV multiplies it by the proportion of the
    sizes, which leaves out the half pixel between the corner and the centre of the first.
    """

    detectors = ("aliked",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outputs = {
            "keypoints": Axes(torch.float32, ("keypoints", 2)),
            "descriptors": Axes(torch.float32, ("keypoints", self.config.num_input_features)),
            "scores": Axes(torch.float32, ("keypoints", 1)),
        }

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        keypoints, scores, descriptors = self.found(image)
        return 2 * keypoints / size_of(image) - 1, descriptors, scores[:, None]

    def call(self, run: Run, inputs: Arrays) -> Arrays:
        pixels = inputs["pixel_values"]
        found = run({"image": pixels[None]})
        keypoints = (found["keypoints"] + 1) / 2 * pixels.shape[:0:-1]
        return self.in_columns(keypoints, found["scores"][:, 0], found["descriptors"])

    def usage(self) -> str:
        return f"""\
params = cv2.ALIKED.Params()
params.inputSize = ({self.width}, {self.height})  # (width, height) that photos are resized to
detector = cv2.ALIKED.create("{self.file}", params)
found = [detector.detectAndCompute(photo, None) for photo in photos]
"""


class OpenCVDISK(OpenCVDetector):
    """For `cv2.DISK`: keypoints are whole pixels, and everything has an axis of length 1 in front."""

    detectors = ("disk",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outputs = {
            "keypoints": Axes(torch.int64, (1, "keypoints", 2)),
            "scores": Axes(torch.float32, (1, "keypoints")),
            "descriptors": Axes(torch.float32, (1, "keypoints", self.config.num_input_features)),
        }

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        keypoints, scores, descriptors = self.found(image)
        return keypoints.long()[None], scores[None], descriptors[None]

    def call(self, run: Run, inputs: Arrays) -> Arrays:
        found = run({"image": inputs["pixel_values"][None]})
        return self.in_columns(*(found[name][0] for name in ("keypoints", "scores", "descriptors")))

    def usage(self) -> str:
        return f"""\
detector = cv2.DISK.create("{self.file}", imageSize=({self.width}, {self.height}))
found = [detector.detectAndCompute(photo, None) for photo in photos]
"""


class COLMAPALIKED(DetectorLayout):
    """For COLMAP's extractors `ALIKED_N16ROT` and `ALIKED_N32`, which pad images to multiples of 32.

    The keypoints are what the model's own threshold and limit let pass; of those COLMAP's `max_num_features` and
    `min_score` leave the best.
    """

    detectors = ("aliked",)
    fixed_size = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inputs |= {"max_keypoints": Axes(torch.int64, ()), "min_score": Axes(torch.float32, ())}
        self.outputs = {
            "keypoints": Axes(torch.float32, (1, "keypoints", 2)),
            "descriptors": Axes(torch.float32, (1, "keypoints", self.config.num_input_features)),
            "scores": Axes(torch.float32, (1, "keypoints")),
        }

    def forward(self, image: Tensor, max_keypoints: Tensor, min_score: Tensor) -> tuple[Tensor, ...]:
        keypoints, scores, descriptors = self.found(image)
        rows = scores.argsort(descending=True)[:max_keypoints]  # type: ignore[misc] # not a number here
        rows = rows[scores[rows] > min_score]
        relative = 2 * keypoints[rows] / (size_of(image) - 1) - 1
        return relative[None], descriptors[rows][None], scores[rows][None]

    def call(self, run: Run, inputs: Arrays) -> Arrays:
        pixels = inputs["pixel_values"]
        most = np.array(self.config.keypoint_detector_config.max_keypoints)
        found = run({"image": pixels[None], "max_keypoints": most, "min_score": np.array(0, np.float32)})
        keypoints = (found["keypoints"][0] + 1) / 2 * (np.array(pixels.shape[:0:-1]) - 1)
        return self.in_columns(keypoints, found["scores"][0], found["descriptors"][0])

    def usage(self) -> str:
        name = "N32" if self.config.keypoint_detector_config.num_sample_positions == 32 else "N16ROT"
        return f"""\
colmap feature_extractor --database_path database.db --image_path photos \\
    --FeatureExtraction.type ALIKED_{name} --AlikedExtraction.{name.lower()}_model_path {self.file} \\
    --AlikedExtraction.min_score 0  # the model's own threshold
"""


# ---------------------------------------------------------------------------------------------------------------------
# Matchers


class MatcherLayout(Layout):
    """Matches of the keypoints of two images, any number of each."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inputs = {
            f"{name}{i}": Axes(torch.float32, (1, f"keypoints{i}", width))
            for name, width in (("kpts", 2), ("desc", self.config.num_input_features))
            for i in IMAGES
        }
        self.matcher = PairMatcher(self.part.model)  # type: ignore[arg-type]


class OpenCVMatcher(MatcherLayout):
    """For `cv2.LightGlueMatcher`, which divides each axis of the keypoints by a size of its own.

    Only distances between keypoints count, in both axes by the same measure, and their origin does not matter. So it
    has to be told a square, of the longer side; or, by a graph that knows the proportions of the images, their size.
    """

    scale_ori = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outputs = {
            "matches0": Axes(torch.int64, ("matches", 2)),
            "mscores0": Axes(torch.float32, ("matches",)),
        }

    def forward(self, kpts0: Tensor, kpts1: Tensor, desc0: Tensor, desc1: Tensor) -> tuple[Tensor, Tensor]:
        sides = torch.tensor([self.width or 1, self.height or 1], dtype=torch.float32)
        scale = sides / sides.max()
        # in images two units long, from the corner
        points = kpts0 * scale + 1, kpts1 * scale + 1
        return pairs_of(*self.matcher(torch.full((2, 2), 2), points, (desc0, desc1)))

    def call(self, run: Run, inputs: Arrays) -> Arrays:
        given, exists = without_padding(inputs)
        for i in IMAGES:
            size = inputs["image_sizes"][i, ::-1]
            size = size.max() if self.height == self.width else size
            given[f"kpts{i}"] = (given[f"kpts{i}"] / size * 2 - 1).astype(np.float32)
        found = run({name: given[name] for name in self.inputs})
        return per_point(found["matches0"], found["mscores0"], exists)

    def usage(self) -> str:
        square = self.height == self.width
        size = "(max(photo.shape[:2]),) * 2" if square else "photo.shape[1::-1]"
        why = "  # squares: else its axes are measured differently" if square else ""
        return f"""\
# found: of each photo its keypoints and their descriptors, as the model was trained on
matcher = cv2.LightGlueMatcher.create("{self.file}")
points = [cv2.KeyPoint.convert(keypoints) for keypoints, _ in found]
sizes = [{size} for photo in photos]{why}
matcher.setPairInfo(*points, *sizes)
matches = matcher.match(found[0][1], found[1][1])  # queryIdx, trainIdx, distance = 1 - score
"""


class COLMAPMatcher(MatcherLayout):
    """For COLMAP's matchers `ALIKED_LIGHTGLUE` and `SIFT_LIGHTGLUE`, the latter with scales and orientations."""

    detectors = ("aliked", "sift")
    fixed_size = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inputs |= {f"image_size{i}": Axes(torch.float32, (1, 2)) for i in IMAGES}
        for name in ("scales", "oris") if self.config.add_scale_ori else ():
            self.inputs |= {f"{name}{i}": Axes(torch.float32, (1, f"keypoints{i}")) for i in IMAGES}
        self.outputs = {
            "matches0": Axes(torch.int64, ("keypoints0",)),
            "mscores0": Axes(torch.float32, ("keypoints0",)),
        }

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        points, descriptors, sizes, *turned = zip(inputs[::2], inputs[1::2])
        return self.matcher(torch.cat(sizes).flip(1), points, descriptors, *turned)  # given as (width, height)

    def call(self, run: Run, inputs: Arrays) -> Arrays:
        given, exists = without_padding(inputs)
        given |= {f"image_size{i}": inputs["image_sizes"][[i], ::-1].astype(np.float32) for i in IMAGES}
        found = run({name: given[name] for name in self.inputs})
        rows = np.nonzero(found["matches0"] >= 0)[0]
        pairs = np.stack([rows, found["matches0"][rows]], 1)
        return per_point(pairs, found["mscores0"][rows], exists)

    def usage(self) -> str:
        name = "Sift" if self.config.add_scale_ori else "Aliked"
        return f"""\
colmap exhaustive_matcher --database_path database.db --FeatureMatching.type {name.upper()}_LIGHTGLUE \\
    --{name}Matching.lightglue_model_path {self.file} --{name}Matching.lightglue_min_score 0
"""


# ---------------------------------------------------------------------------------------------------------------------
# Both


class WebPipeline(Layout):
    """For a page in a browser, by onnxruntime-web: two RGB images, each of its own size, to pairs of keypoints."""

    def __init__(self, graph: Graph, *args: Any) -> None:
        super().__init__(graph, *args)
        model: Any = self.part.model
        self.detector, self.matcher = Detector(model), PairMatcher(model)
        sides = {i: (self.height or f"height{i}", self.width or f"width{i}") for i in IMAGES}
        self.inputs = {f"image{i}": Axes(torch.float32, (1, 3, *sides[i])) for i in IMAGES}
        self.outputs = {f"keypoints{i}": Axes(torch.float32, (f"keypoints{i}", 2)) for i in IMAGES}
        self.outputs |= {"matches": Axes(torch.int64, ("matches", 2)), "scores": Axes(torch.float32, ("matches",))}

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        grey = self.config.keypoint_detector_config.channels == 1
        found = [self.detector(to_grey(image) if grey else image) for image in images]
        counts = [mask.sum() for *_, mask in found]
        # one column at least, of padding, where nothing is found: an empty axis has no maximum
        columns = [count.clamp(min=1) for count in counts]
        keypoints, descriptors = (tuple(one[k][:, :n] for one, n in zip(found, columns)) for k in (0, 2))
        sizes = torch.stack([size_of(image).flip(0) for image in images])
        matches, scores = self.matcher(sizes, keypoints, descriptors)
        matches = matches.masked_fill(matches >= counts[1], -1)[: counts[0]]
        return *(own[0, :count] for own, count in zip(keypoints, counts)), *pairs_of(matches, scores[: counts[0]])

    def call(self, run: Run, inputs: Arrays) -> Arrays:
        pixels = inputs["pixel_values"]
        found = run({f"image{i}": pixels[[i]] for i in IMAGES})
        columns = self.config.keypoint_detector_config.max_keypoints
        points = [found[f"keypoints{i}"] / pixels.shape[:1:-1] for i in IMAGES]
        exists = np.stack([np.arange(columns) < len(own) for own in points])
        return {
            "keypoints": np.stack([padded(own, columns) for own in points]).astype(np.float32),
            "mask": exists.astype(np.int32),
            **per_point(found["matches"], found["scores"], exists),
        }

    def usage(self) -> str:
        return f"""\
const session = await ort.InferenceSession.create("{self.file}");
// pixels: Float32Array, RGB in [0, 1], channel by channel
const image = ({{pixels, height, width}}) => new ort.Tensor("float32", pixels, [1, 3, height, width]);
const {{keypoints0, keypoints1, matches, scores}} = await session.run({{image0: image(left), image1: image(right)}});
const at = (keypoints, i) => keypoints.data.subarray(2 * i, 2 * i + 2); // x, y in pixels
for (let k = 0; k < scores.data.length; k++) {{
  const [i, j] = matches.data.subarray(2 * k, 2 * k + 2);
  draw(at(keypoints0, Number(i)), at(keypoints1, Number(j)), scores.data[k]);
}}
"""


# ---------------------------------------------------------------------------------------------------------------------
# What they have in common


def size_of(image: Tensor) -> Tensor:
    """`(2,)` int64, (width, height) of `(..., height, width)`."""
    return vector(image.shape[-1], image.shape[-2], image.device)


def to_grey(image: Tensor) -> Tensor:
    """`(1, 3, height, width)` with equal channels, as the image processor makes them."""
    return (image * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True).expand(-1, 3, -1, -1)


def pairs_of(matches: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The matches of the points of image 0, `(n,)` with -1 for none, as pairs `(m, 2)`, and their scores `(m,)`."""
    rows = (matches >= 0).nonzero()[:, 0]
    return torch.stack([rows, matches[rows]], 1), scores[rows]


def without_padding(inputs: Arrays) -> tuple[Arrays, np.ndarray]:
    """The features of a pair, `(1, n, ...)` of each image, and where they stood, `(2, columns)` bool."""
    exists = inputs["mask"] > 0
    short = {"keypoints": "kpts", "descriptors": "desc", "scales": "scales", "orientations": "oris"}
    names = [name for name in short if name in inputs]
    return {f"{short[name]}{i}": inputs[name][i, exists[i]][None] for name in names for i in IMAGES}, exists


def per_point(pairs: np.ndarray, scores: np.ndarray, exists: np.ndarray) -> Arrays:
    """Pairs `(m, 2)` of the points that exist, as matches and scores of both images, `(2, columns)`.

    Pairs of what does not exist are left out, as OpenCV does.
    """
    known = ((pairs >= 0) & (pairs < exists.sum(1))).all(1)
    pairs, scores = pairs[known], scores[known]
    matches = np.full(exists.shape, -1)
    matching_scores = np.zeros(exists.shape, np.float32)
    columns = [np.nonzero(row)[0][pairs[:, i]] for i, row in enumerate(exists)]
    for i in IMAGES:
        matches[i, columns[i]] = columns[1 - i]
        matching_scores[i, columns[i]] = scores
    return {"matches": matches, "matching_scores": matching_scores}


def padded(values: np.ndarray, n: int) -> np.ndarray:
    """`(k, ...)` -> `(n, ...)`, with zeros behind."""
    return np.concatenate([values, np.zeros((n - len(values), *values.shape[1:]), values.dtype)])


# ---------------------------------------------------------------------------------------------------------------------
# The table


class Consumer(NamedTuple):
    """A program that runs graphs in layouts of its own.

    Args:
        title: what it is called.
        layouts: by part, those for certain detectors before others.
        language: of the lines that use them.
        opening: the first of those lines.
        manifest: whether a JSON file beside a graph says what it takes and gives.
    """

    title: str
    layouts: dict[str, tuple[type[Layout], ...]]
    language: str
    opening: str = ""
    manifest: bool = False

    def parts(self, config: LightGlueConfig) -> tuple[str, ...]:
        """The parts of a model that it takes."""
        return tuple(part for part in self.layouts if self._fitting(part, config))

    def layout(self, part: str, config: LightGlueConfig) -> type[Layout]:
        """The layout of a part of a model.

        Raises:
            ValueError: it does not take the part.
        """
        fitting = self._fitting(part, config)
        if not fitting:
            own = ", ".join(self.parts(config))
            which = f", not {part}" if own else ": docs/export.md says which models it takes"
            raise ValueError(f"{self.title} takes {own or 'no part'} of this model{which}")
        return fitting[0]

    def _fitting(self, part: str, config: LightGlueConfig) -> list[type[Layout]]:
        detector = config.keypoint_detector_config if config.use_keypoint_detector else None
        if part != "matcher" and not getattr(detector, "exportable", detector is not None):
            return []

        def fits(layout: type[Layout]) -> bool:
            if config.add_scale_ori and not layout.scale_ori:
                return False
            return layout.detectors is None or detector is None or detector.model_type in layout.detectors

        return [layout for layout in self.layouts.get(part, ()) if fits(layout)]


CONSUMERS = {
    "opencv": Consumer(
        "OpenCV 5",
        {"detector": (OpenCVALIKED, OpenCVDISK), "matcher": (OpenCVMatcher,)},
        "python",
        'import cv2\n\nphotos = [cv2.imread(name) for name in ("left.jpg", "right.jpg")]\n',
    ),
    "colmap": Consumer("COLMAP 4", {"detector": (COLMAPALIKED,), "matcher": (COLMAPMatcher,)}, "sh"),
    "web": Consumer(
        "onnxruntime-web",
        {"pipeline": (WebPipeline,)},
        "js",
        'import * as ort from "onnxruntime-web";\n',
        manifest=True,
    ),
}
