"""What every stage takes as pictures grow, on each engine and precision, against float32 in the same run; and the
server's cost as cameras grow.

    python -m benchmarks.latency --sizes 640x360,960x540,1280x720,1920x1080 --plot docs/latency.png

Stages are those of `scene-edge bench`, with the shipped bundles. Beside them run the same networks in float32: on ONNX
Runtime and OpenVINO from bundles that are exported here, packing and rounding included, and in PyTorch, the network
alone. Exported SMC is untrained: no weight changes what it costs. Ratios are of medians within one run and one size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from rich.table import Table
from safetensors.numpy import save

from benchmarks import _report
from benchmarks.float_bundle import EXPORT_SIZES, INPUTS
from benchmarks.network_cost import parse_sizes, shown, spent_ms, torch_graphs
from scene_edge.codec.bundle import Bundle, write_bundle
from scene_edge.codec.kernels import WEIGHTS, Kernel, KernelBank, Kernels
from scene_edge.codec.planes import PACKED_CHANNELS, aligned
from scene_edge.codec.quality import seen_size
from scene_edge.edge.bench import CameraBench
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.settings import load_config
from scene_edge.inference.roofline import Peaks, measure_peaks
from scene_edge.inference.stages import StageRow
from scene_edge.models.registry import GraphExport
from scene_edge.models.scene import CENTRE, FoldedScene, SceneFilterGraph, SceneNet
from scene_edge.models.sizes import SCENE_CAMERA_SIZES
from scene_edge.quantize.graphs import dynamic_axes, export_program, run_torch, to_onnx
from scene_edge.quantize.kernels import slots_of
from scene_edge.quantize.to_openvino import to_ir
from scene_edge.server.analytics.detector import BundleDetector
from scene_edge.server.bench import Received, ServerBench
from scene_edge.server.config import ServerConfig
from scene_edge.server.fusion import FusionDecoder

EXAMPLE = "Example: python -m benchmarks.latency --sizes 640x360,960x540 --frames 30 --cameras 1,4 --json latency.json"

SEED = 1
NETWORKS = {"scene": "filter", "smc_encode": "encoder", "smc_decode": "decoder"}
"""Stage -> its graph: those that are measured in float too."""

console = _report.console()


def float_smc(name: str, folder: Path) -> Path:
    """A bundle of the network `name` in float32 for ONNX Runtime and OpenVINO, untrained, its golden run its own."""
    shipped = Bundle.open(name)
    folder.mkdir(parents=True)
    tables = str(shipped.parameters["tables"])
    (folder / tables).write_bytes(shipped.read(tables))
    torch.manual_seed(SEED)
    built = [torch_graphs(name, size) for size in EXPORT_SIZES]
    graphs = {}
    for graph, (inputs, outputs) in INPUTS.items():
        module = built[0][graph][0]
        samples = [dict(zip(inputs, (tensor.numpy() for tensor in found[graph][1]), strict=True)) for found in built]
        export = GraphExport(module, list(samples[0].items()), list(outputs), samples)
        data = to_onnx(export_program(export, samples[0], dynamic_axes(export)), inputs, outputs).SerializeToString()
        golden = {f"in.{key}": value for key, value in samples[0].items()}
        golden |= {f"out.{key}": value for key, value in run_torch(export, samples[0]).items()}
        (folder / f"{graph}.golden.safetensors").write_bytes(save(golden))
        graphs[graph] = _float_entry(dict(shipped.manifest["graphs"][graph]), graph, data, folder)
        graphs[graph]["golden"] = {"file": f"{graph}.golden.safetensors", "tolerance": 0.05}
    return _written(shipped, graphs, folder)


def float_scene(name: str, folder: Path) -> Path:
    """The same for SCENE, which ships its float32 ONNX and the golden runs that belong to it."""
    shipped = Bundle.open(name)
    folder.mkdir(parents=True)
    graphs = {}
    for graph, entry in shipped.manifest["graphs"].items():
        file = next(item["file"] for item in entry["artifacts"] if item["precision"] == "fp32")
        kernels = _kernels_in(shipped, graph, file)
        graphs[graph] = _float_entry(dict(entry), graph, shipped.read(file), folder, kernels)
        shutil.copy(shipped.path / entry["golden"]["file"], folder)
    shutil.copy(shipped.path / WEIGHTS, folder)
    return _written(shipped, graphs, folder)


def _kernels_in(bundle: Bundle, graph: str, file: str) -> dict[str, Kernel]:
    """The kernels that a camera may change, as a float artefact has them."""
    data, bank = bundle.read(file), KernelBank(bundle)
    like, found = bank.assemble(np.ones(bank.coefficients)), {}
    (artifact,) = (item for item in bundle.graph(graph).artifacts if item.file == file)
    for slot in artifact.kernels:
        shapes = like[slot.layer]
        weights = np.frombuffer(data, np.float32, shapes.weights.size, slot.weights).reshape(shapes.weights.shape)
        found[slot.layer] = Kernel(weights, np.frombuffer(data, np.float32, shapes.bias.size, slot.bias))
    return found


def _float_entry(
    entry: dict[str, Any], graph: str, data: bytes, folder: Path, kernels: Kernels | None = None
) -> dict[str, Any]:
    """The graph's entry in the manifest with float32 artefacts alone, whose files are written."""
    plain = to_ir(data)
    files = {
        "openvino": {f"{graph}.fp32{suffix}": content for suffix, content in plain.items()},
        "onnx": {f"{graph}.fp32.onnx": data},
    }
    entry["artifacts"] = []
    for engine, written in files.items():
        for name, content in written.items():
            (folder / name).write_bytes(content)
        slots = {"kernels": slots_of(engine, written, kernels)} if kernels else {}
        artifact = {"engine": engine, "precision": "fp32", "file": next(iter(written)), "shape": None}
        entry["artifacts"].append({**artifact, **slots})
    return entry


