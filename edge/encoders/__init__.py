"""H.264 encoders: made by name, or chosen by trial."""

from __future__ import annotations

from scene_edge.edge.encoders.base import CodedPicture, EncoderSettings, VideoEncoder
from scene_edge.edge.encoders.gstreamer import GStreamerEncoder
from scene_edge.edge.encoders.libav import LibavEncoder
from scene_edge.edge.encoders.sequence import Encoded, Sequencer

__all__ = [
    "CodedPicture",
    "Encoded",
    "EncoderSettings",
    "GStreamerEncoder",
    "LibavEncoder",
    "Sequencer",
    "VideoEncoder",
    "create_encoder",
]


def create_encoder(name: str, settings: EncoderSettings) -> VideoEncoder:
    """An open encoder. Raises EncoderError where the name is unknown, or the encoder does not open on this machine."""
    if name == GStreamerEncoder.name:
        return GStreamerEncoder(settings)
    return LibavEncoder(name, settings)
