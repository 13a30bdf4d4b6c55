"""Each INT8 artefact that ships reproduces its golden run on its engine: on this machine, and on ARM (tests/arm64)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scene_edge.codec.bundle import Artifact, Bundle, shipped_bundles
from scene_edge.inference.session import available_engines, open_session


def artefacts() -> Iterator[tuple[str, str, Artifact]]:
    for name in shipped_bundles():
        bundle = Bundle.open(name)
        for graph in bundle.manifest["graphs"]:
            for artifact in bundle.graph(graph).artifacts:
                if artifact.precision == "int8":
                    yield name, graph, artifact


@pytest.mark.parametrize(
    ("name", "graph", "artifact"), [pytest.param(*found, id=f"{found[0]}-{found[2].file}") for found in artefacts()]
)
def test_it_reproduces_its_golden_run(name: str, graph: str, artifact: Artifact) -> None:
    state = available_engines()[artifact.engine]
    if state.startswith("absent"):
        pytest.skip(state)
    bundle = Bundle.open(name)
    spec = bundle.graph(graph)
    assert spec.golden is not None
    golden = bundle.tensors(spec.golden.file)
    rows, columns = artifact.shape_hint or golden[f"in.{spec.inputs[0].name}"].shape[-3:-1]
    session = open_session(bundle, graph, height=rows, width=columns, prefer=(artifact.engine,), threads=1)
    assert (session.engine, session.precision, session.fallbacks) == (artifact.engine, "int8", ())
    kept = any(name.startswith(f"at.{rows}x{columns}.") for name in golden)
    assert session.proven == (artifact.shape_hint is None or kept)
    assert kept or bundle.kind != "smc" or artifact.shape_hint is None, "re-export: its golden run has not this size"
    session.close()
