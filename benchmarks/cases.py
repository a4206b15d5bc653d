"""What is measured: each function makes the cases of one table."""

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lightglue_hf import LightGlueConfig, LightGlueImageProcessor
from lightglue_hf.evaluation.comparison import judge_matches
from lightglue_hf.evaluation.datasets import BUILT_IN
from lightglue_hf.evaluation.methods import lightglue

from .competitors import (
    KORNIA,
    ONNXRUNTIME,
    OPENVINO,
    OURS,
    TRANSFORMERS,
    Contestant,
    Settings,
    configuration,
    export_options,
    exported,
    keypoints_of,
    load,
    matches_of,
)
from .limits import Work, detector_work, layers_run, matcher_work
from .measure import Case, Entry, Row, Step, memory_job

STOCK, EAGER = Contestant(TRANSFORMERS), Contestant(OURS)
# Of matches: float32 differs by ties alone. bfloat16 is held to this on trained weights; on seeded ones, whose scores
# lie closer together, half only shows that nothing is broken.
REQUIRED, REQUIRED_REDUCED, REQUIRED_INT8 = 0.99, 0.97, 0.93
SANE, SANE_INT8 = 0.5, 0.25
# transformers 4.57 writes "no match" for its padding of pruned points into the last column, over what stands there
LOST_BY_PRUNING = 2
MATCHER_ALONE = f"{OURS}, matcher alone"
EXPORT, FIRST_INFERENCE = "exported and checked", "loaded, with the first inference"
ALL_DATA = "all"
ONE_BY_ONE = f"{TRANSFORMERS}, pair by pair"


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Args:
        keypoints: of the single pairs.
        with_memory: those whose memory is measured, too.
        batches: of so many pairs, with `batch_keypoints`.
        photos: of the collection, with `collection_keypoints`.
        subset: so many of a collection's pairs are matched, and their time is scaled.
        graph_keypoints: of the exported graphs; some are measured with twice as many.
        trained: so many pairs with the trained checkpoint.
        reduced: the reduced precisions.
        in_full: those of the single pairs for which ours is also compiled and others run in reduced precision, too.
    """

    keypoints: tuple[int, ...] = (512, 1024, 2048, 4096)
    with_memory: tuple[int, ...] = (4096,)
    batches: tuple[int, ...] = (1, 4, 16)
    batch_keypoints: int = 512
    photos: int = 20
    subset: int = 4
    collection_keypoints: int = 1024
    graph_keypoints: int = 1024
    trained: int = 4
    reduced: tuple[str, ...] = ("bfloat16",)
    in_full: tuple[int, ...] = (1024,)


QUICK = Plan((1024,), (), (2,), photos=4, subset=1, trained=1, in_full=())
ON_GPU = Plan(
    batches=(1, 4, 16, 32, 64), batch_keypoints=1024, reduced=("bfloat16", "float16"), in_full=(512, 1024, 2048, 4096)
)


@dataclass
class Workbench:
    """What the cases are made of.

    Args:
        plan: how much of everything.
        seeded, trained: directories of the full-size and of the bundled checkpoint, for images of one size.
        bundled: the bundled checkpoint as it is.
        images: photos, of which 2k and 2k + 1 show the same scene.
        pixels: `(images, 3, height, width)`, the same photos.
        pairs: pairs of photos by their numbers, as many as the largest batch.
        device: "cpu" or "cuda".
        scratch: a directory for files; the checkpoints' own, where graphs are exported to.
    """

    plan: Plan
    seeded: Path
    trained: Path
    bundled: Path
    images: list[Image.Image]
    pixels: Tensor
    pairs: list[tuple[int, int]]
    device: str
    scratch: Path

    def settings(self, keypoints: int, adaptive: bool = False, trained: bool = False) -> Settings:
        return Settings(self.trained if trained else self.seeded, keypoints, adaptive, self.device)

    def batch(self, pairs: list[tuple[int, int]]) -> Tensor:
        return self.pixels[torch.tensor(pairs)]

    def config(self) -> LightGlueConfig:
        return configuration(self.settings(1))

    def work_of_images(self, count: int) -> Work:
        return detector_work(self.config().keypoint_detector_config, *self.pixels.shape[-2:]) * count

    def work_of_matching(self, outputs: Any) -> Work:
        """Of what really ran in our model."""
        return sum((matcher_work(self.config(), layers) for layers in layers_run(outputs)), start=Work())

    def work_of_pairs(self, outputs: dict[str, list[Any]]) -> Work | None:
        """Of whole pairs, detector included, as our float32 model ran them."""
        if EAGER.name not in outputs:
            return None
        found = outputs[EAGER.name]
        pairs = sum(len(output.matches) for output in found)
        return sum((self.work_of_matching(output) for output in found), start=self.work_of_images(2 * pairs))


def words(adaptive: bool) -> str:
    return "adaptive" if adaptive else "all layers"


def required(contestant: Contestant, trained: bool = False) -> float:
    if contestant.weights != "fp32":
        return REQUIRED_INT8 if trained else SANE_INT8
    if contestant.dtype != "float32":
        return REQUIRED_REDUCED if trained else SANE
    return REQUIRED


def matching_entry(contestant: Contestant, settings: Settings, batches: list[Tensor], **options: Any) -> Entry:
    """Match each of the batches in turn."""

    def steps() -> list:
        implementation = load(contestant, settings)
        return [(1.0, partial(implementation.match, batch)) for batch in batches]

    return Entry(
        contestant.name,
        steps,
        found=lambda outputs: [pair for output in outputs for pair in matches_of(output)],
        dtype=None if contestant.weights != "fp32" or contestant.precise else contestant.dtype,
        missing=contestant.missing(),
        allowed=LOST_BY_PRUNING if settings.adaptive else 0,
        **{"required": required(contestant), **options},
    )


def single_pairs(bench: Workbench) -> Iterator[Case]:
    """(a) One pair."""
    plan, pair = bench.plan, bench.batch(bench.pairs[:1])
    file = bench.scratch / "pair.pt"
    torch.save(pair.clone(), file)
    for keypoints in plan.keypoints:
        for adaptive in (False, True):
            settings = bench.settings(keypoints, adaptive)
            contestants = [STOCK, EAGER]
            in_full = keypoints in plan.in_full and not adaptive
            if in_full:
                contestants.append(replace(EAGER, compiled=True))
            contestants += [replace(EAGER, dtype=dtype) for dtype in plan.reduced]
            if in_full:
                contestants += [replace(EAGER, dtype=dtype, precise=True) for dtype in plan.reduced]
            if in_full and bench.device == "cuda":
                contestants += [replace(EAGER, dtype=dtype, compiled=True) for dtype in plan.reduced]
            contestants += [Contestant(KORNIA)]
            if in_full:
                contestants += [replace(c, dtype=dtype) for dtype in plan.reduced for c in (STOCK, Contestant(KORNIA))]
            with_memory = keypoints in plan.with_memory and not adaptive
            entries = [
                matching_entry(
                    contestant,
                    settings,
                    [pair],
                    memory=memory_job(contestant, settings, file) if with_memory and not contestant.compiled else None,
                )
                for contestant in contestants
            ]
            yield Case(
                "a",
                f"{keypoints} keypoints, {words(adaptive)}",
                entries,
                work=bench.work_of_pairs,
                slow=keypoints >= 4096,
            )


def batches(bench: Workbench) -> Iterator[Case]:
    """(b) Batches, whose pairs must get what transformers gives them one at a time."""
    keypoints = bench.plan.batch_keypoints
    for adaptive in (False, True):
        settings = bench.settings(keypoints, adaptive)
        for count in bench.plan.batches:
            pairs = bench.pairs[:count]
            batch, singles = bench.batch(pairs), [bench.batch([pair]) for pair in pairs]
            entries = [replace(matching_entry(STOCK, settings, singles), name=ONE_BY_ONE)]
            if 1 < count <= 4 or bench.device == "cuda":  # per pair a larger one takes as long
                entries.append(matching_entry(STOCK, settings, [batch]))
            for contestant in (EAGER, *(replace(EAGER, dtype=dtype) for dtype in bench.plan.reduced)):
                entries.append(matching_entry(contestant, settings, [batch]))
            entries.append(matching_entry(Contestant(KORNIA), settings, [batch]))
            entries.append(
                Entry(
                    MATCHER_ALONE,
                    partial(matcher_alone, settings, batch),
                    found=lambda outputs: matches_of(outputs[0]),
                    allowed=LOST_BY_PRUNING if adaptive else 0,
                )
            )
            setting = f"{count} pair{'s' if count > 1 else ''} of {keypoints} keypoints, {words(adaptive)}"
            yield Case("b", setting, entries, work=bench.work_of_pairs, slow=count > 4)


def matcher_alone(settings: Settings, batch: Tensor) -> list[Step]:
    implementation = load(EAGER, settings)
    model = implementation.model
    found = implementation.run(model.extract_features, batch)
    features = found.keypoints, found.descriptors, found.mask, found.image_sizes
    return [(1.0, partial(implementation.run, model.match_features, *features))]


def collection(bench: Workbench) -> Iterator[Case]:
    """(c) All pairs of the photos: features once, or all of the model for each pair."""
    n = bench.plan.photos
    everything = [(i, j) for i in range(n) for j in range(i + 1, n)]
    subset = random.Random(0).sample(everything, min(bench.plan.subset, len(everything)))
    times = len(everything) / len(subset)
    for adaptive in (False, True):
        settings = bench.settings(bench.plan.collection_keypoints, adaptive)
        baseline = matching_entry(STOCK, settings, [bench.batch([pair]) for pair in subset])
        entries = [replace(baseline, load=lambda b=baseline: [(times, call) for _, call in b.load()])]
        reduced = [replace(EAGER, dtype=dtype) for dtype in bench.plan.reduced]
        precise = [replace(contestant, precise=True) for contestant in reduced if bench.plan.in_full]
        for contestant in (EAGER, *reduced, *precise):
            entries.append(
                Entry(
                    contestant.name,
                    partial(features_once, contestant, settings, bench.pixels[:n], subset, times),
                    found=lambda outputs: matches_of(outputs[-1]),
                    dtype=None if contestant.precise else contestant.dtype,
                    required=required(contestant),
                    allowed=LOST_BY_PRUNING if adaptive else 0,
                )
            )

        def work(outputs: dict[str, list[Any]]) -> Work | None:
            if EAGER.name not in outputs:
                return None
            return bench.work_of_images(n) + bench.work_of_matching(outputs[EAGER.name][-1]) * times

        setting = f"{n} photos, {len(everything)} pairs, {settings.keypoints} keypoints, {words(adaptive)}"
        yield Case("c", f"{setting} (measured: {len(subset)} pairs)", entries, work=work, slow=True)


def features_once(
    contestant: Contestant, settings: Settings, pixels: Tensor, pairs: list[tuple[int, int]], times: float
) -> list[Step]:
    """Features of all photos, two at a time; then the pairs, in one batch, which stands for `times` as many."""
    implementation = load(contestant, settings)
    model = implementation.model
    features: list[Tensor] = []

    def extract() -> None:
        found = [implementation.run(model.extract_features, two) for two in pixels.split(2)]
        names = ("keypoints", "descriptors", "mask", "image_sizes")
        features[:] = [torch.cat([getattr(f, name) for f in found]) for name in names]

    def match() -> Any:
        rows = torch.tensor(pairs)
        return implementation.run(model.match_features, *(x[rows] for x in features))

    return [(1.0, extract), (times, match)]


def detector(bench: Workbench) -> Iterator[Case]:
    """(d) SuperPoint alone."""
    height, width = bench.pixels.shape[-2:]
    settings, images = bench.settings(1024), bench.pixels[:2]
    contestants = [STOCK, EAGER, *(replace(EAGER, dtype=dtype) for dtype in bench.plan.reduced)]
    if bench.plan.in_full:
        contestants.insert(2, replace(EAGER, compiled=True))
    entries = [
        Entry(
            contestant.name,
            lambda c=contestant: [(1.0, partial(load(c, settings).detect, images))],
            found=lambda outputs: keypoints_of(outputs[0], height, width),
            dtype=contestant.dtype,
            required=required(contestant),
        )
        for contestant in contestants
    ]
    yield Case("d", "2 images, 1024 keypoints", entries, work=lambda _: bench.work_of_images(2))


def image_processor(bench: Workbench) -> Iterator[Case]:
    """(e) The image processors, on the photos of a pair."""
    height, width = bench.pixels.shape[-2:]
    pair = bench.images[:2]

    def prepare(processor: Any) -> list:
        return [(1.0, lambda: processor(pair, return_tensors="pt")["pixel_values"])]

    def stock() -> list:
        from transformers.models.lightglue.image_processing_lightglue import LightGlueImageProcessor as Stock

        return prepare(Stock(size={"height": height, "width": width}))

    def ours() -> list:
        return prepare(LightGlueImageProcessor(size={"height": height, "width": width}))

    def found(outputs: list[Any]) -> list[frozenset]:
        return [frozenset(enumerate((outputs[0].flatten() * 255).round().long().tolist()))]

    entries = [Entry(TRANSFORMERS, stock, found), Entry(OURS, ours, found)]
    yield Case("e", f"{pair[0].width} x {pair[0].height} to {width} x {height}, 2 images", entries)


def imports(bench: Workbench) -> Iterator[Case]:
    """(f) Import, each in a new process, the interpreter's own start included."""
    programs = {
        "import transformers": "import transformers",
        "import transformers, lightglue_hf": "import transformers, lightglue_hf",
        "transformers' model class": "from transformers import LightGlueForKeypointMatching",
        "lightglue_hf's model class": "from lightglue_hf import LightGlueForKeypointMatching",
        "nothing": "pass",
    }
    entries = [
        Entry(name, lambda p=program: [(1.0, lambda: subprocess.run([sys.executable, "-c", p], check=True))])
        for name, program in programs.items()
    ]
    yield Case("f", "a new process", entries)


