"""Our classes in place of transformers' own, wherever its Auto classes look them up.

Registered are the configurations, models, the image processor and the pipeline: what `AutoConfig`, `AutoModel`,
`AutoModelForKeypointMatching`, `AutoModelForKeypointDetection`, `AutoImageProcessor` and
`pipeline("keypoint-matching")` give. `from transformers import LightGlueForKeypointMatching` stays transformers' own.
With `LIGHTGLUE_HF_REGISTER=0` in the environment nothing is registered at the import; `register()` does it later.

Importing transformers takes seconds, and its Auto classes more, and nobody needs them all. So each kind of ours is
imported, and registered, right after the module of transformers that looks it up, whenever that is.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .detectors import DETECTORS, configuration_class, model_class

AUTO = "transformers.models.auto"


def register_configurations() -> None:
    from transformers import AutoConfig

    from .configuration_lightglue import LightGlueConfig

    for model_type in DETECTORS:
        AutoConfig.register(model_type, configuration_class(model_type), exist_ok=True)
    AutoConfig.register("lightglue", LightGlueConfig, exist_ok=True)


def register_models() -> None:
    from transformers import AutoModel, AutoModelForKeypointDetection, AutoModelForKeypointMatching

    from .configuration_lightglue import LightGlueConfig
    from .modeling_lightglue import LightGlueForKeypointMatching

    for model_type in DETECTORS:
        config_class = configuration_class(model_type)
        for auto in (AutoModel, AutoModelForKeypointDetection):
            auto.register(config_class, model_class(config_class()), exist_ok=True)
    AutoModel.register(LightGlueConfig, LightGlueForKeypointMatching, exist_ok=True)
    AutoModelForKeypointMatching.register(LightGlueConfig, LightGlueForKeypointMatching, exist_ok=True)


def register_image_processor() -> None:
    """It is found by the names that transformers writes: with no suffix, with "Fast", and in transformers 5 "Pil"."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES, AutoImageProcessor

    from .configuration_lightglue import LightGlueConfig
    from .image_processing_lightglue import LightGlueImageProcessor

    model_type = LightGlueConfig.model_type
    names: Any = IMAGE_PROCESSOR_MAPPING_NAMES
    auto: Any = AutoImageProcessor
    entry = names.pop(model_type, None)  # 4.57 searches it before registered classes
    if "image_processor_classes" in inspect.signature(auto.register).parameters:  # transformers 5
        pil_name = type("LightGlueImageProcessorPil", (LightGlueImageProcessor,), {})
        classes = {"torchvision": LightGlueImageProcessor, "pil": LightGlueImageProcessor, "pil_name": pil_name}
        auto.register(LightGlueConfig, image_processor_classes=classes, exist_ok=True)
        if entry is not None:  # names are looked up among registered classes first
            names[model_type] = dict.fromkeys(entry, LightGlueImageProcessor.__name__)
    else:
        auto.register(LightGlueConfig, slow_image_processor_class=LightGlueImageProcessor, exist_ok=True)
        logging.getLogger(AutoImageProcessor.__module__).addFilter(has_another_processor)


def has_another_processor(record: logging.LogRecord) -> bool:
    """Whether a message is shown: 4.57 says of every processor that it is a slow one, and ours has no other form."""
    if "Using a slow image processor" not in record.getMessage():
        return True
    frame = inspect.currentframe()
    while frame is not None and "image_processor_type" not in frame.f_locals:  # the message does not name it
        frame = frame.f_back
    return frame is None or frame.f_locals["image_processor_type"] != "LightGlueImageProcessor"


def register_pipeline() -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline_keypoint_matching import KeypointMatchingPipeline

    PIPELINE_REGISTRY.supported_tasks["keypoint-matching"]["impl"] = KeypointMatchingPipeline


# what looks classes up, the module that defines ours, and how they are registered
REGISTRATIONS: tuple[tuple[str, str, Callable[[], None]], ...] = (
    (f"{AUTO}.configuration_auto", f"{__package__}.configuration_lightglue", register_configurations),
    (f"{AUTO}.modeling_auto", f"{__package__}.modeling_lightglue", register_models),
    (f"{AUTO}.image_processing_auto", f"{__package__}.image_processing_lightglue", register_image_processor),
    ("transformers.pipelines", f"{__package__}.pipeline_keypoint_matching", register_pipeline),
)


# these make the module that `import transformers` gives; the second makes it again
MAKES_THE_FACE = ("transformers", "transformers.processing_utils")


def remove_stand_in() -> None:
    """transformers 5.5 shows an `AutoImageProcessor` that asks for torchvision; the class behind it does without.

    Nothing is imported here: transformers may be imported by a module of ours, which is half made then.
    """
    face = sys.modules["transformers"]
    getattr(face, "_object_missing_backend", {}).pop("AutoImageProcessor", None)
    if getattr(vars(face).get("AutoImageProcessor"), "is_dummy", False):
        del face.AutoImageProcessor  # type: ignore[attr-defined]


class AfterImport(MetaPathFinder):
    """Does something after a module is imported: theirs imports ours, and ours, which may import theirs, registers."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[], object]] = {}
        for theirs, ours, register in REGISTRATIONS:
            self.actions[theirs] = lambda ours=ours: import_module(ours)  # type: ignore[misc]
            self.actions[ours] = register
        for module in MAKES_THE_FACE:
            self.actions[module] = remove_stand_in

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.actions:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.actions[fullname]()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register the configurations, models, image processor and pipeline, also over transformers' own.

    `import lightglue_hf` does it, unless `LIGHTGLUE_HF_REGISTER=0` is in the environment; a second
    time changes nothing.
    """
    if any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, AfterImport())
    for theirs, ours, _ in REGISTRATIONS:
        if theirs in sys.modules:
            import_module(ours)
    if "transformers" in sys.modules:
        remove_stand_in()
