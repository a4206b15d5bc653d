"""Packages that come with extras, imported where they are used."""

import importlib
from typing import Any


def import_optional(module: str, extra: str) -> Any:
    """Import a module that an extra of this package brings.

    Raises:
        ImportError: it is not installed; the extra is named.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"{package} cannot be imported ({error}): install lightglue-hf[{extra}]") from error