def runtimes(bench: Workbench) -> Iterator[Case]:
    """(g) Exported graphs for one pair: whole, and the matcher alone through all layers and stopping early."""
    pair, n = bench.batch(bench.pairs[:1]), bench.plan.graph_keypoints
    f32, bf16 = Contestant(OPENVINO), Contestant(OPENVINO, dtype="bfloat16")
    plain = [replace(graph, plain=True) for graph in (f32, bf16)]
    whole = {
        (n, False): [EAGER, f32, plain[0], bf16, plain[1], replace(bf16, weights="int8"), Contestant(ONNXRUNTIME)],
        (n, True): [EAGER, f32, bf16, Contestant(ONNXRUNTIME)],
        (2 * n, False): [f32, bf16],
    }
    for (keypoints, adaptive), contestants in whole.items():
        settings = bench.settings(keypoints, adaptive)
        entries = [matching_entry(contestant, settings, [pair]) for contestant in (STOCK, *contestants)]
        yield Case("g", f"{keypoints} keypoints, {words(adaptive)}", entries, work=bench.work_of_pairs)
    yield Case("g", f"{n} keypoints, matcher alone", list(exported_matchers(bench, [f32, bf16], pair)))
    yield Case("g", f"a graph of {n} keypoints", list(making_and_loading(bench, pair)))


