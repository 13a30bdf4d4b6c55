"""Proofs that outlive a process: believed on this very board alone, and only for what still does what it did."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import structlog.testing

from scene_edge.codec.bundle import Bundle, write_bundle
from scene_edge.codec.errors import EngineError
from scene_edge.inference import onnxruntime as onnx_engine
from scene_edge.inference import openvino as openvino_engine
from scene_edge.inference import proofs as proofs_module
from scene_edge.inference import session as session_module
from scene_edge.inference.proofs import Proof, Proofs, witness_of
from scene_edge.inference.seam import CheckedSession, Order
from scene_edge.inference.session import Session, available_engines, open_session
from tests.inference import tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

MARKS = {"board": "this one", "openvino": "1", "onnxruntime": "1"}
GRID = (24, 40)
"""Not the golden run's."""

Opened = list[tuple[tuple[int, ...], bool]]


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is proven in this one yet."""
    monkeypatch.setattr(session_module, "_PROVEN", {})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    tiny.write_tiny(tmp_path / "tiny")
    return Bundle.open(tmp_path / "tiny")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The shape of each session that was opened, and whether it came from what was compiled before."""
    found: Opened = []

    def spy(module: ModuleType) -> None:
        original = module.open_engine

        def open_engine(order: Order) -> CheckedSession:
            found.append((order.inputs["x"].shape[1:3], bool(order.compiled)))
            session: CheckedSession = original(order)
            return session

        monkeypatch.setattr(module, "open_engine", open_engine)

    spy(openvino_engine)
    spy(onnx_engine)
    return found


@pytest.fixture(params=["openvino", "onnx"])
def engine(request: pytest.FixtureRequest) -> str:
    if available_engines()[request.param].startswith("absent"):
        pytest.skip(available_engines()[request.param])
    return str(request.param)


def start(bundle: Bundle, folder: Path, engine: str, marks: dict[str, str] | None = None, threads: int = 1) -> Session:
    """Open the graph as a process does that has just begun."""
    session_module._PROVEN.clear()
    proofs = Proofs(folder / "proofs", MARKS if marks is None else marks)
    session = open_session(
        bundle,
        "tiny",
        height=GRID[0],
        width=GRID[1],
        prefer=[engine],
        precision="fp32",
        threads=threads,
        proofs=proofs,
    )
    assert session.proven
    given = tiny.inputs(1, GRID)
    np.testing.assert_allclose(session.run(given)["y"], tiny.truth(given)["y"], rtol=2e-3, atol=2e-2)
    return session


def the_file(folder: Path) -> Path:
    (found,) = (folder / "proofs").glob("*.proof")
    return found


REHEARSED = [(tiny.GRID, False), (GRID, False)]


def test_a_second_start_compiles_once_or_not_at_all(
    bundle: Bundle, tmp_path: Path, engine: str, opened: Opened
) -> None:
    start(bundle, tmp_path, engine).close()
    assert opened == REHEARSED
    opened.clear()
    for _ in range(2):
        start(bundle, tmp_path, engine).close()
    assert opened == [(GRID, engine == "openvino")] * 2
    assert the_file(tmp_path).stat().st_mode & 0o077 == 0


def test_without_a_place_for_proofs_every_start_rehearses(bundle: Bundle, opened: Opened) -> None:
    for _ in range(2):
        session_module._PROVEN.clear()
        open_session(bundle, "tiny", height=24, width=40, prefer=["onnx"], precision="fp32", threads=1).close()
    assert opened == REHEARSED * 2


def test_another_board_engine_bundle_or_number_of_threads_is_proven_anew(
    bundle: Bundle, tmp_path: Path, opened: Opened
) -> None:
    start(bundle, tmp_path, "onnx").close()
    for changed in ({"board": "another"}, {"onnxruntime": "2"}):
        opened.clear()
        start(bundle, tmp_path, "onnx", {**MARKS, **changed}).close()
        assert opened == REHEARSED, changed
    opened.clear()
    start(bundle, tmp_path, "onnx", threads=2).close()
    assert opened == REHEARSED
    document = tiny.manifest(tiny.ARTIFACTS)
    document["version"] = "2"
    renewed = write_bundle(bundle.path, document)
    assert renewed.digest != bundle.digest
    opened.clear()
    start(renewed, tmp_path, "onnx").close()
    assert opened == REHEARSED


