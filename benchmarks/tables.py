"""What is measured: the tables as data, and for each a function that makes its cases."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightglue_hf import KeypointFeatures
from lightglue_hf.evaluation.datasets import Pair

from . import memory, published
from .contestants import (
    ADAPTIVE,
    ALL_LAYERS,
    KORNIA,
    ONNXRUNTIME,
    OPENVINO,
    PLAIN,
    PUBLISHED,
    PYTORCH,
    TRANSFORMERS,
    Contestant,
    Task,
    detector_of,
    export_options,
    exported,
    features_as_lists,
    load,
    load_detector,
    our_model,
)
from .limits import Work, work_of
from .measure import Case, Entry, Goal, Loaded, Row
from .photos import (
    HEIGHT,
    WIDTH,
    Matched,
    pairs_of_images,
    pixel_values,
    quality,
    sampled_pairs,
    scenes,
    share_of_keypoints,
)

BF16, INT8 = "bfloat16", "int8"
STOCK = Contestant(TRANSFORMERS)
NAMES = {
    "superpoint": "SuperPoint + LightGlue",
    "aliked": "ALIKED-N16 + LightGlue",
    "aliked-t16": "ALIKED-T16",
    "disk": "DISK + LightGlue",
    "xfeat": "XFeat + LighterGlue",
    "tiny": "tiny",
}
X_TRANSFORMERS, X_PUBLISHED, X_KORNIA, X_PLAIN, X_ONE = (
    f"times {name}" for name in (TRANSFORMERS, PUBLISHED, KORNIA, PLAIN, "one at a time")
)
X_WITHOUT = "times without"
WITHOUT, WITH = "without rejection", "early rejection"
REJECTION = {"xfeat": 0.02, "superpoint": 0.04}  # as docs/checkpoints.md recommends
ONE_BY_ONE, TOGETHER = "one at a time", "together"


def named(checkpoint: str) -> str:
    return NAMES.get(checkpoint, checkpoint)


def of_plan(bench: Workbench, *checkpoints: str) -> list[str]:
    """Those of the checkpoints that the plan has."""
    return [checkpoint for checkpoint in checkpoints if checkpoint in bench.plan.checkpoints]


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Args:
        checkpoints: of the pairs.
        detectors: measured alone.
        keypoints: of each image at most.
        scenes: pairs with ground truth that judge what is timed; the first is timed.
        judged: of them that judge the precisions.
        photos: of the collection.
        sampled: pairs of the collection that are measured: of one scene, and of different ones.
        batch: pairs that are matched together, with `batch_keypoints`.
        many: keypoints of the memory's peak.
        sizes: pairs of photos of different sizes.
        height, width: of the images.
    """

    checkpoints: tuple[str, ...] = ("xfeat", "aliked", "disk", "superpoint", "tiny")
    detectors: tuple[str, ...] = ("superpoint", "aliked", "aliked-t16", "disk", "xfeat")
    keypoints: int = 1024
    scenes: int = 4
    judged: int = 10
    photos: int = 20
    sampled: tuple[int, int] = (2, 4)
    batch: int = 16
    batch_keypoints: int = 512
    many: int = 4096
    sizes: int = 60
    height: int = HEIGHT
    width: int = WIDTH


QUICK = Plan(("xfeat",), ("xfeat",), scenes=2, judged=2, photos=4, sampled=(1, 1), batch=4, many=1024, sizes=10)
LONG = ("memory", "precision", "growth")  # tables that --quick leaves out, unless they are asked for