def _written(shipped: Bundle, graphs: dict[str, Any], folder: Path) -> Path:
    head = {key: value for key, value in shipped.manifest.items() if key not in ("files", "graphs", "name")}
    write_bundle(folder, json.loads(json.dumps({**head, "name": f"{shipped.name}-float", "graphs": graphs})))
    return folder


def rows_of(
    config: CameraConfig, size: tuple[int, int], frames: int, peaks: Peaks, engines: Sequence[str], form: str
) -> Iterator[dict[str, Any]]:
    """Every stage with the configured bundles, or for `form` float those that have a network."""
    camera = CameraBench(config, size, frames, peaks)
    camera.run(engines, "not measured here: see scene-edge bench")
    material = camera.material
    received = Received(material.pictures, material.packets, material.fps, Bundle.open(config.semantics.bundle))
    threads = config.semantics.threads
    settings = ServerConfig()
    analytics = settings.analytics.model_copy(update={"threads": threads})
    fusion = settings.fusion.model_copy(update={"threads": threads})
    server = ServerBench(received, peaks, config=settings.model_copy(update={"analytics": analytics, "fusion": fusion}))
    if form == "float":
        server.smc_decode(engines)
    else:
        server.run(engines)
    for row in (*camera.rows, *server.rows):
        if row.stage != "publish" and (form != "float" or (row.stage in NETWORKS and row.precision == "fp32")):
            yield {**row.as_json(), "form": form}


def torch_rows(scene: str, smc: str, size: tuple[int, int], runs: int, threads: int) -> Iterator[dict[str, Any]]:
    """The networks alone in PyTorch, float32, without packing and rounding."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    seen = seen_size(Bundle.open(smc), *size)
    graphs: dict[str, Any] = {stage: torch_graphs(smc, seen)[graph] for stage, graph in list(NETWORKS.items())[1:]}
    net = SceneNet(SCENE_CAMERA_SIZES[scene])
    picture = torch.randint(0, 256, (1, aligned(size[1]) // 4, aligned(size[0]) // 4, PACKED_CHANNELS)).to(torch.uint8)
    folded = FoldedScene(net, net.controls(torch.ones(1, net.config.coefficients, 1, 1), CENTRE))
    graphs["scene"] = SceneFilterGraph(folded).eval(), [picture]
    for stage, (module, given) in graphs.items():
        with torch.inference_mode():
            ms = spent_ms(lambda: module(*given), runs)["wall"]  # noqa: B023
        row = StageRow(stage, scene if stage == "scene" else smc, "pytorch", "fp32", *size, ms_p50=ms)
        yield {**row.as_json(), "form": "pytorch"}


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each network and size: the shipped INT8 that is fastest, and how many times longer each float32 takes."""
    found = []
    for stage in NETWORKS:
        for size in dict.fromkeys((row["width"], row["height"]) for row in rows):
            mine = [row for row in rows if row["stage"] == stage and (row["width"], row["height"]) == size]
            ran = [row for row in mine if row["ms_p50"] is not None]
            shipped = [row for row in ran if row["form"] == "shipped" and row["precision"] == "int8"]
            if not shipped:
                continue
            best = min(shipped, key=lambda row: row["ms_p50"])
            others = [row for row in ran if row["precision"] == "fp32" and row["form"] != "shipped"]
            times = {f"{row['engine']} fp32": round(row["ms_p50"] / best["ms_p50"], 2) for row in others}
            head = {"stage": stage, "width": size[0], "height": size[1], "best": f"{best['engine']} int8"}
            found.append({**head, "ms": best["ms_p50"], "peak_ratio": best["peak_ratio"], "times": times})
    return found


