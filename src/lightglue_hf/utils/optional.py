"""Packages that come with extras, imported where they are used."""

import importlib
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
        raise MissingPackageError(f"{package} {missing}: install lightglue-hf[{extra}]") from error
