"""One contract for every engine and for the fake: the same calls, the same numbers, the same errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import EngineError
from scene_edge.inference.fake import FakeSession
from scene_edge.inference.session import Session, TensorInfo, available_engines, open_session, zero_inputs
from tests.inference import tiny

ENGINES = ("openvino", "onnx", "litert", "fake")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("onnx")
    return tiny.write_tiny(tmp_path_factory.mktemp("contract") / "tiny")


def make(engine: str, bundle: Bundle) -> Session:
    if engine == "fake":
        picture, state = TensorInfo((1, 16, 24, 24), np.dtype(np.uint8)), TensorInfo((1, 4, 4, 6), np.dtype(np.float32))
        fake = FakeSession(
            lambda given: tiny.truth(dict(given)),
            inputs={"x": picture, "state": state},
            outputs={"y": state, "next_state": state},
        )
        return fake
    state_of_engine = available_engines()[engine]
    if state_of_engine.startswith("absent"):
        pytest.skip(state_of_engine)
    return open_session(bundle, "tiny", height=16, width=24, prefer=[engine], precision="fp32")


class TestSession:
    @pytest.fixture(params=ENGINES)
    def session(self, request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Session]:
        session = make(request.param, bundle)
        assert session.engine == request.param
        yield session
        session.close()

    def test_it_says_what_it_is(self, session: Session) -> None:
        assert session.precision == "fp32"
        assert session.device
        assert session.fallbacks == ()
        assert session.inputs["x"] == ((1, 16, 24, 24), np.dtype(np.uint8))
        assert session.inputs["state"] == ((1, 4, 4, 6), np.dtype(np.float32))
        assert set(session.outputs) == {"y", "next_state"}
        assert session.outputs["y"].dtype == np.float32

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_it_computes_the_graph(self, session: Session, seed: int) -> None:
        given = tiny.inputs(seed)
        found, expected = session.run(given), tiny.truth(given)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_allclose(found[name], array, rtol=2e-3, atol=2e-2)

    def test_the_same_input_gives_the_same_bits(self, session: Session) -> None:
        first, second = session.run(tiny.inputs(3)), session.run(tiny.inputs(3))
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_later_runs_do_not_touch_earlier_outputs(self, session: Session) -> None:
        first = session.run(tiny.inputs(4))
        kept = {name: array.copy() for name, array in first.items()}
        second = session.run(tiny.inputs(5))
        assert all(np.array_equal(first[name], kept[name]) for name in first)
        assert not np.array_equal(first["y"], second["y"])
        assert not any(np.shares_memory(first[name], second[name]) for name in first)
        assert not np.shares_memory(first["y"], first["next_state"])
        first["y"][...] = -1

    def test_inputs_stay_as_they_are(self, session: Session) -> None:
        given = tiny.inputs(6)
        kept = {name: array.copy() for name, array in given.items()}
        outputs = session.run(given)
        assert all(np.array_equal(given[name], kept[name]) for name in given)
        assert not any(np.shares_memory(out, array) for out in outputs.values() for array in given.values())

    def test_state_goes_round(self, session: Session) -> None:
        state = expected = zero_inputs(session)["state"]
        for step in range(4):
            picture = tiny.inputs(step)["x"]
            state = session.run({"x": picture, "state": state})["next_state"]
            expected = tiny.truth({"x": picture, "state": expected})["next_state"]
        np.testing.assert_allclose(state, expected, rtol=2e-3, atol=2e-2)

    def test_views_and_read_only_arrays_are_taken(self, session: Session) -> None:
        given = tiny.inputs(7)
        expected = session.run(given)["y"]
        strided = np.repeat(given["x"], 2, axis=2)[:, :, ::2]
        frozen = given["state"].copy()
        frozen.setflags(write=False)
        from_bytes = np.frombuffer(given["x"].tobytes(), np.uint8).reshape(given["x"].shape)
        assert np.array_equal(session.run({"state": frozen, "x": strided})["y"], expected)
        assert np.array_equal(session.run({"x": from_bytes, "state": frozen})["y"], expected)

    def test_wrong_inputs_are_named(self, session: Session) -> None:
        good = tiny.inputs(8)
        for change, complaint in (
            ({"x": good["x"][:, :8]}, "input x"),
            ({"x": good["x"][0]}, "input x"),
            ({"x": good["x"].astype(np.float32)}, "input x"),
            ({"state": good["state"].astype(np.float64)}, "input state"),
            ({"other": good["x"]}, "wrong inputs"),
        ):
            with pytest.raises(EngineError, match=complaint):
                session.run({**good, **change})
        with pytest.raises(EngineError, match="wrong inputs"):
            session.run({"x": good["x"]})
        assert session.run(good).keys() == {"y", "next_state"}, "an error must not spoil the session"

    def test_closing(self, session: Session, bundle: Bundle) -> None:
        other = make(session.engine, bundle)
        other.close()
        other.close()
        with pytest.raises(EngineError, match="closed"):
            other.run(tiny.inputs())
        assert session.run(tiny.inputs()), "closing one session leaves the others alone"
