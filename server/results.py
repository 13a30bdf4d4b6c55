"""Results on MQTT as ONVIF-style JSON (Profile M's metadata stream: Frame / Object / Appearance), and acknowledgements.

Boxes are in pixels; `Transformation` maps them to ONVIF's coordinates (-1..1, y upwards).
"""

from __future__ import annotations

import json
from datetime import datetime, timezone

from scene_edge.server.analytics.seams import Action, Track

_PLACES = 2


def utc_text(utc_ns: int) -> str:
    """ISO 8601 in UTC with milliseconds; times outside the calendar are given as the epoch.

    >>> utc_text(1_763_668_800_123_000_000)
    '2025-11-20T20:00:00.123Z'
    """
    try:
        moment = datetime.fromtimestamp(utc_ns / 1e9, timezone.utc)
    except (OverflowError, ValueError, OSError):
        moment = datetime.fromtimestamp(0, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def tracks_json(
    camera: str, session: str, seq: int, utc_ns: int, size: tuple[int, int], tracks: tuple[Track, ...]
) -> bytes:
    """One analysed frame; `Object` is empty where nothing was seen."""
    width, height = size
    frame = {
        "UtcTime": utc_text(utc_ns),
        "Source": camera,
        "Session": session,
        "Seq": seq,
        "Transformation": {"Translate": {"x": -1.0, "y": 1.0}, "Scale": {"x": 2.0 / width, "y": -2.0 / height}},
        "Object": [_object(track) for track in tracks],
    }
    return json.dumps({"Frame": frame}, separators=(",", ":")).encode()


def action_json(camera: str, session: str, utc_ns: int, action: Action) -> bytes:
    """One clip's verdict as an ONVIF-style event."""
    event = {
        "UtcTime": utc_text(utc_ns),
        "Topic": "VideoAnalytics/Action",
        "Source": {"VideoSource": camera, "Session": session},
        "Data": {
            "Action": action.label,
            "Likelihood": round(action.score, 4),
            "Model": action.model,
            "StartSeq": action.start_seq,
            "EndSeq": action.end_seq,
        },
    }
    return json.dumps(event, separators=(",", ":")).encode()


def ack_json(session: str, seq: int, epoch: int, cameras: int | None = None) -> bytes:
    """Everything of the session up to `seq` is committed, or was given up as never sent. `cameras` says how many there
    are, which is how a camera knows in how much company it comes back after the broker was away.

    >>> ack_json("00000000deadbeef", 41, 3)
    b'{"session":"00000000deadbeef","seq":41,"epoch":3}'
    """
    told = {} if cameras is None else {"cameras": cameras}
    return json.dumps({"session": session, "seq": seq, "epoch": epoch, **told}, separators=(",", ":")).encode()


def missing_json(session: str, acked: int | None, missing: int, epoch: int) -> bytes:
    """An acknowledgement that asks for frame `missing`, which never came although later ones did: send again what is
    not acknowledged. Without `acked` nothing of the session is committed yet.

    >>> missing_json("00000000deadbeef", None, 0, 3)
    b'{"session":"00000000deadbeef","epoch":3,"missing":0}'
    """
    known = {} if acked is None else {"seq": acked}
    return json.dumps({"session": session, **known, "epoch": epoch, "missing": missing}, separators=(",", ":")).encode()


def _object(track: Track) -> dict[str, object]:
    left, top, right, bottom = (round(value, _PLACES) for value in track.box)
    return {
        "ObjectId": track.track_id,
        "Appearance": {
            "Shape": {
                "BoundingBox": {"left": left, "top": top, "right": right, "bottom": bottom},
                "CenterOfGravity": {"x": round((left + right) / 2, _PLACES), "y": round((top + bottom) / 2, _PLACES)},
            },
            "Class": {"Type": [{"value": track.label, "Likelihood": round(track.score, 4)}]},
        },
    }