def cameras_rows(material: Received, counts: Sequence[int], rounds: int, threads: int) -> Iterator[dict[str, Any]]:
    """The server with so many cameras: each has sessions of its own and one thread, as in the server, and sends a frame
    a round; every picture is fused, every sixth looked at (5 of 30 a second)."""
    decoders: list[FusionDecoder] = []
    detectors: list[BundleDetector] = []
    detector, pictures = Bundle.open(ServerConfig().analytics.detector), material.pictures
    for count in sorted(counts):
        while len(decoders) < count:
            decoders.append(FusionDecoder(material.bundle, *material.size, threads=threads))
            detectors.append(BundleDetector(detector, threads=threads))

        def serve(index: int, turn: int) -> None:
            fused = decoders[index].fuse(pictures[turn % len(pictures)], None, turn == 0)
            if turn % 6 == index % 6:
                detectors[index].detect(fused)

        spent_s = []
        with ThreadPoolExecutor(count) as pool:
            for turn in range(rounds + 1):
                started = time.perf_counter()
                list(pool.map(serve, range(count), [turn] * count))
                spent_s.append(time.perf_counter() - started)
        round_ms = float(np.median(spent_s[1:])) * 1000
        row = {"cameras": count, "round_ms": round(round_ms, 2), "ms_a_frame": round(round_ms / count, 2)}
        yield row | {"fps": round(1000 * count / round_ms, 2), "rss_mb": round(_report.peak_memory_mb())}
    for opened in (*decoders, *detectors):
        opened.close()


def show(rows: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]]) -> None:
    table = Table(title="ms a call, median (x roofline)", title_justify="left")
    for title in ("stage", "model", "engine", "precision"):
        table.add_column(title)
    for size in sizes:
        table.add_column(shown(size), justify="right")
    keys = dict.fromkeys((row["stage"], row["model"], row["engine"], row["precision"], row["form"]) for row in rows)
    for key in keys:
        cells = []
        for size in sizes:
            mine = [row for row in rows if key == tuple(row[name] for name in _KEY) and row["width"] == size[0]]
            ms, ratio = (mine[0]["ms_p50"], mine[0]["peak_ratio"]) if mine else (None, None)
            cells.append("-" if ms is None else f"{ms:.2f}" + ("" if ratio is None else f" ({ratio:.1f})"))
        table.add_row(*(str(part or "-") for part in key[:4]), *cells)
    console.print(table)


_KEY = ("stage", "model", "engine", "precision", "form")


def show_ratios(found: Sequence[Mapping[str, Any]]) -> None:
    table = Table("stage", "size", "fastest INT8", "ms", "x roofline", "float32 takes so many times longer")
    for item in found:
        times = ", ".join(f"{name} {value:.2f}" for name, value in item["times"].items())
        head = item["stage"], f"{item['width']}x{item['height']}", item["best"], f"{item['ms']:.2f}"
        table.add_row(*head, "-" if item["peak_ratio"] is None else f"{item['peak_ratio']:.2f}", times)
    console.print(table)


def show_growth(rows: Sequence[Mapping[str, Any]], size: str) -> None:
    if not rows:
        return
    table = Table("cameras", "ms a round", "ms a frame", "frames/s", "RSS MB", title=f"server at {size}")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("cameras", "round_ms", "ms_a_frame", "fps", "rss_mb")))
    console.print(table)


