"""Training clips as packed pictures, each with what x264 makes of it at several rates; cached on disk once.

A cache holds, for every clip, `NNN.original.npy` (u8 [T, h, w, 24]) and one `NNN.crfQQ.npy` for every CRF beside
`index.json`, which also tells the bits per luma sample that each compressed version cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.annexb import NAL_SEI, iter_nals
from scene_edge.codec.errors import ConfigError
from scene_edge.codec.media import planes_of, probe, read_video
from scene_edge.codec.planes import U8, Planes, pack

CRFS = (27, 31, 35, 39, 43, 47, 51)
"""The useful range of x264 in front of a machine: from hardly any loss to persons melting into the wall."""

GOP = 30
"""Frames from keyframe to keyframe."""

X264_OPTIONS = {
    "preset": "superfast",
    "tune": "zerolatency",
    "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=0",
}
"""What the camera uses (see the profiles): a network must meet the codec that it will live with."""


@dataclass(frozen=True)
class DataConfig:
    """Which clips are read and how: folders below `root`, the widths at which each is kept, frames taken of each.

    Two widths show the same things large and small; a clip that is no wider than the smaller one is kept once.
    """

    root: Path
    folders: tuple[str, ...] = ("train/vos", "train/traffic", "train/natural")
    action_folders: tuple[str, ...] = ("train/action_arid", "train/action_fight")
    max_widths: tuple[int, ...] = (896, 448)
    frames: int = 32
    action_frames: int = 20
    every_nth_action: int = 2
    crfs: tuple[int, ...] = CRFS


def x264_round_trip(frames: list[Planes], crf: int, fps: float = 25.0) -> tuple[list[Planes], list[int]]:
    """What x264 makes of `frames` at the camera's settings, and the bits of each access unit.

    x264's advertisement of itself, over half a kilobyte once a stream, is not counted: the camera strips it, and beside
    two frames of a small crop it would be as dear as the pictures.
    """
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
    encoder.time_base = Fraction(1, 1000)
    encoder.framerate = Fraction(fps).limit_denominator(1000)
    encoder.options = {**X264_OPTIONS, "crf": str(crf)}
    decoder: Any = av.CodecContext.create("h264", "r")
    decoded: list[Any] = []
    bits: list[int] = []

    def drain(packets: Iterable[Any]) -> None:
        for packet in packets:
            advertisement = sum(nal.end - nal.start for nal in iter_nals(bytes(packet)) if nal.type == NAL_SEI)
            bits.append((packet.size - advertisement) * 8)
            decoded.extend(decoder.decode(packet))

    for index, planes in enumerate(frames):
        picture = av.VideoFrame(planes.width, planes.height, "yuv420p")
        for target, plane in zip(picture.planes, (planes.y, planes.u, planes.v), strict=True):
            rows = np.zeros((plane.shape[0], target.line_size), np.uint8)
            rows[:, : plane.shape[1]] = plane
            target.update(rows.tobytes())
        picture.pts = round(index * 1000 / fps)
        drain(encoder.encode(picture))
    drain(encoder.encode(None))
    decoded.extend(decoder.decode(None))
    return [planes_of(frame) for frame in decoded], bits


def build_cache(config: DataConfig, cache: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Decode, scale and compress all training clips once; returns the cache.

    Raises ConfigError without clips.
    """
    key = hashlib.sha256(repr((config, X264_OPTIONS)).encode()).hexdigest()[:12]
    folder = cache / f"clips-{key}"
    if (folder / "index.json").exists():
        return folder
    found = [path for name in config.folders for path in sorted((config.root / name).glob("*.mp4"))]
    clips = [(path, config.frames, width) for path in found for width in _widths(path, config)]
    for name in config.action_folders:
        chosen = sorted((config.root / name).glob("*/*.mp4"))[:: config.every_nth_action]
        clips += [(path, config.action_frames, max(config.max_widths)) for path in chosen]
    if not clips:
        raise ConfigError("no training clips found", got=str(config.root), hint="Point --data at a folder with train/.")
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (path, count, width) in enumerate(clips):
        entries.append(_cache_clip(path, count, width, config, folder, number))
        if progress:
            progress(number + 1, len(clips))
    (folder / "index.json").write_text(json.dumps(entries, indent=1))
    return folder


def _widths(path: Path, config: DataConfig) -> list[int]:
    """The widths at which a clip is kept, widest first; never enlarged."""
    own = probe(path).width
    return sorted({min(own, width) for width in config.max_widths}, reverse=True)


