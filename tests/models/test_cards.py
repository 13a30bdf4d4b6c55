"""A run's card says what the record and the log say, survives a damaged log, and goes without its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scene_edge.codec.errors import FormatError
from scene_edge.models import cards, cli
from scene_edge.models.cards import card, draw_curves, read_log, write_card

RECORD = {
    "steps": 300,
    "minutes": 2.5,
    "hardware": "CPU (x86_64), 1 threads",
    "data": "3 clips, x264 at CRF [27, 51]",
    "lossy_distance": 2.0,
    "qualities": [
        {"step": None, "distance": 1.9, "share": 0.0, "cost": 1.9},
        {"step": 0.5, "distance": 1.7, "share": 0.05, "cost": 1.8},
    ],
    "recipe": {"size": "smc-s", "mined": 0.2, "free": 0.5, "terms": {"alpha": 0.0}},
    "weaknesses": "Never saw snow.",
}
LOG = [
    {"step": 100, "seconds": 50, "loss": 3.0, "mined": 0.7},
    {"step": 200, "seconds": 100, "loss": 2.0, "share": 0.4},
    {"step": 300, "seconds": 150, "loss": 1.0, "share": 0.1},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    return tmp_path


def test_the_card_says_what_the_record_and_the_log_say(run: Path) -> None:
    pytest.importorskip("matplotlib")
    text = write_card(run, "smc-s").read_text()
    assert text.startswith("# smc-s\n")
    for row in (
        "| steps | 300 |",
        "| hardware | CPU (x86_64), 1 threads |",
        "| data | 3 clips, x264 at CRF [27, 51] |",
        "| without latent | 0.00 % | 1.9000 | 1.9000 | -5.00 % |",
        "| 0.5 | 5.00 % | 1.7000 | 1.8000 | -10.00 % |",
        "| minutes | 0.8 | 1.7 | 2.5 |",
        "| mined | 0.7 |  |  |",
        "| share |  | 0.4 | 0.1 |",
        "Never saw snow.",
        "size: smc-s",
        "`curves.png`",
    ):
        assert row in text
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_card_goes_without_its_picture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "find_spec", lambda _: None)
    text = write_card(run, "smc-s").read_text()
    assert "curves.png" not in text
    assert "| share |  | 0.4 | 0.1 |" in text
    assert not (run / "curves.png").exists()


def test_a_run_without_log_has_a_card_without_curves(run: Path) -> None:
    (run / "log.jsonl").unlink()
    text = write_card(run, "smc-s").read_text()
    assert "Curves" not in text
    assert not draw_curves([], run / "curves.png", "smc-s")


def test_the_log_is_that_of_the_last_run_and_damaged_lines_are_counted(run: Path) -> None:
    earlier = [{"step": 900, "seconds": 450, "loss": 9.0}, *LOG]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, earlier)) + '\n{"step": 3{"step": 400}\n[1]\n')
    lines, unread = read_log(run / "log.jsonl")
    assert (lines, unread) == (LOG, 2)
    assert "left out: 2" in card("smc-s", RECORD, lines, unread=unread)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_record_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "record.json").write_text(text)
    with pytest.raises(FormatError, match="record of a run"):
        write_card(tmp_path, "smc-s")


def test_training_ends_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(**settings: Any) -> dict[str, Any]:
        settings["out"].mkdir()
        return {"steps": 7, "config": {"batch": 2}}

    monkeypatch.setattr(cli, "_trainer", lambda _: trained)
    cli.train(cli.Trainable.scene_s, data=tmp_path, out=tmp_path / "run", weaknesses="No night scenes.")
    text = (tmp_path / "run" / "card.md").read_text()
    assert "| steps | 7 |" in text
    assert "No night scenes." in text


def test_a_bundle_takes_the_card_of_its_run(run: Path) -> None:
    pytest.importorskip("onnx")
    from scene_edge.models.registry import card_of

    assert card_of(run) == {}
    write_card(run, "smc-s")
    assert card_of(run)["card.md"].startswith(b"# smc-s\n")
