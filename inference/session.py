"""Opening a graph of a bundle on the first engine that really runs it. Engines are imported when they are tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Artifact, Bundle, Graph, TensorSpec
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.codec.kernels import Kernels
from scene_edge.codec.planes import MAX_SIDE, PACKED_CHANNELS
from scene_edge.inference.artifacts import artifacts_of
from scene_edge.inference.golden import Run, fitted, run_at, whole_run
from scene_edge.inference.proofs import Proof, Proofs, witness_of
from scene_edge.inference.seam import DEFAULT_THREADS, CheckedSession, Order, Session, TensorInfo, Tensors

__all__ = [
    "DEFAULT_ENGINES",
    "DEFAULT_THREADS",
    "ENGINE_MODULES",
    "Session",
    "TensorInfo",
    "Tensors",
    "available_engines",
    "open_session",
    "zero_inputs",
]

DEFAULT_ENGINES = ("openvino", "onnx", "litert")
MAX_THREADS = 256

_PROVEN: dict[tuple[bytes, str, str, str, str], Mapping[str, float]] = {}
"""(bundle digest, graph, engine, precision, file) of what has reproduced its golden run in this process at the golden
run's own size, and its errors: opening the same graph for the next camera or clip does not compile it twice."""

ENGINE_MODULES = {
    "openvino": "scene_edge.inference.openvino",
    "onnx": "scene_edge.inference.onnxruntime",
    "litert": "scene_edge.inference.litert",
    "tensorrt": "scene_edge.inference.tensorrt",
}