def _cache_clip(
    path: Path, count: int, max_width: int, config: DataConfig, folder: Path, number: int
) -> dict[str, Any]:
    info = probe(path)
    width = min(info.width, max_width) // 16 * 16
    height = round(info.height * width / info.width) // 16 * 16
    skip = max(0, (info.frames - count) // 3)
    frames = [planes for planes, _ in read_video(path, width=width, height=height, limit=skip + count)][skip:]
    np.save(folder / f"{number:03d}.original.npy", np.stack([_pack16(frame) for frame in frames]))
    rates = {}
    for crf in config.crfs:
        lossy, bits = x264_round_trip(frames, crf, info.fps)
        np.save(folder / f"{number:03d}.crf{crf}.npy", np.stack([_pack16(frame) for frame in lossy]))
        rates[str(crf)] = sum(bits) / (len(frames) * width * height)
    return {"file": str(path.relative_to(config.root)), "number": number, "frames": len(frames), "bpp": rates}


def _pack16(planes: Planes) -> U8:
    """Packed without padding: the clip's sides are multiples of 16."""
    return pack(planes)[: planes.height // 4, : planes.width // 4]


def flip_packed(picture: U8) -> U8:
    """Mirror [..., h, w, 24] from left to right, inside the cells too."""
    order = [4 * row + column for row in range(4) for column in (3, 2, 1, 0)]
    order += [16 + 2 * row + column for row in range(2) for column in (1, 0)]
    order += [20 + 2 * row + column for row in range(2) for column in (1, 0)]
    flipped: U8 = picture[..., ::-1, order]
    return flipped


def relight_packed(pictures: list[U8], random: np.random.Generator) -> list[U8]:
    """The same scene in another light and other colours, the same for all `pictures` [..., h, w, 24].

    There are few training scenes: without this a network learns their objects by heart.
    """
    contrast, brightness, saturation = random.uniform(0.6, 1.3), random.uniform(-24.0, 24.0), random.uniform(0.4, 1.5)
    swapped = random.random() < 0.3  # U for V: blue things turn red
    order = [*range(16), *range(20, 24), *range(16, 20)] if swapped else slice(None)
    gain = np.array([contrast] * 16 + [saturation] * 8, np.float32)
    offset = np.array([112.0 - 112.0 * contrast + brightness] * 16 + [128.0 - 128.0 * saturation] * 8, np.float32)
    values = np.arange(256, dtype=np.float32)[:, None] * gain + offset + 0.5
    table = values.clip(0.0, 255.0).astype(np.uint8)
    channel = np.arange(24)
    return [table[picture, channel][..., order] for picture in pictures]


@dataclass(frozen=True)
class Batch:
    """original, lossy: u8 [B, T, h, w, 24]; whole: the uncropped first frames; video_bpp [B]: bits per luma sample.

    `clips` [B] says which clip of the cache each crop is of.
    """

    original: U8
    lossy: U8
    whole: list[U8]
    video_bpp: NDArray[np.float32]
    clips: NDArray[np.int64]


CRF_WEIGHTS = {27: 0.0, 31: 1.0, 35: 3.0}
"""How often a CRF is drawn in training, 4 for all others: where little was lost servers pass the video as it is."""


class ClipSampler:
    """Random crops of consecutive frames, aligned to macroblocks, from a cache folder; `relit` varies their light.

    `attend` moves the crops to where objects are.
    """

    def __init__(self, folder: Path, seed: int, *, size: int = 256, length: int = 3, relit: bool = False) -> None:
        self.relit = relit
        self.entries = json.loads((folder / "index.json").read_text())
        self.folder, self.size, self.length = folder, size // 4, length
        self.random = np.random.default_rng(seed)
        self.crfs = sorted(int(crf) for crf in self.entries[0]["bpp"])
        names = ["original", *(f"crf{crf}" for crf in self.crfs)]
        self.arrays = [
            {name: np.load(folder / f"{entry['number']:03d}.{name}.npy", mmap_mode="r") for name in names}
            for entry in self.entries
        ]
        usable = [
            entry["frames"] >= length and min(a["original"].shape[1:3]) >= self.size
            for entry, a in zip(self.entries, self.arrays, strict=True)
        ]
        weights = np.array([np.sqrt(a["original"].size) * ok for a, ok in zip(self.arrays, usable, strict=True)])
        if not weights.any():
            raise ConfigError("every clip is smaller than the crop", got=f"crop of {size}", hint="Use a smaller crop.")
        self.weights = weights / weights.sum()
        chances = np.array([CRF_WEIGHTS.get(crf, 4.0) for crf in self.crfs])
        self.chances = chances / chances.sum()
        self.objects: list[NDArray[np.bool_]] | None = None

    def attend(self, objects: list[NDArray[np.bool_]]) -> None:
        """From now on three of four crops hold an object: bool [T, h/4, w/4] for each clip, on the /16 grid."""
        self.objects = objects

    def _corner(self, index: int, start: int) -> tuple[int, int]:
        """Top and left of a crop, in packed positions."""
        rows, columns = ((side - self.size) // 4 for side in self.arrays[index]["original"].shape[1:3])
        if self.objects is not None and self.random.random() < 0.75:
            places = np.argwhere(self.objects[index][start + self.length - 1])
            if len(places):
                row, column = places[self.random.integers(len(places))] - self.random.integers(1, self.size // 4 - 1, 2)
                return 4 * int(np.clip(row, 0, rows)), 4 * int(np.clip(column, 0, columns))
        return 4 * int(self.random.integers(rows + 1)), 4 * int(self.random.integers(columns + 1))

    def sample(self, batch: int, crf: int | None = None) -> Batch:
        """A batch of crops, each at a CRF of its own unless one is given."""
        originals, lossies, wholes, rates, clips = [], [], [], [], []
        for _ in range(batch):
            index = int(self.random.choice(len(self.arrays), p=self.weights))
            chosen = crf or int(self.random.choice(self.crfs, p=self.chances))
            original = self.arrays[index]["original"]
            start = int(self.random.integers(original.shape[0] - self.length + 1))
            top, left = self._corner(index, start)
            where = np.s_[start : start + self.length, top : top + self.size, left : left + self.size]
            pair = [np.asarray(self.arrays[index][name][where]) for name in ("original", f"crf{chosen}")]
            if self.random.random() < 0.5:
                pair = [flip_packed(picture) for picture in pair]
            if self.relit:
                pair = relight_packed(pair, self.random)
            originals.append(pair[0])
            lossies.append(pair[1])
            rates.append(self.entries[index]["bpp"][str(chosen)])
            wholes.append(np.array(original[start]))
            clips.append(index)
        return Batch(np.stack(originals), np.stack(lossies), wholes, np.array(rates, np.float32), np.array(clips))
