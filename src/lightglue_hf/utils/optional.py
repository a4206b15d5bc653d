"""Packages that come with extras, imported where they are used."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import MissingPackageError


def import_optional(module: str, extra: str) -> Any:
    """Import a module that an extra of this package brings.

    Raises:
        MissingPackageError: it is not installed; the extra is named.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        missing = "is not installed" if error.name == package or not error.name else f"cannot be imported ({error})"
        raise MissingPackageError(f"{package} {missing}: {how_to_install(extra)}") from error


def import_openvino() -> Any:
    """OpenVINO, which must not send what it would send about its use."""
    with without_telemetry():
        return importlib.import_module("openvino")


def how_to_install(extra: str) -> str:
    """What to do about a package that is not installed; the package index does not have this one."""
    return f'install lightglue-hf[{extra}], in a checkout of it by pip install ".[{extra}]"'


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Has OpenVINO and NNCF send nothing, where they are imported and start within.

    They tell a public server unasked that they are imported and what they convert, with which options, unless the
    environment says that it is a build's. Each event is sent by a fork of the process with all its memory, some ten
    for a graph, which without a network takes longer than the conversion.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
