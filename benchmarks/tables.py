"""The summary of `rate_accuracy` as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.groups import BYTE_KINDS, GROUPS, Group
from benchmarks.summary import ANCHOR_KEEPS


def show(groups: Sequence[Mapping[str, Any]], console: Console) -> None:
    """For each group: every point, what semantics cost at mid rates, then the gains over the anchor."""
    known = {group.name: group for group in GROUPS}
    for entry in groups:
        group = known[entry["group"]]
        console.print(_points(entry, group))
        if entry["incomplete"]:
            console.print(f"left out, not measured in full: {', '.join(entry['incomplete'])}", highlight=False)
        for system, share in entry["semantic_share"].items():
            console.print(
                f"{system}: semantics are {share['percent']:.1f} % of all bits at CRF {share['crf']}, "
                f"{share['with_messages']:.1f} % with what carries them"
            )
        if entry["deltas"]:
            console.print(_deltas(entry, group))


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _points(entry: Mapping[str, Any], group: Group) -> Table:
    clips = f"{entry['clips']} clip{'s' if entry['clips'] != 1 else ''}"
    table = Table(title=f"{group.title} ({clips})", title_justify="left")
    for title in ("system", "CRF", "kbit/s", *BYTE_KINDS, *(metric.title for metric in group.metrics)):
        table.add_column(title, justify="left" if title == "system" else "right", no_wrap=True)
    ceiling = [_number(entry["original"][metric.name], metric.digits) for metric in group.metrics]
    if any(value != "-" for value in ceiling):
        table.add_row("original", *[""] * (2 + len(BYTE_KINDS)), *ceiling, end_section=True)
    points = entry["points"]
    for index, point in enumerate(points):
        table.add_row(
            point["system"],
            str(point["crf"]),
            *(_number(point["kbps"][kind]) for kind in ("total", *BYTE_KINDS)),
            *(_number(point["scores"][metric.name], metric.digits) for metric in group.metrics),
            end_section=index + 1 == len(points) or points[index + 1]["system"] != point["system"],
        )
    return table


def _deltas(entry: Mapping[str, Any], group: Group) -> Table:
    table = Table(title="gains; [95 % over clips], none for fewer than three clips", title_justify="left")
    for title in ("system", "against", "metric", "rate at equal score, %", "score at equal rate", "overlap"):
        table.add_column(title, justify="right" if title == "overlap" else "left")
    table.add_column(f"% kept where the other keeps {ANCHOR_KEEPS:.0%}, at kbit/s")
    table.add_column("least gain, at kbit/s")
    table.add_column("note")
    titles = {metric.name: metric for metric in group.metrics}
    for delta in entry["deltas"]:
        metric, rate, score = titles[delta["metric"]], delta["bd_rate_percent"], delta["bd_score"]
        kept, worst = delta.get("kept"), delta.get("worst")
        notes = [found["reason"] for found in (rate, kept) if found and found["reason"]]
        if rate["value"] is not None and rate["repaired"] > 0:
            notes.append(f"noise of {rate['repaired']:.0%} of the range ironed out")
        table.add_row(
            delta["system"],
            delta["anchor"],
            metric.title,
            _signed(rate, 1),
            _signed(score, metric.digits),
            f"{rate['overlap']:.0%}",
            _at_rate(kept, metric.digits, "{:.{}f}"),
            _at_rate(worst, metric.digits, "{:+.{}f}"),
            "; ".join(notes),
        )
    return table


def _at_rate(found: Mapping[str, Any] | None, digits: int, form: str) -> str:
    if found is None or found["value"] is None:
        return "-"
    band = found["interval95"]
    shown = form.format(found["value"], digits)
    interval = "" if band is None else f" [{form.format(band[0], digits)}, {form.format(band[1], digits)}]"
    return f"{shown}{interval} at {found['kbps']:.0f}"


def _signed(delta: Mapping[str, Any], digits: int) -> str:
    if delta["value"] is None:
        return "undefined"
    band = delta["interval95"]
    shown = f"{delta['value']:+.{digits}f}"
    return shown if band is None else f"{shown} [{band[0]:+.{digits}f}, {band[1]:+.{digits}f}]"
