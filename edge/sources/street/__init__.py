"""The rendered street: a source with exact ground truth, for the demo and for tests that need no camera and no file."""

from scene_edge.edge.sources.street.scene import MOT_CLASSES, Street, TruthBox
from scene_edge.edge.sources.street.source import StreetSource

__all__ = ["MOT_CLASSES", "Street", "StreetSource", "TruthBox"]
