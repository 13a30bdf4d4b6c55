"""A trial encode: the only proof that an encoder works. Runs in a child process, since a driver may hang for good.

As a program (`python -m scene_edge.edge.encoders.trial NAME SETTINGS-JSON`) it prints one line of JSON; `run_trial` is
the parent's side of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from scene_edge.codec.annexb import NAL_IDR, NAL_PPS, NAL_SPS, iter_nals
from scene_edge.codec.errors import EncoderError, SceneEdgeError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.sei import ANCHOR_UUID, Anchor, insert_sei, read_anchor
from scene_edge.edge.encoders.base import CodedPicture, EncoderSettings, VideoEncoder
from scene_edge.edge.sources.testsrc import TestSource

TRIAL_FRAMES = 30
TRIAL_GOP = 10
TRIAL_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is empty if the encoder passed."""

    encoder: str
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason


def run_trial(name: str, settings: EncoderSettings, timeout_s: float = TRIAL_TIMEOUT_S) -> Verdict:
    """Try an encoder in a child process; a crash and a hang are verdicts like any other."""
    command = [sys.executable, "-m", "scene_edge.edge.encoders.trial", name, json.dumps(asdict(settings))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(name, f"hangs: no answer in {timeout_s:g} s")
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        answer = {}
    if done.returncode < 0:
        return Verdict(name, f"crashes: signal {-done.returncode}")
    if "reason" not in answer:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Verdict(name, f"fails: {last[:200]}")
    return Verdict(name, str(answer["reason"]))


def try_encoder(encoder: VideoEncoder, settings: EncoderSettings) -> str:
    """Encode 30 pictures and look at what comes out; the first thing that is wrong with it, or nothing."""
    source = TestSource(settings.width, settings.height, settings.fps, pace="asap", frames=TRIAL_FRAMES)
    source.open()
    pictures: list[CodedPicture] = []
    pts = 0
    while (frame := source.read()) is not None:
        pictures += encoder.encode(frame.planes, pts)
        pts += 1
    pictures += encoder.flush()
    return judge(pictures, TRIAL_FRAMES)


def judge(pictures: list[CodedPicture], expected: int) -> str:
    """What is wrong with the pictures of a trial: count, time stamps, headers, our SEI, or whether they decode."""
    if len(pictures) != expected:
        return f"{len(pictures)} access units came out of {expected} frames"
    if [picture.pts for picture in pictures] != list(range(expected)):
        return "time stamps do not come back in order"
    if not pictures[0].keyframe:
        return "the first picture is no keyframe"
    if sum(picture.keyframe for picture in pictures) < 2:
        return "the keyframe interval is ignored"
    for picture in pictures:
        types = {nal.type for nal in iter_nals(picture.data)}
        if picture.keyframe and not {NAL_SPS, NAL_PPS, NAL_IDR} <= types:
            return "a keyframe comes without SPS, PPS or IDR"
    decoder = H264Decoder()
    decoded = 0
    for picture in pictures:
        anchor = Anchor(session_id=1, frame_seq=picture.pts, capture_ns=0)
        marked = insert_sei(picture.data, anchor.to_bytes(), ANCHOR_UUID)
        if read_anchor(marked) != anchor:
            return "our SEI does not survive in its access units"
        decoded += len(decoder.decode(marked, picture.pts))
    decoded += len(decoder.flush())
    return "" if decoded == expected else f"{decoded} pictures decode out of {expected}"


def main(arguments: list[str]) -> int:
    from scene_edge.edge.encoders import create_encoder

    name, settings = arguments[0], EncoderSettings(**json.loads(arguments[1]))
    try:
        encoder = create_encoder(name, settings)
        try:
            reason = try_encoder(encoder, settings)
        finally:
            encoder.close()
    except EncoderError as error:
        reason = str(error)
    except SceneEdgeError as error:
        reason = f"its output is broken: {error}"
    print(json.dumps({"reason": reason}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