def test_a_release_that_opens_networks_differently_proves_anew(
    bundle: Bundle, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(bundle, tmp_path, "onnx").close()
    changed = tmp_path / "onnxruntime.py"
    changed.write_text("# opens them in another way\n")
    monkeypatch.setattr(onnx_engine, "__file__", str(changed))
    opened.clear()
    start(bundle, tmp_path, "onnx").close()
    assert opened == REHEARSED


def test_a_file_that_is_damaged_costs_a_golden_run_and_is_replaced(
    bundle: Bundle, tmp_path: Path, engine: str, opened: Opened
) -> None:
    start(bundle, tmp_path, engine).close()
    whole = the_file(tmp_path).read_bytes()
    the_file(tmp_path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    opened.clear()
    start(bundle, tmp_path, engine).close()
    start(bundle, tmp_path, engine).close()
    assert opened == [*REHEARSED, (GRID, engine == "openvino")]


def test_no_damage_passes(tmp_path: Path) -> None:
    proofs, proof = Proofs(tmp_path / "proofs", MARKS), Proof({"y": 0.25}, "f" * 64, b"a network")
    proofs.put("k", proof)
    file = tmp_path / "proofs" / "k.proof"
    whole = file.read_bytes()
    flipped = [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in range(len(whole))
    ]
    for data in (*(whole[:length] for length in range(len(whole))), whole + b"x", *flipped):
        file.write_bytes(data)
        assert proofs.take("k") is None
        assert not file.exists()
    file.write_bytes(whole)
    assert proofs.take("k") == proof
    assert proofs.take("k") is None, "it is out of the way"
    proofs.put_back("k")
    assert proofs.take("k") == proof


def test_a_good_file_in_the_place_of_another_is_not_believed(bundle: Bundle, tmp_path: Path, opened: Opened) -> None:
    start(bundle, tmp_path, "onnx", threads=2).close()
    other = the_file(tmp_path).read_bytes()
    the_file(tmp_path).unlink()
    start(bundle, tmp_path, "onnx").close()
    the_file(tmp_path).write_bytes(other)
    opened.clear()
    start(bundle, tmp_path, "onnx").close()
    assert opened == REHEARSED


@pytest.mark.parametrize(
    "lie",
    [
        Proof({"y": 0.9, "next_state": 0.0}, "0" * 64),
        Proof({"y": 0.0, "next_state": 0.0}, "0" * 64),
        Proof({"y": 0.0, "next_state": 0.0}, "0" * 64, b"no network"),
        Proof({}, "0" * 64),
    ],
    ids=["beyond the tolerance", "other outputs", "no network", "no output"],
)
def test_a_file_that_is_whole_and_wrong_is_found_out(
    bundle: Bundle, tmp_path: Path, engine: str, opened: Opened, lie: Proof
) -> None:
    start(bundle, tmp_path, engine).close()
    proofs = Proofs(tmp_path / "proofs", MARKS)
    assert proofs.put(the_file(tmp_path).stem, lie)
    opened.clear()
    start(bundle, tmp_path, engine).close()
    assert opened[-2:] == REHEARSED
    opened.clear()
    start(bundle, tmp_path, engine).close()
    assert opened == [(GRID, engine == "openvino")], "what was found out has taken its place"


def test_a_compiled_network_that_computes_something_else_is_found_out(
    bundle: Bundle, tmp_path: Path, opened: Opened
) -> None:
    if available_engines()["openvino"].startswith("absent"):
        pytest.skip("no OpenVINO here")
    start(bundle, tmp_path, "openvino").close()
    other = tmp_path / "other"
    tiny.write_tiny(other)
    whole, half = tiny.WEIGHTS.tobytes(), (tiny.WEIGHTS / 2).tobytes()
    assert whole in (other / "tiny.bin").read_bytes()
    (other / "tiny.bin").write_bytes((other / "tiny.bin").read_bytes().replace(whole, half))
    swapped = _compiled_unchecked(write_bundle(other, tiny.manifest(tiny.ARTIFACTS)))
    key, proofs = the_file(tmp_path).stem, Proofs(tmp_path / "proofs", MARKS)
    proof = proofs.take(key)
    assert proof is not None
    proofs.put(key, Proof(proof.errors, proof.witness, swapped))
    opened.clear()
    start(bundle, tmp_path, "openvino").close()
    assert opened == [(GRID, True), *REHEARSED]


def _compiled_unchecked(bundle: Bundle) -> bytes:
    session = open_session(
        bundle, "tiny", height=24, width=40, prefer=["openvino"], precision="fp32", threads=1, verify=False
    )
    assert isinstance(session, CheckedSession)
    return session.compiled()


def test_a_file_that_brings_the_process_down_does_so_once(
    bundle: Bundle, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(bundle, tmp_path, "onnx").close()
    original = onnx_engine.open_engine

    def crash(_order: Order) -> CheckedSession:
        raise SystemExit(139)

    monkeypatch.setattr(onnx_engine, "open_engine", crash)
    with pytest.raises(SystemExit):
        start(bundle, tmp_path, "onnx")
    monkeypatch.setattr(onnx_engine, "open_engine", original)
    opened.clear()
    start(bundle, tmp_path, "onnx").close()
    assert opened == REHEARSED
    assert [path.suffix for path in (tmp_path / "proofs").iterdir()] == [".proof"]


def test_what_others_may_write_or_is_a_link_is_not_believed(bundle: Bundle, tmp_path: Path, opened: Opened) -> None:
    start(bundle, tmp_path, "onnx").close()
    the_file(tmp_path).chmod(0o666)
    opened.clear()
    start(bundle, tmp_path, "onnx").close()
    assert opened == REHEARSED
    elsewhere = tmp_path / "elsewhere"
    path = the_file(tmp_path)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    opened.clear()
    start(bundle, tmp_path, "onnx").close()
    assert opened == REHEARSED


def test_a_signed_bundle_is_never_opened_from_what_was_compiled(
    bundle: Bundle, tmp_path: Path, engine: str, opened: Opened
) -> None:
    start(bundle, tmp_path, engine).close()
    bundle.signed = True
    opened.clear()
    start(bundle, tmp_path, engine).close()
    assert opened == [(GRID, False)]
    the_file(tmp_path).unlink()
    start(bundle, tmp_path, engine).close()
    assert the_file(tmp_path).read_bytes().endswith(b"}\n")


def test_what_does_not_reproduce_its_golden_run_leaves_no_proof(tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    tiny.write_tiny(folder)
    (folder / "wrong.onnx").write_bytes(tiny.onnx_bytes(tiny.WEIGHTS[::-1].copy()))
    document = tiny.manifest([{"engine": "onnx", "precision": "fp32", "file": "wrong.onnx"}])
    wrong = write_bundle(folder, document)
    proofs = Proofs(tmp_path / "proofs", MARKS)
    for _ in range(2):
        with pytest.raises(EngineError, match="does not reproduce"):
            open_session(wrong, "tiny", height=24, width=40, prefer=["onnx"], precision="fp32", proofs=proofs)
    assert not (tmp_path / "proofs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_costs_nothing_else(bundle: Bundle, tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "proofs").mkdir(mode=0o500)
    start(bundle, tmp_path, "onnx").close()
    assert opened == REHEARSED


def test_a_folder_that_is_a_file_costs_nothing_else(bundle: Bundle, tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "proofs").write_text("in the way")
    with structlog.testing.capture_logs() as said:
        start(bundle, tmp_path, "onnx").close()
    assert opened == REHEARSED
    assert ["cannot be kept" in entry["event"] for entry in said] == [True]


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs_module, "MAX_FILES", 3)
    proofs = Proofs(tmp_path / "proofs", MARKS)
    for number in range(5):
        assert proofs.put(f"k{number}", Proof({"y": 0.0}, "w"))
        os.utime(tmp_path / "proofs" / f"k{number}.proof", (number, number))
    assert sorted(path.stem for path in (tmp_path / "proofs").iterdir()) == ["k2", "k3", "k4"]
    monkeypatch.setattr(proofs_module, "MAX_BYTES", 64)
    assert not proofs.put("k9", Proof({"y": 0.0}, "w", bytes(100)))


def test_a_witness_is_of_every_bit_name_type_and_shape() -> None:
    y = np.arange(6, dtype=np.float32)
    same = witness_of({"y": y, "z": y})
    assert same == witness_of({"z": y.copy(), "y": y.copy()})
    nearly = y.copy()
    nearly[5] = np.nextafter(nearly[5], np.float32(9))
    others = [{"y": nearly, "z": y}, {"y": y}, {"y": y, "x": y}, {"y": y.reshape(2, 3), "z": y}]
    others.append({"y": y.view(np.int32), "z": y})
    assert len({same, *(witness_of(other) for other in others)}) == 1 + len(others)
