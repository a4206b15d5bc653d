"""A window that shows frames as they are made: OpenCV's where it has one, or else Tk's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from ..utils.errors import InputError


@contextmanager
def showing(title: str) -> Iterator[Callable[[np.ndarray], bool]]:
    """A function that shows a frame `(height, width, 3)` uint8 RGB, and says whether to go on.

    Closing the window, Escape and q say no.

    Raises:
        InputError: there is no screen, or nothing to open a window with.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError("there is no screen to show anything on (DISPLAY is not set)")
    cv2 = _opencv()
    with _opencv_window(cv2, title) if cv2 is not None else _tk_window(title) as show:
        yield show


def _opencv() -> Any | None:
    """OpenCV, unless it is not there or was built without windows."""
    try:
        import cv2

        gui = next((line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")), "")
        return None if "NONE" in gui else cv2
    except ImportError:
        return None


@contextmanager
def _opencv_window(cv2: Any, title: str) -> Iterator[Callable[[np.ndarray], bool]]:
    def show(image: np.ndarray) -> bool:
        cv2.imshow(title, image[..., ::-1])
        pressed = cv2.waitKey(1) & 0xFF in (27, ord("q"))
        return not pressed and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1

    cv2.namedWindow(title)
    try:
        yield show
    finally:
        cv2.destroyAllWindows()


@contextmanager
def _tk_window(title: str) -> Iterator[Callable[[np.ndarray], bool]]:
    try:
        import tkinter

        from PIL import ImageTk

        root = tkinter.Tk()
    except ImportError:
        raise InputError(
            "nothing can open a window: OpenCV is headless or not installed, and Python has no tkinter; install "
            "opencv-python in its place"
        ) from None
    except tkinter.TclError as error:
        raise InputError(f"no window can be opened: {error}") from None
    open_ = True

    def close(_event: Any = None) -> None:
        nonlocal open_
        open_ = False

    root.title(title)
    root.protocol("WM_DELETE_WINDOW", close)
    for key in ("<Escape>", "q"):
        root.bind(key, close)
    label = tkinter.Label(root, borderwidth=0)
    label.pack()

    def show(image: np.ndarray) -> bool:
        picture = ImageTk.PhotoImage(Image.fromarray(image))
        label.configure(image=picture)
        label.image = picture  # type: ignore[attr-defined] # Tk itself keeps no reference
        root.update()
        return open_

    try:
        yield show
    finally:
        root.destroy()