def exported_matchers(bench: Workbench, contestants: list[Contestant], pair: Tensor) -> Iterator[Entry]:
    for contestant in contestants:
        for adaptive in (False, True):
            settings = bench.settings(bench.plan.graph_keypoints, adaptive)
            ours = load(EAGER, settings)
            found = ours.run(ours.model.extract_features, pair)
            features = found.keypoints, found.descriptors, found.mask, found.image_sizes
            outputs = ours.run(ours.model.match_features, *features)
            stop = f"{int(outputs.stop[0])} of {ours.model.config.num_hidden_layers} layers"

            def steps(contestant: Contestant = contestant, settings: Settings = settings, features: Any = features):
                return [(1.0, partial(exported(contestant, settings, "matcher").match_features, *features))]

            yield Entry(
                f"{contestant.name}, {f'adaptive, {stop}' if adaptive else words(adaptive)}",
                steps,
                found=lambda outputs: matches_of(outputs[0]),
                reference=matches_of(outputs),
                required=required(contestant),
                allowed=LOST_BY_PRUNING if adaptive else 0,
                missing=contestant.missing(),
            )


def making_and_loading(bench: Workbench, pair: Tensor) -> Iterator[Entry]:
    """What comes before the second inference."""
    contestant, settings = Contestant(OPENVINO), bench.settings(bench.plan.graph_keypoints)
    inputs = {"pixel_values": pair.numpy()}

    def make() -> None:
        from lightglue_hf.export import export

        with tempfile.TemporaryDirectory() as directory:
            options = replace(export_options(contestant, settings, "pipeline"), validate=True)
            export(settings.checkpoint, directory, "openvino", options)

    def start(name: str) -> None:
        import openvino

        exported(contestant, settings)  # there since the case before
        (file,) = bench.scratch.glob(f"seeded-openvino-pipeline-{settings.keypoints}-fp32-full/*.xml")
        openvino.Core().compile_model(file, "CPU", {"CACHE_DIR": str(bench.scratch / name)})(inputs)

    missing = contestant.missing()
    yield Entry(EXPORT, lambda: [(1.0, make)], missing=missing)
    yield Entry(FIRST_INFERENCE, lambda: [(1.0, lambda: start(f"cache-{time.perf_counter_ns()}"))], missing=missing)
    yield Entry(f"{FIRST_INFERENCE}, cached", lambda: [(1.0, lambda: start("cache"))], missing=missing)


