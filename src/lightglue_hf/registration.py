"""Our classes in place of transformers' own, wherever its Auto classes look them up.

Importing transformers' Auto classes takes seconds, and nobody needs them all. So each kind of ours is imported, and
registered, right after the module of transformers that looks it up, whenever that is.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import transformers

AUTO = "transformers.models.auto"


def register_configurations() -> None:
    from transformers import AutoConfig

    from .configuration_lightglue import LightGlueConfig
    from .detectors.configuration_superpoint import SuperPointConfig

    AutoConfig.register("superpoint", SuperPointConfig, exist_ok=True)
    AutoConfig.register("lightglue", LightGlueConfig, exist_ok=True)


def register_models() -> None:
    from transformers import AutoModel, AutoModelForKeypointDetection, AutoModelForKeypointMatching

    from .configuration_lightglue import LightGlueConfig
    from .detectors.superpoint import SuperPointConfig, SuperPointForKeypointDetection
    from .modeling_lightglue import LightGlueForKeypointMatching

    AutoModel.register(SuperPointConfig, SuperPointForKeypointDetection, exist_ok=True)
    AutoModel.register(LightGlueConfig, LightGlueForKeypointMatching, exist_ok=True)
    AutoModelForKeypointDetection.register(SuperPointConfig, SuperPointForKeypointDetection, exist_ok=True)
    AutoModelForKeypointMatching.register(LightGlueConfig, LightGlueForKeypointMatching, exist_ok=True)


def register_image_processor() -> None:
    from .configuration_lightglue import LightGlueConfig
    from .image_processing_lightglue import register_image_processor

    register_image_processor(LightGlueConfig)


def register_pipeline() -> None:
    from .pipeline_keypoint_matching import register_pipeline

    register_pipeline()


# what looks classes up, the module that defines ours, and how they are registered
REGISTRATIONS: tuple[tuple[str, str, Callable[[], None]], ...] = (
    (f"{AUTO}.configuration_auto", f"{__package__}.configuration_lightglue", register_configurations),
    (f"{AUTO}.modeling_auto", f"{__package__}.modeling_lightglue", register_models),
    (f"{AUTO}.image_processing_auto", f"{__package__}.image_processing_lightglue", register_image_processor),
    ("transformers.pipelines", f"{__package__}.pipeline_keypoint_matching", register_pipeline),
)


class AfterImport(MetaPathFinder):
    """Does something after a module is imported: theirs imports ours, and ours, which may import theirs, registers."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[], object]] = {}
        for theirs, ours, register in REGISTRATIONS:
            self.actions[theirs] = lambda ours=ours: import_module(ours)  # type: ignore[misc]
            self.actions[ours] = register

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
    """Register the configurations, models, image processor and pipeline, also over transformers' own."""
    if any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, AfterImport())
    for theirs, ours, _ in REGISTRATIONS:
        if theirs in sys.modules:
            import_module(ours)
    if "AutoImageProcessor" in getattr(transformers, "_object_missing_backend", {}):
        # transformers 5.5 shows a stand-in that asks for torchvision, and never imports what is behind it
        import_module(f"{AUTO}.image_processing_auto")
