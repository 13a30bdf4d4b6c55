"""Accuracy of the shipped detector and action bundles on the dev clips, engine by engine; prints JSON.

Example: python benchmarks/task_models.py --data ../shared/data --engines openvino onnx litert --json task_models.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from scene_edge.codec.media import read_video
from scene_edge.codec.planes import Planes
from scene_edge.models.detection_metrics import average_precision, read_mot
from scene_edge.server.analytics.action import open_recogniser
from scene_edge.server.analytics.detections import Detections, iou_matrix
from scene_edge.server.analytics.detector import open_detector

STREET = "dev/mot/adl_rundle6"
ROAD = "dev/traffic/highway.mp4"
ACTIONS = {"action-arid": "action-ARID", "action-fight": "action-fight"}


def detector_figures(data: Path, bundle: str, engine: str, every: int) -> dict[str, Any]:
    """Person AP50 against ground truth; vehicle F1 against the instrument, which is agreement and no accuracy."""
    detector = open_detector(bundle, score=0.01, threads=1, prefer=(engine,))
    instrument = open_detector(data / "models" / "yolox_nano.onnx", threads=1)
    found, spent_s = {}, 0.0
    for index, planes in sampled(data / f"{STREET}.mp4", every):
        started = time.process_time()
        people = detector.detect(planes).named("person")
        spent_s += time.process_time() - started
        found[index + 1] = (people.boxes, people.scores)
    hits = ours = theirs = 0
    for _, planes in sampled(data / ROAD, 10 * every):
        mine = detector.detect(planes).named("vehicle").above(0.3)
        sure = instrument.detect(planes).folded().named("vehicle").above(0.3)
        hits, ours, theirs = hits + matches(mine, sure), ours + len(mine), theirs + len(sure)
    return {
        "name": detector.name,
        "person_ap50": round(average_precision(found, read_mot(data / f"{STREET}.gt.txt")), 4),
        "frames": len(found),
        "cpu_ms": round(1000 * spent_s / len(found), 1),
        "vehicle_f1_agreement": round(2 * hits / max(1, ours + theirs), 4),
    }


def action_figures(data: Path, bundle: str, engine: str) -> dict[str, Any]:
    """Top-1 of whole clips, and of the stream's verdicts averaged over each clip, with the confusion of the former."""
    recogniser = open_recogniser(bundle, threads=1, prefer=(engine,))
    labels = recogniser.model.labels
    confusion = np.zeros((len(labels), len(labels)), int)
    streamed = silent = 0
    entries = json.loads((data / "index.json").read_text())
    clips = [entry for entry in entries if entry["split"] == "dev" and entry["category"] == ACTIONS[bundle]]
    for entry in clips:
        frames = [planes for planes, _ in read_video(data / entry["file"])]
        truth = labels.index(entry["label"])
        scores = recogniser.classify(frames)
        confusion[truth, labels.index(max(scores, key=scores.__getitem__))] += 1
        recogniser.reset()
        verdicts = [one for i, planes in enumerate(frames) for one in recogniser.push(planes, i, i / entry["fps"])]
        silent += not verdicts
        streamed += bool(verdicts) and verdicts[-1].label == labels[truth]
    return {
        "name": recogniser.name,
        "clips": len(clips),
        "top1": round(float(np.trace(confusion)) / len(clips), 4),
        "top1_stream": round(streamed / len(clips), 4),
        "clips_too_short_for_a_verdict": silent,
        "labels": labels,
        "confusion": confusion.tolist(),
    }


def sampled(path: Path, every: int) -> list[tuple[int, Planes]]:
    return [(index, planes) for index, (planes, _) in enumerate(read_video(path)) if index % every == 0]


def matches(found: Detections, truth: Detections, iou: float = 0.5) -> int:
    """Pairs that overlap by `iou`, best score first, each box used once."""
    if not len(found) or not len(truth):
        return 0
    overlap, count = iou_matrix(found.boxes, truth.boxes), 0
    for index in np.argsort(-found.scores, kind="stable"):
        best = int(overlap[index].argmax())
        if overlap[index, best] >= iou:
            overlap[:, best] = 0
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--engines", nargs="+", default=["openvino"])
    parser.add_argument("--every", type=int, default=3, help="every how many frames of the street clip one is judged")
    parser.add_argument("--detector", default="detector-s", help="bundle name or folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for engine in options.engines:
        figures[engine] = {"detector": detector_figures(options.data, options.detector, engine, options.every)}
        for bundle in ACTIONS:
            figures[engine][bundle] = action_figures(options.data, bundle, engine)
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
