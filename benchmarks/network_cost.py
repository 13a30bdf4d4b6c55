"""What SMC's networks cost: parameters, GMAC a frame, and milliseconds a frame on each engine and precision.

    python -m benchmarks.network_cost --sizes 960x540 --threads 1

Bundles are counted and timed as they ship, PyTorch as the training side builds each size, untrained: no weight changes
what it costs. A graph is one side's whole share of a frame: the encoder is the camera's, the decoder the server's. The
encoder rests in the frames for which a latent stands; how many share one run stands in the table.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import _report
from scene_edge.codec import ir
from scene_edge.codec.bundle import Bundle, shipped_bundles
from scene_edge.codec.errors import BundleError, ConfigError, EngineError
from scene_edge.codec.planes import PACKED_CHANNELS, aligned
from scene_edge.codec.quality import hold_of
from scene_edge.inference import openvino
from scene_edge.inference.session import Session, open_session, zero_inputs
from scene_edge.models.operating_point import HOLD
from scene_edge.models.sizes import SIZES, build_smc
from scene_edge.models.smc import SmcDecoder, SmcEncoder

EXAMPLE = "Example: python -m benchmarks.network_cost --sizes 960x540,1920x1080 --threads 1,2 --json network_cost.json"

GRAPHS = ("encoder", "decoder")

WARM_UP = 2

console = _report.console()


def macs_of(model: Any) -> int:
    """Multiplications of one run of an OpenVINO model with fixed shapes, in its convolutions and matrix products."""
    multiplications, _ = openvino.products(model)
    return multiplications


def bundle_macs(bundle: Bundle, graph: str, size: tuple[int, int]) -> int | None:
    """MAC of a frame of the luma size (width, height); None for a bundle without an artefact for OpenVINO."""
    files = [a.file for a in bundle.graph(graph).artifacts if a.engine == "openvino" and a.file.endswith(ir.SUFFIX)]
    if not files:
        return None
    session = _session(bundle, graph, "openvino", "int8", size, 1)
    shapes = {name: list(info.shape) for name, info in session.inputs.items()}
    session.close()
    core = openvino.load().Core()
    model = core.read_model(ir.inflate(bundle.read(files[0]), files[0]), bundle.read(ir.weights_of(files[0])))
    model.reshape(shapes)
    return macs_of(model)


def parameters_of(bundle: Bundle) -> int:
    """Of all networks of the bundle, as its manifest tells. Raises BundleError where it does not."""
    count = bundle.parameters.get("weights")
    if not isinstance(count, int):
        raise BundleError(f"bundle {bundle.name} does not say how many weights it has", hint="Export it anew.")
    return count


def torch_graphs(size: str, luma: tuple[int, int], trained: Any = None) -> dict[str, tuple[nn.Module, list[Tensor]]]:
    """Graph -> the module that is exported for it, and inputs for a frame of the luma size (width, height)."""
    model: Any = trained or build_smc(size).eval()  # every size has the parts that the exported graphs name
    rows, columns = aligned(luma[1]) // 4, aligned(luma[0]) // 4
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (1, rows, columns, PACKED_CHANNELS), generator=generator, dtype=torch.uint8)
    states = model.states(1, rows, columns)
    encoder, decoder = SmcEncoder(model), SmcDecoder(model)
    given = [picture, picture, states["sem"], states["lossy"]]
    with torch.inference_mode():
        latent = torch.zeros_like(encoder(*given)[0])
    return {"encoder": (encoder, given), "decoder": (decoder, [picture, latent, states["lossy"], states["fuse"]])}


def torch_macs(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """The same count for a PyTorch module."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() // 2


def spent_ms(call: Callable[[], object], runs: int) -> dict[str, float]:
    """Medians for a call, after a few that do not count: `wall`, and `cpu` of all threads of this process.

    On a busy machine only the latter says what one core would take.
    """
    for _ in range(WARM_UP):
        call()
    spent: dict[str, list[float]] = {"wall": [], "cpu": []}
    for _ in range(runs):
        started_ns = time.perf_counter_ns(), time.process_time_ns()
        call()
        spent["wall"].append(time.perf_counter_ns() - started_ns[0])
        spent["cpu"].append(time.process_time_ns() - started_ns[1])
    return {name: round(statistics.median(values) / 1e6, 2) for name, values in spent.items()}


def bundle_rows(
    bundle: Bundle, sizes: Sequence[tuple[int, int]], threads: Sequence[int], runs: int
) -> Iterator[dict[str, Any]]:
    """One row for each engine, precision, number of threads and size; `ms` of a graph that does not open is None."""
    artifacts = [artifact for graph in GRAPHS for artifact in bundle.graph(graph).artifacts]
    for engine, precision in dict.fromkeys((artifact.engine, artifact.precision) for artifact in artifacts):
        for count in threads:
            for size in sizes:
                row: dict[str, Any] = {"model": bundle.name, "engine": engine, "precision": precision}
                row |= {"threads": count, "size": size, "hold": hold_of(bundle), "ms": {}, "reasons": {}}
                for graph in GRAPHS:
                    try:
                        session = _session(bundle, graph, engine, precision, size, count)
                    except EngineError as error:
                        row["ms"][graph], row["reasons"][graph] = None, str(error)
                        continue
                    feed = some_inputs(session)
                    row["ms"][graph] = spent_ms(lambda: session.run(feed), runs)  # noqa: B023
                    session.close()
                yield row


