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
        raise MissingPackageError(f"{package} {missing}: {how_to_install(extra)}") from error


def how_to_install(extra: str) -> str:
    """What to do about a package that is not installed; the package index does not have this one."""
    return f'install lightglue-hf[{extra}], in a checkout of it by pip install ".[{extra}]"'
