"""Video: points followed from frame to frame, and a plane found in every frame.

    with open_frames("walk.mp4") as frames:
        features, tracker = FrameFeatures(model, processor), Tracker(model)
        for frame in frames:
            tracks = tracker.update(features(frame.image))

[`Tracker`] takes features and knows nothing of files, so whoever has frames and features of their own needs it alone.
docs/tracking.md is the tour.
"""

from .drawing import Trails, draw_outline, draw_text
from .features import FrameFeatures, in_picture
from .frames import Frame, Frames, open_frames, writing_video
from .planes import PlaneFinder, Sighting
from .storage import SavedTracks, read_tracks, writing_tracks
from .tracking import Tracker, Tracks

__all__ = [
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
