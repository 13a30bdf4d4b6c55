"""The model card of a training run: what was trained on what, for how long and where, what came out, how it went.

Made from the run's own `record.json` and `log.jsonl`. The card is complete without its picture, since a bundle takes
text alone: the curves stand in it as a table, and are drawn where matplotlib is installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from scene_edge.codec.errors import FormatError

RECORD, LOG, CARD, CURVES = "record.json", "log.jsonl", "card.md", "curves.png"

STAGES = ("free", "full_price", "coded")
"""Where a recipe of SMC changes what it trains, as fractions of the time box."""

MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Fractions of the run that the table of curves shows."""

_NO_FIGURES = ("step", "seconds", "s")


def write_card(run: Path, name: str) -> Path:
    """Write the card of the run in folder `run`, and its curves if they can be drawn; returns the card's path.

    Raises FormatError for a record that is no JSON object. A run without a log has a card without curves.
    """
    record, (lines, unread) = _record(run / RECORD), read_log(run / LOG)
    drawn = draw_curves(lines, run / CURVES, name, _borders(record))
    path = run / CARD
    path.write_text(card(name, record, lines, drawn=drawn, unread=unread), encoding="utf-8")
    return path


def card(
    name: str,
    record: Mapping[str, Any],
    lines: Sequence[Mapping[str, float]],
    *,
    drawn: bool = False,
    unread: int = 0,
) -> str:
    """The card as Markdown. `lines` is the log; `unread` counts those of its lines that were damaged.

    >>> print(card("toy", {"steps": 3, "minutes": 0.1}, []).splitlines()[0])
    # toy
    """
    sections = [f"# {name}", _summary(record)]
    weaknesses = record.get("weaknesses")
    if weaknesses:
        sections += ["## Known weaknesses", str(weaknesses)]
    if record.get("qualities"):
        sections += ["## Operating points", _operating_points(record)]
    if lines:
        sections += ["## Curves", _curves_table(lines)]
    if drawn:
        sections.append(f"`{CURVES}` in the folder of the run draws them.")
    if unread:
        sections.append(f"Lines of the log that could not be read, and are left out: {unread}.")
    if record.get("recipe"):
        sections += ["## Recipe", f"```yaml\n{yaml.safe_dump(_plain(record['recipe']), sort_keys=False)}```"]
    return "\n\n".join(sections) + "\n"


def read_log(path: Path) -> tuple[list[dict[str, float]], int]:
    """The lines of the last run in the log, and how many lines were damaged.

    A run that was started afresh in the same folder counts its steps from 0 again: what was before is another run's.
    A killed run may leave half a line, to which the next part of it adds its own first one.
    """
    if not path.is_file():
        return [], 0
    lines: list[dict[str, float]] = []
    unread = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(text)
        except ValueError:
            unread += 1
            continue
        if not isinstance(found, dict) or not isinstance(found.get("step"), int):
            unread += 1
            continue
        if lines and found["step"] <= lines[-1]["step"]:
            lines = []
        lines.append({key: value for key, value in found.items() if isinstance(value, int | float)})
    return lines, unread


def draw_curves(
    lines: Sequence[Mapping[str, float]], path: Path, title: str, borders: Mapping[str, float] | None = None
) -> bool:
    """Every figure of the log over minutes, as one PNG; whether it was drawn: not without matplotlib or lines.

    `borders` are named fractions of the run at which it changes what it trains.
    """
    names = _figures(lines)
    if not names or find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 2.8 * rows), squeeze=False, layout="constrained"
    )
    last = _minutes(lines[-1])
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(_minutes(line), line[name]) for line in lines if name in line]
        axis.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 3 else None)
        for border, fraction in (borders or {}).items():
            axis.axvline(fraction * last, color="#999999", linewidth=0.8, linestyle="--")
            axis.text(fraction * last, 1.0, border, fontsize=7, color="#666666", transform=axis.get_xaxis_transform())
        axis.set_xlim(0, last or None)
        axis.set_title(name, fontsize=10, pad=14)
        axis.set_xlabel("minutes")
        axis.grid(visible=True, alpha=0.25)
    figure.suptitle(f"{title}: {int(lines[-1]['step']):,} steps")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True


def _record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError("the record of a run cannot be read", got=str(error), hint="Finish the run first.") from error
    if not isinstance(found, dict):
        raise FormatError("the record of a run is no JSON object", got=type(found).__name__)
    return found


def _borders(record: Mapping[str, Any]) -> dict[str, float]:
    """The stages' borders, if the recipe has them."""
    recipe = record.get("recipe") or {}
    return {name: float(recipe[name]) for name in STAGES if recipe.get(name)}


def _summary(record: Mapping[str, Any]) -> str:
    """Every plain figure of the record, as a table; longer ones have sections of their own."""
    rows = [
        (key.replace("_", " "), _shown(value))
        for key, value in record.items()
        if isinstance(value, str | int | float) and key != "weaknesses"
    ]
    return _table(("trained", ""), rows)


def _operating_points(record: Mapping[str, Any]) -> str:
    """Step, share of the video's bits, distance and cost of each; what the latent and the enhancement alone gain."""
    lossy = record.get("lossy_distance")
    rows = []
    for row in record["qualities"]:
        gain = f"{100 * (row['cost'] / lossy - 1):+.2f} %" if lossy else ""
        step = "without latent" if row["step"] is None else f"{row['step']:g}"
        rows.append((step, f"{100 * row['share']:.2f} %", f"{row['distance']:.4f}", f"{row['cost']:.4f}", gain))
    table = _table(("step", "share of the video's bits", "distance", "cost", "cost against x264 alone"), rows)
    note = "Distance: of a frozen detector's features and samples, on training crops. Cost: with the price of the bits."
    return f"{table}\n\n{note}" + (f" x264 alone: {lossy:.4f}." if lossy else "")


def _curves_table(lines: Sequence[Mapping[str, float]]) -> str:
    """Every figure of the log at some moments of the run; empty where its stage was not on."""
    last = len(lines) - 1
    chosen = [lines[index] for index in dict.fromkeys(round(moment * last) for moment in MOMENTS)]
    heads = ["figure", *(f"step {int(line['step']):,}" for line in chosen)]
    rows = [[name, *(f"{line[name]:.4g}" if name in line else "" for line in chosen)] for name in _figures(lines)]
    return _table(heads, [["minutes", *(f"{_minutes(line):.1f}" for line in chosen)], *rows])


def _figures(lines: Sequence[Mapping[str, float]]) -> list[str]:
    """What the log measures, in the order in which it appears."""
    return list(dict.fromkeys(name for line in lines for name in line if name not in _NO_FIGURES))


def _minutes(line: Mapping[str, float]) -> float:
    return float(line.get("seconds", line.get("s", 0.0))) / 60


def _shown(value: str | float) -> str:
    return str(value) if isinstance(value, str) or float(value).is_integer() else f"{value:g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _plain(value: Any) -> Any:
    """As YAML writes it: no tuples, no paths."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float) or value is None else str(value)