def _session(bundle: Bundle, graph: str, engine: str, precision: str, size: tuple[int, int], threads: int) -> Session:
    """Raises EngineError where the engine does not run the graph at this size, or only at another precision."""
    height, width = aligned(size[1]) // 4, aligned(size[0]) // 4
    session = open_session(
        bundle, graph, height=height, width=width, prefer=(engine,), precision=precision, threads=threads
    )
    if session.precision != precision and precision != "int8":
        session.close()
        raise EngineError(f"{engine} runs {graph} at another precision", got=session.precision, allowed=precision)
    return session


def some_inputs(session: Session) -> dict[str, NDArray[Any]]:
    """Noise for pictures, zeros for the rest: what a GOP begins with."""
    generator = np.random.default_rng(0)
    zeros = zero_inputs(session)
    return {
        name: generator.integers(0, 256, array.shape, np.uint8) if array.dtype == np.uint8 else array
        for name, array in zeros.items()
    }


def torch_rows(
    name: str, sizes: Sequence[tuple[int, int]], threads: Sequence[int], runs: int
) -> Iterator[dict[str, Any]]:
    """The same rows for PyTorch, in float32 and in bfloat16."""
    for size in sizes:
        graphs = torch_graphs(name, size)
        for precision in ("fp32", "bf16"):
            for count in threads:
                torch.set_num_threads(count)
                low = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
                with torch.inference_mode(), low:
                    ms = {graph: spent_ms(lambda: module(*given), runs) for graph, (module, given) in graphs.items()}  # noqa: B023
                row = {"model": name, "engine": "pytorch", "precision": precision, "threads": count, "size": size}
                yield row | {"hold": HOLD, "ms": ms, "reasons": {}}


def count_bundle(bundle: Bundle, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Parameters and MAC of a bundle as it ships."""
    macs = {shown(size): {graph: bundle_macs(bundle, graph, size) for graph in GRAPHS} for size in sizes}
    return {"model": bundle.name, "form": f"bundle {bundle.version}", "parameters": parameters_of(bundle), "macs": macs}


def count_torch(name: str, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Parameters and MAC of a size as the training side builds it."""
    macs = {}
    for size in sizes:
        macs[shown(size)] = {graph: torch_macs(*found) for graph, found in torch_graphs(name, size).items()}
    parameters = sum(weight.numel() for weight in build_smc(name).parameters())
    return {"model": name, "form": "PyTorch", "parameters": parameters, "macs": macs}


def shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def show(counts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], sizes: Sequence[str]) -> None:
    table = Table(title="parameters and GMAC a frame: camera + server", title_justify="left")
    for title in ("model", "form", "parameters, M", *sizes):
        table.add_column(title, justify="left" if title in ("model", "form") else "right")
    for count in counts:
        cells = [" + ".join(_number(macs[graph], 1e9) for graph in GRAPHS) for macs in count["macs"].values()]
        table.add_row(count["model"], count["form"], _number(count["parameters"], 1e6), *cells)
    console.print(table)
    title = "milliseconds a run: camera, once in so many frames, + server; median (CPU of all threads)"
    times = Table(title=title, title_justify="left")
    for title in ("model", "engine", "precision", "threads", "frames a run", *sizes):
        times.add_column(title, justify="left" if title in ("model", "engine", "precision") else "right")
    for key in dict.fromkeys(tuple(row[name] for name in _KEY) for row in rows):
        mine = {shown(row["size"]): row["ms"] for row in rows if key == tuple(row[name] for name in _KEY)}
        cells = [" + ".join(_spent(mine[size][graph]) for graph in GRAPHS) for size in sizes if size in mine]
        times.add_row(*map(str, key), *cells)
    console.print(times)


def _spent(ms: Mapping[str, float] | None) -> str:
    return "-" if ms is None else f"{ms['wall']:.1f} ({ms['cpu']:.1f})"


_KEY = ("model", "engine", "precision", "threads", "hold")


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.1f}"


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """ "960x540,1920x1080" -> [(960, 540), (1920, 1080)]. Raises ConfigError."""
    try:
        sizes = [(int(width), int(height)) for width, height in (part.split("x") for part in text.split(","))]
    except ValueError as error:
        raise ConfigError("not a list of sizes", got=text, allowed="such as 960x540,1920x1080") from error
    if not all(32 <= side <= 8192 for size in sizes for side in size):
        raise ConfigError("a size is out of range", got=text, allowed="32..8192")
    return sizes


def run(
    bundles: Annotated[str | None, typer.Option(help="Names or folders; default: every SMC bundle that ships.")] = None,
    models: Annotated[str, typer.Option(help="Sizes in PyTorch; empty for none.")] = ",".join(SIZES),
    sizes: Annotated[str, typer.Option(help="Of pictures, in luma samples.")] = "960x540,1920x1080",
    threads: Annotated[str, typer.Option(help="Numbers of threads, comma separated.")] = "1,2",
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each graph.")] = 10,
    zoo: Annotated[Path | None, typer.Option(help="Folder of the bundles; default: the shipped ones.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Count parameters and multiplications, and time each graph on each engine that a bundle has it for."""
    report = _report.envelope("network_cost")
    measured, workers = parse_sizes(sizes), _report.numbers(threads)
    names = shipped_bundles(zoo) if bundles is None else bundles.split(",")
    opened = [bundle for bundle in (Bundle.open(name, zoo=zoo) for name in names) if bundle.kind == "smc"]
    built = [name for name in models.split(",") if name]
    counts = [count_bundle(bundle, measured) for bundle in opened] + [count_torch(name, measured) for name in built]
    rows = [row for bundle in opened for row in bundle_rows(bundle, measured, workers, runs)]
    rows += [row for name in built for row in torch_rows(name, measured, workers, runs)]
    show(counts, rows, [shown(size) for size in measured])
    _report.write_json(json_file, report | {"runs": runs, "counts": counts, "rows": rows})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
