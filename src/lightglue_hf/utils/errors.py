"""What is wrong with the input, rather than with the program.

Errors of input are one line for whoever gave it; all others are faults of the program, and show where they came from.

What is wrong with a file, an option or a checkpoint is raised as `InputError`; what other packages make of broken
input becomes one by `reading`. An `OSError` is what the operating system says of a file or the network. And a
`ValueError` is of input where it is raised by the modules that read input, and by no other package under them; as is
anything that comes out of `from_pretrained`, which reads a checkpoint. What needs more memory than there is was asked
for too much.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

READERS = (
    *("configuration_", "detectors.configuration_", "image_processing_", "loading", "images", "utils"),
    *("convert", "data", "training", "export", "runtime"),
)
"""Modules of this package whose own ValueErrors say what is wrong with a file, an option or a checkpoint."""


class InputError(ValueError):
    """A file, an option or a checkpoint is not as it has to be; the message says which, and how, in one sentence."""


class MissingPackageError(ImportError):
    """A package that an extra of this one brings is not installed; the message says which extra."""


def is_of_input(error: Exception) -> bool:
    """Whether the message of an error is all there is to say; if not, it is a fault of the program."""
    if isinstance(error, (InputError, MissingPackageError, OSError)) or is_out_of_memory(error):
        return True
    if any(frame.f_code.co_name == "from_pretrained" for frame, _ in traceback.walk_tb(error.__traceback__)):
        return True
    if isinstance(error, ImportError):
        return error.name is None and raised_by(error, READERS)  # which says what to install
    if isinstance(error, ValueError) or type(error).__name__ == "DecompressionBombError":
        return raised_by(error, READERS)
    return False


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy, PyTorch on a CPU, or PyTorch on another device had not enough memory."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return "MemoryError" in kinds or "OutOfMemoryError" in kinds or "can't allocate memory" in str(error)


def raised_by(error: Exception, modules: tuple[str, ...]) -> bool:
    """Whether an error was raised in one of these modules of this package itself, and not in what they called."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    name = innermost.f_globals.get("__name__", "")
    package = __package__.rpartition(".")[0]
    return name.startswith(tuple(f"{package}.{module}" for module in modules))


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
    if is_out_of_memory(error):
        return "not enough memory: ask for fewer keypoints, smaller photos or smaller batches"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."
