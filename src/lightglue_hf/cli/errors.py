"""Errors of input are one line; all others are faults of the program, and show where they came from.

What is wrong with a file, an option or a checkpoint is raised as `InputError`; what other packages make of broken
input becomes one by `reading`. An `OSError` is what the operating system says of a file or the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..utils.errors import InputError, MissingPackageError

INPUT_ERRORS = (InputError, MissingPackageError, OSError)


@contextmanager
def reading(problem: str = "") -> Iterator[None]:
    """Whatever is raised within is an `InputError`: broken input makes libraries raise anything.

    Only for code that reads input, never for code that computes with it.

    Args:
        problem: what goes before the message.
    """
    try:
        yield
    except MissingPackageError:
        raise
    except Exception as error:
        raise InputError(f"{problem}: {one_line(error)}" if problem else one_line(error)) from error


def one_line(error: Exception) -> str:
    """The message of an error in one line of at most 400 characters."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."