def precisions(bench: Workbench) -> Iterator[Row]:
    """(i) Correct matches of the bundled checkpoint as exported, against those of its float32 graph."""
    f32, bf16 = Contestant(OPENVINO), Contestant(OPENVINO, dtype="bfloat16")
    contestants = [f32, bf16, replace(bf16, weights="int8 weights"), replace(bf16, weights="int8")]
    if missing := f32.missing():
        yield Row("i", "all", f32.name, status=f"not measured: {', '.join(missing)} not installed")
        return
    settings = Settings(bench.bundled, 1024)
    processor = LightGlueImageProcessor.from_pretrained(bench.bundled)
    methods = [lightglue(c.name, exported(c, settings), processor, longest_edge=640) for c in contestants]
    totals = Counter[str]()
    for name in ("stereo", "warped-easy"):
        correct = Counter[str]()
        for pair in BUILT_IN[name]():
            for method in methods:
                judged = judge_matches(pair, method.predict(*pair.images))
                assert judged is not None  # these data sets know the truth
                correct[method.name] += judged.correct
        totals += correct
        yield from precision_rows(name, contestants, correct)
    yield from precision_rows(ALL_DATA, contestants, totals)


def precision_rows(data: str, contestants: list[Contestant], correct: Counter[str]) -> Iterator[Row]:
    for contestant in contestants:
        count, share = correct[contestant.name], correct[contestant.name] / correct[contestants[0].name]
        wanted = required(contestant, trained=True)
        status = "ok" if share >= wanted else f"failed: {share:.1%} of the correct matches, {wanted:.0%} required"
        yield Row("i", data, f"{contestant.name}: {count} correct matches", status, kept=share, required=wanted)