def draw(rows: Sequence[Mapping[str, Any]], cameras: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Left: ms a frame of each stage of the camera over the picture's size. Right: the server over cameras."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for stage in ("h264_encode", "h264_decode", "scene", "smc_encode", "entropy"):
        best: dict[float, float] = {}
        for row in rows:
            if row["stage"] == stage and row["form"] == "shipped" and row["fps"]:
                pixels = row["width"] * row["height"] / 1e6
                best[pixels] = min(best.get(pixels, float("inf")), 1000 / row["fps"])
        if best:
            axes[0].plot(*zip(*sorted(best.items()), strict=True), marker="o", markersize=4, label=stage)
    sizes = sorted({(row["width"] * row["height"] / 1e6, f"{row['width']}\nx {row['height']}") for row in rows})
    axes[0].set(xscale="log", yscale="log", ylabel="ms a frame, fastest engine")
    axes[0].set_xticks([pixels for pixels, _ in sizes], labels=[name for _, name in sizes], fontsize=8)
    axes[0].minorticks_off()
    axes[0].set_title("camera: cost as pictures grow", fontsize=10)
    axes[0].legend(fontsize=8)
    if cameras:
        counts = [row["cameras"] for row in cameras]
        axes[1].plot(
            counts, [row["round_ms"] for row in cameras], marker="o", markersize=4, label="ms for a frame of each"
        )
        axes[1].plot(counts, [row["ms_a_frame"] for row in cameras], marker="o", markersize=4, label="ms a frame")
        axes[1].legend(fontsize=8)
    axes[1].set(xlabel="cameras", ylabel="ms")
    axes[1].set_title("server: fusion, detection", fontsize=10)
    for axis in axes:
        axis.grid(visible=True, which="both", alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(
    sizes: Annotated[str, typer.Option(help="Of pictures, in luma samples.")] = "640x360,960x540,1280x720,1920x1080",
    frames: Annotated[int, typer.Option(min=2, help="Pictures that each stage is measured on.")] = 30,
    engines: Annotated[str, typer.Option(help="Comma separated.")] = "openvino,onnx,litert",
    threads: Annotated[int, typer.Option(min=1, help="Inference threads.")] = 1,
    torch_runs: Annotated[int, typer.Option(min=0, help="Runs of each network in PyTorch; 0: none.")] = 5,
    cameras: Annotated[str, typer.Option(help="Numbers of cameras; empty: no server.")] = "1,2,4,8,16",
    camera_size: Annotated[str, typer.Option(help="Of those cameras' pictures.")] = "640x360",
    rounds: Annotated[int, typer.Option(min=1, help="Frames of each camera.")] = 12,
    source: Annotated[str, typer.Option(help="A rendered street, or a video file.")] = f"street:{SEED}",
    plot: Annotated[Path | None, typer.Option(help="Draw the growth into this PNG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Measure the camera's and the server's stages at several sizes, against float32, and the server's growth."""
    report = _report.envelope("latency", seed=SEED)
    wanted, names = parse_sizes(sizes), engines.split(",")
    shared = [f"source.url={source}", "source.pace=asap"]
    shared += [f"{section}.threads={threads}" for section in ("scene", "semantics")]
    shipped = load_config("cpu", overrides=shared, environment={})
    peaks = measure_peaks([(engine, precision) for engine in names for precision in ("int8", "fp32")], threads)
    rows: list[dict[str, Any]] = []
    grown: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        scene = float_scene(shipped.scene.bundle, Path(folder) / "scene")
        smc = float_smc(shipped.semantics.bundle, Path(folder) / "smc")
        floats = [*shared, f"scene.bundle={scene}", f"semantics.bundle={smc}"]
        for size in track(wanted, "sizes", console=console, transient=True):
            place = [f"source.width={size[0]}", f"source.height={size[1]}"]
            for form, overrides in (("shipped", shared), ("float", floats)):
                config = load_config("cpu", overrides=[*overrides, *place], environment={})
                rows += rows_of(config, size, frames, peaks, names, form)
            if torch_runs:
                rows += torch_rows(shipped.scene.bundle, shipped.semantics.bundle, size, torch_runs, threads)
    if cameras:
        (size,) = parse_sizes(camera_size)
        place = [f"source.width={size[0]}", f"source.height={size[1]}", "semantics.enabled=false"]
        camera = CameraBench(load_config("cpu", overrides=[*shared, *place], environment={}), size, frames, peaks)
        camera.run(names, "not measured here")
        bundle = Bundle.open(shipped.semantics.bundle)
        material = Received(camera.material.pictures, (), camera.material.fps, bundle)
        grown = list(cameras_rows(material, _report.numbers(cameras), rounds, threads))
    found = ratios(rows)
    show(rows, wanted)
    show_ratios(found)
    show_growth(grown, camera_size)
    for key in ("machine", "seed", "command"):
        console.print(f"{key}: {report[key]}", highlight=False, soft_wrap=True)
    if plot is not None:
        draw(rows, grown, plot)
    results = {"peaks": peaks.as_json(), "rows": rows, "ratios": found, "cameras": grown, "camera_size": camera_size}
    _report.write_json(json_file, report | results)


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