def open_session(
    bundle: Bundle,
    graph: str,
    *,
    height: int | None,
    width: int | None,
    prefer: Sequence[str] = DEFAULT_ENGINES,
    precision: str = "int8",
    threads: int | None = None,
    verify: bool = True,
    kernels: Kernels | None = None,
    proofs: Proofs | None = None,
) -> Session:
    """The first engine of `prefer` that really runs `graph`: at `precision` where an artifact has it, else at another.

    `height` and `width` are of the packed grid, H/4 and W/4; None for a graph whose shapes are all fixed. "Really runs"
    means: it reproduces the bundle's golden output within its tolerance, or, where there is none at a size that it can
    take, gives finite numbers for zeros; with other `kernels` in it, it does the latter, having done the former with
    its own. What was tried before, and why it failed, stands in `session.fallbacks`. With `proofs`, what an earlier
    start on this board found out is used, and what this one finds out is kept.

    Raises EngineError with every reason if no engine runs it.
    """
    spec = bundle.graph(graph)
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise EngineError("number of threads out of range", got=threads, allowed=f"1..{MAX_THREADS}")
    grid = None if height is None or width is None else (height, width)
    if grid is not None and not all(1 <= side <= MAX_SIDE // 4 for side in grid):
        raise EngineError("size of the packed grid out of range", got=grid, allowed=f"1..{MAX_SIDE // 4}")
    golden = _golden_run(bundle, spec)
    shapes = _input_shapes(spec, grid, golden)
    reasons: list[str] = []
    for engine in prefer:
        if engine not in ENGINE_MODULES:
            raise EngineError("unknown inference engine", got=engine, allowed=", ".join(ENGINE_MODULES))
        artifacts = [artifact for artifact in artifacts_of(spec, precision) if artifact.engine == engine]
        if not artifacts:
            reasons.append(f"{engine}: bundle {bundle.name} has no artifact for it")
        for artifact in sorted(artifacts, key=lambda item: _unfitness(item, precision, grid)):
            trial = _Trial(bundle, spec, artifact, threads or DEFAULT_THREADS, golden, kernels, proofs)
            try:
                session = trial.open(shapes, verify=verify)
            except (EngineError, BundleError) as error:
                reasons.append(f"{engine} {artifact.precision}: {error}")
                continue
            if artifact.precision != precision:
                reasons.append(f"{engine}: runs at {artifact.precision} instead of {precision}")
            session.fallbacks = tuple(reasons)
            return session
    raise EngineError(
        f"no inference engine runs graph {graph} of bundle {bundle.name}",
        got=" | ".join(reasons) or "no engine to try",
        hint='Install one of the extras "openvino", "onnx", "litert".',
    )


def available_engines() -> dict[str, str]:
    """Engine -> its version, or "absent: " and the reason."""
    found = {}
    for engine, module in ENGINE_MODULES.items():
        try:
            found[engine] = str(import_module(module).runtime_version())
        except EngineError as error:
            found[engine] = f"absent: {error}"
    return found


def zero_inputs(session: Session) -> dict[str, NDArray[Any]]:
    """An input of zeros for each of a session's inputs: states at the start of a GOP, and the least real inference."""
    return {name: np.zeros(info.shape, info.dtype) for name, info in session.inputs.items()}


@dataclass(frozen=True)
class _Trial:
    """One artifact on its engine: opened, then made to prove itself."""

    bundle: Bundle
    graph: Graph
    artifact: Artifact
    threads: int
    golden: Tensors = field(repr=False)
    kernels: Kernels | None = field(default=None, repr=False)
    proofs: Proofs | None = field(default=None, repr=False)

    def open(self, shapes: dict[str, tuple[int, ...]], *, verify: bool) -> Session:
        if not verify:
            return self._session(shapes, self.kernels)
        run = self._run(shapes)
        if run is None:
            session = self._session(shapes, self.kernels)
            with _closed_at_error(session):
                _check_finite(session, session.run(zero_inputs(session)))
        elif self.kernels is not None:
            self._rehearse(run)
            session = self._session(shapes, self.kernels)
            with _closed_at_error(session):
                _check_finite(session, session.run(zero_inputs(session)))
                session.proven = True
        elif _shapes(run) == shapes:
            session = self._session(shapes)
            with _closed_at_error(session):
                self._errors(session, run)
                session.proven = True
        else:
            session = self._remembered(shapes) or self._proven(shapes, run)
        return session

    def _remembered(self, shapes: dict[str, tuple[int, ...]]) -> CheckedSession | None:
        """What an earlier start proved, opened as it was then; None where it does not do what it did."""
        if self.proofs is None:
            return None
        order = self._order(shapes)
        key = self.proofs.key(order, self.graph.name, self._engine)
        proof = self.proofs.take(key)
        if proof is None or not proof.holds(self._tolerance):
            return None
        # A signature says that nobody has changed a network on its way here; a compiled one bears none.
        compiled = b"" if self.bundle.signed else proof.compiled
        try:
            session: CheckedSession = self._engine.open_engine(order._replace(compiled=compiled))
        except EngineError:
            return None
        with _closed_at_error(session):
            if witness_of(session.run(self._fitted(shapes))) != proof.witness:
                session.close()
                return None
        self.proofs.put_back(key)
        _PROVEN[self._known_as] = proof.errors
        session.proven = True
        return session

    def _proven(self, shapes: dict[str, tuple[int, ...]], run: Run) -> CheckedSession:
        """At these shapes, having reproduced the golden run at the golden run's."""
        errors = self._rehearse(run)
        session = self._session(shapes)
        with _closed_at_error(session):
            outputs = session.run(self._fitted(shapes))
            _check_finite(session, outputs)
        session.proven = True
        if self.proofs is not None and errors:
            key = self.proofs.key(self._order(shapes), self.graph.name, self._engine)
            compiled = b"" if self.bundle.signed else session.compiled()
            self.proofs.put(key, Proof(errors, witness_of(outputs), compiled))
        return session

    def _run(self, shapes: dict[str, tuple[int, ...]]) -> Run | None:
        """The golden run that the artifact can do: the whole one, or where it is fixed to another size, one of that."""
        if not self.golden:
            return None
        whole, size = whole_run(self.golden), self.artifact.shape_hint
        return whole if size is None or _shapes(whole) == shapes else run_at(self.golden, size, shapes)

    @property
    def _engine(self) -> ModuleType:
        return import_module(ENGINE_MODULES[self.artifact.engine])

    @property
    def _known_as(self) -> tuple[bytes, str, str, str, str]:
        artifact = self.artifact
        return self.bundle.digest, self.graph.name, artifact.engine, artifact.precision, artifact.file

    @property
    def _tolerance(self) -> float:
        return self.graph.golden.tolerance if self.graph.golden is not None else 0.0

    def _order(self, shapes: dict[str, tuple[int, ...]], kernels: Kernels | None = None) -> Order:
        inputs = {spec.name: TensorInfo(shapes[spec.name], np.dtype(spec.dtype)) for spec in self.graph.inputs}
        outputs = tuple(spec.name for spec in self.graph.outputs)
        return Order(self.bundle, self.artifact, inputs, outputs, self.threads, kernels)

    def _session(self, shapes: dict[str, tuple[int, ...]], kernels: Kernels | None = None) -> CheckedSession:
        session: CheckedSession = self._engine.open_engine(self._order(shapes, kernels))
        return session

    def _fitted(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
        """The golden run's inputs at other shapes."""
        return fitted(whole_run(self.golden).inputs, shapes)

    def _rehearse(self, run: Run) -> Mapping[str, float]:
        """The golden run in a session of its own, at the golden run's size: its errors, once in a process."""
        known = _PROVEN.get(self._known_as)
        if known is not None:
            return known
        rehearsal = self._session(_shapes(run))
        try:
            errors = self._errors(rehearsal, run)
        finally:
            rehearsal.close()
        _PROVEN[self._known_as] = errors
        return errors

    def _errors(self, session: Session, run: Run) -> dict[str, float]:
        """How far the session is from the golden run. Raises EngineError where that is too far."""
        errors = run.errors(session.run({name: run.inputs[name] for name in session.inputs}))
        worst = max(errors, key=lambda name: errors[name])
        if errors[worst] > self._tolerance:
            raise EngineError(
                f"{session.engine} does not reproduce the golden output {worst}",
                got=f"relative error {errors[worst]:.3g}",
                allowed=f"at most {self._tolerance}",
            )
        return errors


@contextmanager
def _closed_at_error(session: Session) -> Iterator[None]:
    try:
        yield
    except EngineError:
        session.close()
        raise


def _check_finite(session: Session, outputs: Tensors) -> None:
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise EngineError(f"{session.engine} gives output {name} that is not finite")


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in run.inputs.items()}


def _unfitness(artifact: Artifact, precision: str, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Sorts the best artifact first: the asked precision, then the very size, then any size, then another size."""
    sizes = (grid, None)
    size = sizes.index(artifact.shape_hint) if artifact.shape_hint in sizes else len(sizes)
    return int(artifact.precision != precision), size


def _input_shapes(graph: Graph, grid: tuple[int, int] | None, golden: Tensors) -> dict[str, tuple[int, ...]]:
    """The graph's input shapes with every open dimension filled in from the grid."""
    reference = _golden_grid(graph, golden)
    shapes = {}
    for spec in graph.inputs:
        if None not in spec.shape:
            shapes[spec.name] = tuple(side for side in spec.shape if side is not None)
            continue
        if grid is None:
            raise EngineError(
                f"graph {graph.name} has no fixed size", got=f"{spec.name} {spec.shape}", hint="Give height and width."
            )
        shapes[spec.name] = _filled(spec, grid, reference, golden)
    return shapes


def _filled(
    spec: TensorSpec, grid: tuple[int, int], reference: tuple[int, int] | None, golden: Tensors
) -> tuple[int, ...]:
    """Packed pictures [.., h, w, 24] take the grid; other tensors [.., h / n, w / n] scale as in the golden run."""
    open_places = [place for place, side in enumerate(spec.shape) if side is None]
    shape = list(spec.shape)
    if len(open_places) != 2:
        raise EngineError(f"input {spec.name} must leave height and width open, or nothing", got=spec.shape)
    if _is_packed(spec):
        sides = grid
    elif reference is not None:
        known = golden[f"in.{spec.name}"].shape
        sides = (
            grid[0] * known[open_places[0]] // reference[0],
            grid[1] * known[open_places[1]] // reference[1],
        )
    else:
        raise EngineError(
            f"size of input {spec.name} does not follow from the picture's", hint="Ship the bundle with a golden run."
        )
    for place, side in zip(open_places, sides, strict=True):
        shape[place] = side
    return tuple(side for side in shape if side is not None)


def _golden_run(bundle: Bundle, graph: Graph) -> Tensors:
    """The golden tensors, once each input and output is there and fits its spec; {} where the bundle has none."""
    if graph.golden is None:
        return {}
    golden = bundle.tensors(graph.golden.file)
    for prefix, specs in (("in", graph.inputs), ("out", graph.outputs)):
        for spec in specs:
            found = golden.get(f"{prefix}.{spec.name}")
            if found is None or found.dtype != np.dtype(spec.dtype) or not _fits(found.shape, spec.shape):
                got = "nothing" if found is None else f"{found.dtype} {found.shape}"
                raise BundleError(
                    f"golden run of graph {graph.name} does not fit: {prefix}.{spec.name}",
                    got=got,
                    allowed=f"{spec.dtype} {spec.shape}",
                )
    return golden


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def _golden_grid(graph: Graph, golden: Tensors) -> tuple[int, int] | None:
    for spec in graph.inputs:
        if _is_packed(spec) and f"in.{spec.name}" in golden:
            shape = golden[f"in.{spec.name}"].shape
            return shape[-3], shape[-2]
    return None


def _is_packed(spec: TensorSpec) -> bool:
    return len(spec.shape) >= 4 and spec.shape[-1] == PACKED_CHANNELS