@dataclass
class Workbench:
    """What the cases are made of; the photos are read once, and so is the arithmetic of each checkpoint counted."""

    plan: Plan
    scratch: Path
    device: str = "cpu"
    counted: dict[tuple[str, ...], Work] = field(default_factory=dict)

    @cached_property
    def scenes(self) -> list[Pair]:
        return scenes(max(self.plan.judged, self.plan.scenes, self.plan.photos // 2))

    def task(self, checkpoint: str, keypoints: int | None = None, **settings: Any) -> Task:
        plan = self.plan
        sides = {"height": plan.height, "width": plan.width}
        return Task(checkpoint, keypoints or plan.keypoints, self.scratch, device=self.device, **(sides | settings))

    def pixels(self, checkpoint: str, count: int) -> Tensor:
        """`(count, 2, 3, height, width)`, the first scenes as the checkpoint's processor gives them."""
        pairs = [pair.images for pair in self.scenes[:count]]
        return pixel_values(pairs, self.task(checkpoint).processor(), self.plan.height, self.plan.width)

    def photos(self, checkpoint: str, count: int) -> Tensor:
        """`(count, 3, height, width)`; 2k and 2k + 1 show the same scene."""
        return self.pixels(checkpoint, (count + 1) // 2).flatten(0, 1)[:count]

    def pairs(self, checkpoint: str, count: int) -> Tensor:
        """`(count, 2, 3, height, width)`, pairs that overlap, and pairs that do not where there are no more scenes."""
        n = len(self.scenes)
        same = [(2 * i, 2 * i + 1) for i in range(n)]
        different = [(i, j) for i, j in pairs_of_images(2 * n) if i // 2 != j // 2]
        index = (same + different[:: max(1, len(different) // 60)])[:count]
        return self.photos(checkpoint, 2 * n)[torch.tensor(index)]

    def judged(self, match: Callable[[int], Matched], count: int | None = None) -> dict[str, float]:
        """Correct matches of the first scenes, see `quality`."""
        return quality(self.scenes[: count or self.plan.scenes], match, self.plan.height, self.plan.width)

    def work(self, key: tuple[str, ...], call: Callable[[], Callable[[], Any]]) -> Work:
        """The arithmetic of what `call` makes, counted once."""
        if key not in self.counted:
            self.counted[key] = work_of(call())
        return self.counted[key]

    def features(self, checkpoint: str, pixels: Tensor) -> KeypointFeatures:
        """Of photos `(n, 3, height, width)` or pairs of them, by our model in float32."""
        with torch.no_grad():
            return our_model(self.task(checkpoint)).extract_features(pixels)


def ours(*precisions: str, engines: tuple[str, ...] = (PYTORCH, OPENVINO)) -> list[Contestant]:
    return [Contestant(engine, precision) for engine in engines for precision in precisions]


# ---------------------------------------------------------------------------------------------------------------------
# Pairs

PAIR_CONTESTANTS = {
    "xfeat": [Contestant(PUBLISHED)],
    "aliked": [Contestant(PUBLISHED), Contestant(KORNIA)],
    "disk": [Contestant(PUBLISHED)],
    "superpoint": [
        Contestant(PUBLISHED),
        Contestant(KORNIA),
        Contestant(OPENVINO, form=PLAIN),
        Contestant(ONNXRUNTIME, form=PLAIN),
    ],
}
"""Beside ours and transformers' SuperPoint + LightGlue, which are with every checkpoint."""


def pairs(bench: Workbench) -> Iterator[Case]:
    stock = pair_entry(bench, "superpoint", STOCK)
    stock = replace(stock, name=f"{TRANSFORMERS}, {NAMES['superpoint']}", load=cache(stock.load))
    for checkpoint in bench.plan.checkpoints:
        contestants = [*PAIR_CONTESTANTS.get(checkpoint, []), *ours("float32", BF16)]
        entries = [stock, *(pair_entry(bench, checkpoint, contestant) for contestant in contestants)]
        yield Case("pairs", named(checkpoint), entries, {X_TRANSFORMERS: stock.name, X_PUBLISHED: PUBLISHED})


def pair_entry(bench: Workbench, checkpoint: str, contestant: Contestant) -> Entry:
    task = bench.task(checkpoint)

    def loaded() -> Loaded:
        implementation = load(contestant, task)
        pixels = bench.pixels(checkpoint, bench.plan.scenes)

        def match(i: int) -> Matched:
            return implementation.matched(implementation.match(pixels[i : i + 1]))[0]

        return Loaded([(1, lambda: implementation.match(pixels[:1]))], cache(lambda: bench.judged(match)))

    def counted() -> Callable[[], Any]:
        return partial(our_model(task), bench.pixels(checkpoint, 1))

    limited = contestant.engine in (PYTORCH, OPENVINO) and contestant.form == ADAPTIVE
    return Entry(
        contestant.name,
        loaded,
        work=bench.work(("pair", checkpoint), counted) if limited else None,
        dtype=contestant.precision,
        goals=GOALS.get(("pairs", checkpoint, contestant.name), ()),
        missing=contestant.missing(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Detectors


def detectors(bench: Workbench) -> Iterator[Case]:
    for checkpoint in bench.plan.detectors:
        others = [Contestant(engine) for engine in published.DETECTORS[checkpoint]]
        others += [STOCK] if checkpoint == "superpoint" else []
        entries = [detector_entry(bench, checkpoint, contestant) for contestant in (*others, *ours("float32", BF16))]
        baselines = {X_PUBLISHED: PUBLISHED, X_KORNIA: KORNIA, X_TRANSFORMERS: TRANSFORMERS}
        yield Case("detectors", named(checkpoint).split(" + ")[0], entries, baselines)


def detector_entry(bench: Workbench, checkpoint: str, contestant: Contestant) -> Entry:
    task = bench.task(checkpoint)

    def loaded() -> Loaded:
        image = bench.photos(checkpoint, 1)
        detect = load_detector(contestant, task)
        reference = load_detector(Contestant(PYTORCH), task)

        def judge() -> dict[str, float]:
            found, wanted = detect(image), reference(image)
            return {"keypoints": len(found[0]), "in common": share_of_keypoints(found, wanted)}

        return Loaded([(1, lambda: detect(image))], judge)

    def counted() -> Callable[[], Any]:
        return partial(detector_of(task).extract_features, bench.photos(checkpoint, 1))

    return Entry(
        contestant.name,
        loaded,
        work=bench.work(("detector", checkpoint), counted) if contestant.engine in (PYTORCH, OPENVINO) else None,
        dtype=contestant.precision,
        goals=GOALS.get(("detectors", checkpoint, contestant.name), ()),
        missing=contestant.missing(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The matcher alone


def matcher(bench: Workbench) -> Iterator[Case]:
    """SuperPoint's features of the stereo pair, in float32, matched."""
    features = bench.features("superpoint", bench.pixels("superpoint", 1))
    for precision in ("float32", BF16):
        contestants = [
            Contestant(OPENVINO, precision, PLAIN),
            *(Contestant(ONNXRUNTIME, form=form) for form in (PLAIN, ALL_LAYERS, ADAPTIVE) if precision == "float32"),
            *(Contestant(engine) for engine in (PUBLISHED, KORNIA) if precision == "float32"),
            *(
                Contestant(engine, precision, form)
                for engine in (PYTORCH, OPENVINO)
                for form in (ALL_LAYERS, ADAPTIVE)
            ),
        ]
        entries = [matcher_entry(bench, contestant, features) for contestant in contestants]
        yield Case("matcher", f"{precision}, {bench.plan.keypoints} keypoints", entries, {X_PLAIN: entries[0].name})


def matcher_entry(bench: Workbench, contestant: Contestant, features: KeypointFeatures) -> Entry:
    task = bench.task("superpoint")

    def loaded() -> Loaded:
        match = load_matcher(contestant, task, features)
        return Loaded([(1, lambda: match(features))], lambda: bench.judged(lambda _: match(features)[0], count=1))

    def counted() -> Callable[[], Any]:
        return partial(our_model(task, contestant.form).match_features, features)

    limited = contestant.engine in (PYTORCH, OPENVINO) and contestant.form != PLAIN
    return Entry(
        contestant.name,
        loaded,
        work=bench.work(("matcher", contestant.form), counted) if limited else None,
        dtype=contestant.precision,
        goals=GOALS.get(("matcher", "superpoint", contestant.name), ()),
        missing=contestant.missing(),
    )


@torch.no_grad()
def load_matcher(
    contestant: Contestant, task: Task, example: KeypointFeatures
) -> Callable[[KeypointFeatures], list[Matched]]:
    """Features of pairs -> matched points of each pair."""
    engine, precision, form = contestant.engine, contestant.precision, contestant.form
    if engine in (PUBLISHED, KORNIA):
        make = published.cvg_lightglue if engine == PUBLISHED else published.kornia_lightglue
        matcher = make(task.directory())
        return torch.no_grad()(
            lambda features: [matcher(features_as_lists(pair), task.height, task.width) for pair in each(features)]
        )
    if form == PLAIN:
        from .plain import plain_matcher

        plain = plain_matcher(engine, precision, our_model(task, form), example)
        return lambda features: matched_points(features, plain(features))
    if engine in (OPENVINO, ONNXRUNTIME):
        graph = exported(contestant, task, "matcher")
        return lambda features: matched_points(features, graph.match_features(features).matches)
    model = our_model(task, form)
    runner = load(contestant, task)
    return lambda features: matched_points(features, runner.run(model.match_features, features).matches)


def each(features: KeypointFeatures) -> Iterator[KeypointFeatures]:
    return (features[i] for i in range(features.shape[0]))


def matched_points(features: KeypointFeatures, matches: Tensor) -> list[Matched]:
    return [
        (points[0, partner[0] >= 0], points[1, partner[0][partner[0] >= 0]])
        for points, partner in zip(features["keypoints"], matches)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# A collection


def collection(bench: Workbench) -> Iterator[Case]:
    """Features of all photos once, then a sample of their pairs, whose time is scaled to all pairs."""
    n = bench.plan.photos
    sample = sampled_pairs(n, *bench.plan.sampled)
    baseline = f"{TRANSFORMERS}, {NAMES['superpoint']}, pair by pair"

    def transformers() -> Loaded:
        implementation = load(STOCK, bench.task("superpoint"))
        photos = bench.photos("superpoint", n)
        steps = [
            (times, partial(implementation.match, photos[torch.tensor(pair)][None]))
            for times, pairs in sample
            for pair in pairs
        ]
        first = partial(implementation.match, photos[None, :2])
        return Loaded(steps, lambda: bench.judged(lambda _: implementation.matched(first())[0], count=1))

    entries = [Entry(baseline, transformers, missing=STOCK.missing())]
    for checkpoint in of_plan(bench, "xfeat", "superpoint"):
        plain = [(contestant, {}) for contestant in (Contestant(PYTORCH), *ours("float32", BF16, engines=(OPENVINO,)))]
        rejecting = (Contestant(OPENVINO), {"rejection_threshold": REJECTION[checkpoint]})
        for contestant, settings in (*plain, rejecting):
            name = f"{contestant.name}, {WITH}" if settings else contestant.name
            entries.append(
                Entry(
                    f"{named(checkpoint)}, {name}",
                    partial(features_once, bench, checkpoint, contestant, settings, sample),
                    goals=GOALS.get(("collection", checkpoint, name), ()),
                    missing=contestant.missing(),
                )
            )
    (_, same), (_, different) = sample
    measured = f"measured: {len(same)} that overlap, {len(different)} that do not"
    setting = f"{n} photos, {len(pairs_of_images(n))} pairs ({measured})"
    yield Case("collection", setting, entries, {X_TRANSFORMERS: baseline})


def features_once(
    bench: Workbench, checkpoint: str, contestant: Contestant, settings: dict[str, Any], sample: Any
) -> Loaded:
    task, photos = bench.task(checkpoint, matcher=settings), bench.photos(checkpoint, bench.plan.photos)
    found: list[KeypointFeatures] = []
    if contestant.engine == OPENVINO:
        detector = exported(contestant, task, "detector").extract_features
        size = 1  # graphs of one image
    else:
        runner = load(contestant, task)
        detector, size = partial(runner.run, runner.model.extract_features), 2
    matcher = load_matcher(contestant, task, KeypointFeatures())

    def extract() -> None:
        found[:] = [KeypointFeatures.cat([detector(part) for part in photos.split(size)])]

    def match(pairs: list[tuple[int, int]]) -> list[Matched]:
        return matcher(found[0].pairs(pairs))

    batches = [(times, partial(match, pairs)) for times, pairs in sample]
    return Loaded([(1, extract), *batches], lambda: bench.judged(lambda _: match([(0, 1)])[0], count=1))


# ---------------------------------------------------------------------------------------------------------------------
# Pairs without overlap


def overlap(bench: Workbench) -> Iterator[Case]:
    """The matcher alone on pairs of different scenes, and what is kept of the pairs of one scene."""
    for checkpoint, engine in (("xfeat", PYTORCH), ("xfeat", OPENVINO), ("superpoint", PYTORCH)):
        if checkpoint not in bench.plan.checkpoints:
            continue
        contestant = Contestant(engine)
        entries = [
            Entry(
                name,
                partial(without_overlap, bench, checkpoint, contestant, settings),
                pairs=bench.plan.judged - 1,
                kept_of=WITHOUT,
                goals=GOALS.get(("overlap", "", name), ()),
                missing=contestant.missing(),
            )
            for name, settings in ((WITHOUT, {}), (WITH, {"rejection_threshold": REJECTION[checkpoint]}))
        ]
        yield Case("overlap", f"{named(checkpoint)}, {contestant.name}", entries, {X_WITHOUT: WITHOUT})


def without_overlap(bench: Workbench, checkpoint: str, contestant: Contestant, settings: dict[str, Any]) -> Loaded:
    count = bench.plan.judged
    features = bench.features(checkpoint, bench.photos(checkpoint, 2 * count))
    match = load_matcher(contestant, bench.task(checkpoint, matcher=settings), features)
    same = [features.pairs([(2 * i, 2 * i + 1)]) for i in range(count)]
    different = [features.pairs([(2 * i, 2 * i + 3)]) for i in range(count - 1)]
    steps = [(1.0, partial(match, pair)) for pair in different]
    return Loaded(steps, lambda: bench.judged(lambda i: match(same[i])[0], count))


# ---------------------------------------------------------------------------------------------------------------------
# Precision


def precision(bench: Workbench) -> Iterator[Case]:
    """Correct matches of each precision against those of float32 on the same engine; nothing is timed."""
    for checkpoint in bench.plan.checkpoints:
        entries = []
        for engine, form, precisions in (
            (PYTORCH, ADAPTIVE, ("float32", BF16)),
            (OPENVINO, ADAPTIVE, ("float32", BF16)),
            (OPENVINO, ALL_LAYERS, ("float32", BF16, INT8)),
        ):
            reference = Contestant(engine, form=form).name
            for each_precision in precisions:
                contestant = Contestant(engine, each_precision, form)
                entries.append(
                    Entry(
                        contestant.name,
                        partial(only_judged, bench, checkpoint, contestant),
                        kept_of=reference,
                        goals=GOALS.get(("precision", "", each_precision), ()),
                        missing=contestant.missing(),
                    )
                )
        yield Case("precision", named(checkpoint), entries)


def only_judged(bench: Workbench, checkpoint: str, contestant: Contestant) -> Loaded:
    implementation = load(contestant, bench.task(checkpoint))
    pixels = bench.pixels(checkpoint, bench.plan.judged)

    def match(i: int) -> Matched:
        return implementation.matched(implementation.match(pixels[i : i + 1]))[0]

    return Loaded([], lambda: bench.judged(match, bench.plan.judged))


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def batches(bench: Workbench) -> Iterator[Case]:
    """The same pairs one at a time and together; and what stopping early saves of the matcher's time."""
    count, keypoints = bench.plan.batch, bench.plan.batch_keypoints
    ours = Contestant(PYTORCH)
    for checkpoint in of_plan(bench, "superpoint", "xfeat"):
        entries = [
            Entry(
                name,
                partial(in_batches, bench, checkpoint, ours, size),
                pairs=count,
                goals=GOALS.get(("batches", "", name), ()),
            )
            for name, size in ((ONE_BY_ONE, 1), (TOGETHER, count))
        ]
        setting = f"{named(checkpoint)}, {ours.name}: {count} pairs of {keypoints} keypoints"
        yield Case("batches", setting, entries, {X_ONE: ONE_BY_ONE})
    if "superpoint" not in bench.plan.checkpoints:
        return
    entries = [
        Entry(
            form,
            partial(batch_matcher, bench, replace(ours, form=form)),
            pairs=count,
            work=bench.work(("batch", form), partial(counted_batch, bench, form)),
            dtype=ours.precision,
            goals=GOALS.get(("batches", "matcher", form), ()),
        )
        for form in (ALL_LAYERS, ADAPTIVE)
    ]
    promised = 1 - bench.counted["batch", ADAPTIVE].total() / bench.counted["batch", ALL_LAYERS].total()
    setting = f"{NAMES['superpoint']}'s matcher alone, {ours.name}: {count} pairs of {keypoints} keypoints"
    yield Case("batches", setting, entries, {}, partial(share_saved, promised))


def in_batches(bench: Workbench, checkpoint: str, contestant: Contestant, size: int) -> Loaded:
    implementation = load(contestant, bench.task(checkpoint, bench.plan.batch_keypoints))
    parts = bench.pairs(checkpoint, bench.plan.batch).split(size)
    first = partial(implementation.match, parts[0])
    return Loaded(
        [(1.0, partial(implementation.match, part)) for part in parts],
        lambda: bench.judged(lambda i: implementation.matched(first())[i], count=1),
    )


def batch_features(bench: Workbench) -> tuple[Task, KeypointFeatures]:
    task = bench.task("superpoint", bench.plan.batch_keypoints)
    with torch.no_grad():
        return task, our_model(task).extract_features(bench.pairs("superpoint", bench.plan.batch))


def batch_matcher(bench: Workbench, contestant: Contestant) -> Loaded:
    task, features = batch_features(bench)
    match = load_matcher(contestant, task, features)
    return Loaded([(1.0, lambda: match(features))], lambda: bench.judged(lambda i: match(features)[i], count=1))


def counted_batch(bench: Workbench, form: str) -> Callable[[], Any]:
    task, features = batch_features(bench)
    return partial(our_model(task, form).match_features, features)


def share_saved(promised: float, rows: dict[str, Row]) -> None:
    """Of the time that the arithmetic not done promises, the share that is really saved."""
    whole, early = (rows[form].figures.get("seconds") for form in (ALL_LAYERS, ADAPTIVE))
    if whole and early and promised > 0:
        rows[ADAPTIVE].figures["saved of promised"] = (1 - early / whole) / promised


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def peak_memory(bench: Workbench) -> Iterator[Case]:
    """SuperPoint's threshold is 0 here, so that there are as many keypoints as are asked for."""
    task = bench.task("superpoint", bench.plan.many, detector={"keypoint_threshold": 0.0})
    contestants = [STOCK, *ours("float32")]

    def derive(rows: dict[str, Row]) -> None:
        whole = rows[STOCK.name].figures.get("peak")
        for row in rows.values():
            if whole and "peak" in row.figures:
                row.figures["of transformers"] = row.figures["peak"] / whole

    entries = [
        Entry(
            contestant.name,
            partial(memory_figures, contestant, task),
            goals=GOALS.get(("memory", "", contestant.name), ()),
            missing=contestant.missing(),
        )
        for contestant in contestants
    ]
    yield Case("memory", f"{NAMES['superpoint']}, a pair of {bench.plan.many} keypoints", entries, {}, derive)


def growing_memory(bench: Workbench) -> Iterator[Case]:
    task = bench.task("tiny", bench.plan.batch_keypoints, height=0, width=0)
    contestants = [Contestant(OPENVINO, "float32", ALL_LAYERS, runtime_cache=cache) for cache in (None, 0, 5000)]
    low, high = memory.SIDES
    entries = [
        Entry(c.name, partial(memory_figures, c, task, bench.plan.sizes), missing=c.missing()) for c in contestants
    ]
    yield Case("growth", f"tiny, {bench.plan.sizes} pairs of {low}x{low} to {high}x{high} pixels", entries)


def memory_figures(contestant: Contestant, task: Task, pairs: int = 0) -> Loaded:
    return Loaded([], lambda: memory.measured(contestant, task, pairs))


# ---------------------------------------------------------------------------------------------------------------------
# Before the second inference


def startup(bench: Workbench) -> Iterator[Case]:
    """An adaptive OpenVINO graph of the whole model made and checked, and loaded with its first inference."""
    for checkpoint in bench.plan.checkpoints[:1]:
        contestant, task = Contestant(OPENVINO), bench.task(checkpoint)

        def make(task: Task = task, contestant: Contestant = contestant) -> Loaded:
            from lightglue_hf.export import export

            options = replace(export_options(contestant, task), validate=True)

            def call() -> None:
                with tempfile.TemporaryDirectory() as directory:
                    export(task.directory(), directory, "openvino", options)

            return Loaded([(1, call)])

        def start(task: Task = task, contestant: Contestant = contestant, checkpoint: str = checkpoint) -> Loaded:
            pixels = bench.pixels(checkpoint, 1)
            return Loaded([(1, lambda: load(contestant, task).match(pixels))])

        entries = [
            Entry(name, loaded, goals=GOALS.get(("startup", "", name), ()), missing=contestant.missing())
            for name, loaded in ((EXPORTED, make), (STARTED, start))
        ]
        yield Case("startup", named(checkpoint), entries)


EXPORTED, STARTED = "exported and checked", "loaded, with the first inference"

# ---------------------------------------------------------------------------------------------------------------------
# Tables and goals


class Table(NamedTuple):
    """A table of a page.

    Args:
        title: of its section.
        page: in docs/.
        cases: makes what is compared.
        columns: names of figures, in order; "time" is the median with its spread.
        note: a paragraph below the title.
    """

    title: str
    page: str
    cases: Callable[[Workbench], Iterator[Case]]
    columns: tuple[str, ...]
    note: str = ""


PERFORMANCE, EXPORT = "performance.md", "export.md"
TABLES = {
    "pairs": Table(
        "Pairs",
        PERFORMANCE,
        pairs,
        ("time", X_TRANSFORMERS, X_PUBLISHED, "correct", "inliers", "limit"),
        "Photos to matches, detector included, one pair.",
    ),
    "detectors": Table(
        "Detectors alone",
        PERFORMANCE,
        detectors,
        ("time", X_PUBLISHED, X_KORNIA, X_TRANSFORMERS, "keypoints", "in common", "limit"),
        "One photo; in common: of the keypoints that ours in float32 finds, those found within a pixel.",
    ),
    "collection": Table(
        "A collection",
        PERFORMANCE,
        collection,
        ("time", X_TRANSFORMERS, "correct"),
        "All pairs of the photos, features once each. The times of some pairs that overlap and of some that do not "
        "are scaled to all such pairs.",
    ),
    "overlap": Table(
        "Pairs without overlap",
        PERFORMANCE,
        overlap,
        ("time", X_WITHOUT, "correct", "inliers", "kept correct", "kept inliers"),
        "The matcher's time for a pair that shows nothing in common; correct matches and inliers of pairs that do.",
    ),
    "batches": Table(
        "Batches",
        PERFORMANCE,
        batches,
        ("time", X_ONE, "saved of promised", "correct", "limit"),
        "Time of each pair. Adaptive depth and width promise as much of the time as they leave out of the arithmetic.",
    ),
    "memory": Table("Memory", PERFORMANCE, peak_memory, ("peak", "of transformers")),
    "matcher": Table(
        "The matcher alone", EXPORT, matcher, ("time", X_PLAIN, "correct", "limit"), "Features to matches, one pair."
    ),
    "precision": Table(
        "Precision",
        EXPORT,
        precision,
        ("correct", "kept correct", "inliers", "kept inliers"),
        "Correct matches kept of those of float32 on the same engine.",
    ),
    "growth": Table(
        "Photos of many sizes",
        EXPORT,
        growing_memory,
        ("growth", "later growth"),
        "Growth of resident memory from the fifth pair on, and in the second half.",
    ),
    "startup": Table("Export and start", EXPORT, startup, ("time",)),
}

BEST = (Goal(X_TRANSFORMERS, 15),)
GOALS: dict[tuple[str, str, str], tuple[Goal, ...]] = {
    ("pairs", "xfeat", "PyTorch"): (Goal(X_TRANSFORMERS, 7), Goal(X_PUBLISHED, 1.5)),
    ("pairs", "xfeat", "OpenVINO"): BEST,
    ("pairs", "superpoint", "OpenVINO"): (Goal(X_TRANSFORMERS, 3.3),),
    ("pairs", "superpoint", "OpenVINO, bfloat16"): (Goal(X_TRANSFORMERS, 6),),
    **{
        ("detectors", name, contestant): (Goal(X_KORNIA, bound), Goal(X_PUBLISHED, bound))
        for name in ("aliked", "aliked-t16")
        for contestant, bound in (("PyTorch", 4), ("OpenVINO, bfloat16", 8))
    },
    ("detectors", "disk", "PyTorch"): (Goal("limit", 0.9),),
    ("detectors", "disk", "PyTorch, bfloat16"): (Goal(X_PUBLISHED, 2.5),),
    ("matcher", "superpoint", "OpenVINO, all layers"): (Goal(X_PLAIN, 1.3),),
    ("matcher", "superpoint", "OpenVINO, bfloat16, all layers"): (Goal(X_PLAIN, 1.6),),
    ("collection", "xfeat", "OpenVINO"): (Goal(X_TRANSFORMERS, 25),),
    ("collection", "superpoint", "OpenVINO, bfloat16"): (Goal(X_TRANSFORMERS, 8),),
    ("overlap", "", WITH): (Goal(X_WITHOUT, 2), Goal("kept inliers", 0.99)),
    ("precision", "", BF16): (Goal("kept correct", 0.99),),
    ("precision", "", INT8): (Goal("kept correct", 0.97),),
    ("batches", "", TOGETHER): (Goal(X_ONE, 1),),
    ("batches", "matcher", ADAPTIVE): (Goal("saved of promised", 0.8),),
    ("memory", "", "PyTorch"): (Goal("of transformers", 0.35, at_most=True),),
    ("startup", "", EXPORTED): (Goal("seconds", 60, at_most=True),),
    ("startup", "", STARTED): (Goal("seconds", 5, at_most=True),),
}
"""By table, checkpoint (or "" for every one) and contestant."""
