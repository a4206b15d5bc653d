"""Video: points followed from frame to frame, and a plane found in every frame.

    with open_frames("walk.mp4") as frames:
        tracker = FlowTracker(FrameFeatures(model, processor))
        for frame in frames:
            tracks = tracker.update(frame.image)

[`FlowTracker`] follows points by optical flow, with features from time to time. [`Tracker`] takes the features of each
frame and no picture, so whoever has features of their own needs it alone. docs/tracking.md is the tour.
"""

from .drawing import Trails, draw_outline, draw_text
from .features import FrameFeatures, in_picture
from .flow import FlowTracker
from .frames import Frame, Frames, open_frames, writing_video
from .planes import PlaneFinder, Sighting
from .points import Tracks
from .storage import SavedTracks, read_tracks, writing_tracks
from .tracking import Tracker

__all__ = [
    "FlowTracker",
    "Frame",
    "FrameFeatures",
    "Frames",
    "PlaneFinder",
    "SavedTracks",
    "Sighting",
    "Tracker",
    "Tracks",
    "Trails",
    "draw_outline",
    "draw_text",
    "in_picture",
    "open_frames",
    "read_tracks",
    "writing_tracks",
    "writing_video",
]