def trained(bench: Workbench) -> Iterator[Case]:
    """(h) The bundled checkpoint: what lower precision costs in matches where weights are trained."""
    pairs = [bench.batch([pair]) for pair in bench.pairs[: bench.plan.trained]]
    for adaptive in (False, True):
        settings = bench.settings(1024, adaptive, trained=True)
        contestants = [STOCK, EAGER, *(replace(EAGER, dtype=dtype) for dtype in bench.plan.reduced)]
        if bench.plan.in_full:
            contestants += [replace(EAGER, dtype=dtype, precise=True) for dtype in bench.plan.reduced]
            contestants += [replace(STOCK, dtype=dtype) for dtype in bench.plan.reduced]
        contestants += [Contestant(KORNIA)]
        entries = [
            matching_entry(contestant, settings, pairs, required=required(contestant, trained=True))
            for contestant in contestants
        ]
        count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
        yield Case("h", f"{count}, at most 1024 keypoints, {words(adaptive)}", entries)


TABLES = {
    "a": ("One pair", single_pairs),
    "b": ("Batches", batches),
    "c": ("A collection", collection),
    "d": ("SuperPoint alone", detector),
    "e": ("Image processor alone", image_processor),
    "f": ("Import", imports),
    "g": ("Exported graphs, one pair", runtimes),
    "h": ("The bundled checkpoint: matches kept", trained),
    "i": ("The bundled checkpoint as exported: correct matches kept", precisions),
}
