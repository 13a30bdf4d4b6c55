"""Builds the detector's training set once: sampled training frames, compressed copies, the teacher's labels."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from scene_edge.codec.errors import SourceError
from scene_edge.codec.media import planes_of, read_video
from scene_edge.codec.planes import Planes
from scene_edge.models.pictures import resize, to_i420
from scene_edge.models.teacher import Teacher

INDEX = "labels.json"
MAX_WIDTH, MAX_HEIGHT = 640, 480
"""Cached frames are no larger: the network sees 512x288."""

SAMPLES = {"VOS": 4, "natural": 10, "traffic": 6, "action-fight": 9, "action-ARID": 24}
"""Every how many frames of a category one is taken: many still scenes, few of the dark ones with one person."""

CRF = (22, 42)


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled frame: files of equal size (original first), boxes relative [N, 4], classes and scores [N]."""

    files: tuple[str, ...]
    clip: str
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]


def read_index(folder: Path) -> list[Sample]:
    entries = json.loads((folder / INDEX).read_text())
    return [
        Sample(
            tuple(entry["files"]),
            entry["clip"],
            np.array(entry["boxes"], np.float32).reshape(-1, 4),
            np.array(entry["classes"], np.int64),
            np.array(entry["scores"], np.float32),
        )
        for entry in entries
    ]


def build(data: Path, folder: Path) -> list[Sample]:
    """Label every training clip of `data` into `folder`; clips labelled by an earlier, interrupted run are kept."""
    teacher_file = data / "models" / "yolox_nano.onnx"
    if not teacher_file.is_file():
        raise SourceError(f"no teacher: {teacher_file}", hint="Give the data folder with models/ and train/.")
    clips = [clip for clip in json.loads((data / "index.json").read_text()) if clip["split"] == "train"]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / INDEX).is_file():
        teacher = Teacher(teacher_file)
        for clip in track(clips, description="labelling"):
            part = folder / f"{zlib.crc32(clip['file'].encode()):08x}.json"
            if not part.is_file():
                entries = list(_label_clip(teacher, data, folder, clip["file"], SAMPLES[clip["category"]]))
                part.write_text(json.dumps(entries))
        parts = [folder / f"{zlib.crc32(clip['file'].encode()):08x}.json" for clip in clips]
        (folder / INDEX).write_text(json.dumps([entry for part in parts for entry in json.loads(part.read_text())]))
    return read_index(folder)


def _label_clip(teacher: Teacher, data: Path, folder: Path, name: str, every: int) -> Iterator[dict[str, object]]:
    seed = zlib.crc32(name.encode())
    crf = int(np.random.default_rng(seed).integers(*CRF))
    originals = [planes for planes, _ in read_video(data / name)]
    small = [_shrunk(planes) for planes in originals]
    compressed = recoded(small, crf)
    for index in range(every // 2, min(len(originals), len(compressed)), every):
        labels = teacher.label(originals[index])
        files = []
        for version, planes in (("raw", small[index]), (f"crf{crf}", compressed[index])):
            files.append(f"{seed:08x}-{index:05d}-{version}.npy")
            np.save(folder / files[-1], to_i420(planes))
        yield {
            "files": files,
            "clip": name,
            "boxes": np.round(labels.boxes, 5).tolist(),
            "classes": labels.classes.tolist(),
            "scores": np.round(labels.scores, 4).tolist(),
        }


def _shrunk(planes: Planes) -> Planes:
    """At most the cached size, sides multiples of four so that `to_i420` has whole rows."""
    scale = min(1.0, MAX_WIDTH / planes.width, MAX_HEIGHT / planes.height)
    width, height = round(planes.width * scale / 4) * 4, round(planes.height * scale / 4) * 4
    return resize(planes, width, height)


def recoded(frames: Sequence[Planes], crf: int) -> list[Planes]:
    """The frames as H.264 at `crf` (x264 veryfast, no B-frames) leaves them."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"preset": "veryfast", "tune": "zerolatency", "crf": str(crf), "threads": "1"}
    decoder = av.CodecContext.create("h264", "r")
    out: list[Planes] = []
    for position, planes in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(to_i420(planes), format="yuv420p")
        picture.pts = position
        for packet in encoder.encode(picture):
            out += [planes_of(frame) for frame in decoder.decode(packet)]
    for packet in encoder.encode(None):
        out += [planes_of(frame) for frame in decoder.decode(packet)]
    return out + [planes_of(frame) for frame in decoder.decode(None)]
