"""The command `lightglue-hf`."""

from .commands import main

__all__ = ["main"]
