"""Errors of the user's, which are one line, and all others."""

from __future__ import annotations


class CommandError(Exception):
    """An error of the user's, not of the program: its message is all there is to say."""


def is_the_users(error: Exception) -> bool:
    """Is this what wrong files, options or machines cause, rather than a fault in the program?"""
    from PIL.Image import DecompressionBombError

    return isinstance(error, (CommandError, DecompressionBombError, ImportError, OSError, RuntimeError, ValueError))


def one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."
