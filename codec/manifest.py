"""What a bundle's manifest.json may say: parsed strictly into frozen values, and its canonical bytes. No files here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from scene_edge.codec import ir
from scene_edge.codec.errors import BundleError

FORMAT = 1
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 128
MAX_FILE_BYTES = 512 << 20
MAX_BUNDLE_BYTES = 1 << 30
MAX_GRAPHS = 16
MAX_ARTIFACTS = 32
MAX_TENSORS = 32
MAX_RANK = 6
MAX_KERNELS = 16
MAX_DIMENSION = 1 << 20

KINDS = ("smc", "scene", "detector", "action")
ENGINES = ("openvino", "onnx", "litert", "tensorrt")
SUFFIX_OF_ENGINE = {"openvino": ir.SUFFIX, "onnx": ".onnx", "litert": ".tflite", "tensorrt": ".onnx"}
LAYOUTS = ("oihw", "ohwi")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "bool")
SUFFIXES = (".onnx", ir.SUFFIX, ".bin", ".tflite", ".safetensors", ".json", ".md")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TENSOR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOP_REQUIRED = {"format", "name", "kind", "version", "counter", "graphs", "parameters", "files"}
_TOP_OPTIONAL = {"quantisation", "training", "description", "licence"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph's input or output. None in a shape is any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class KernelSlot:
    """Where in a file the kernels of one convolution lie, so that others may be written over them.

    Offsets are in bytes. Weights are s8 where there are `scales` [outputs] in f32, one for each output, else f32. The
    bias is s32 in units of input_scale * scale where `input_scale` is given, and `bias_scales` is where these units
    stand; else it is f32. `layout` is "oihw" or "ohwi".
    """

    layer: str
    file: str
    layout: str
    weights: int
    bias: int
    scales: int | None = None
    bias_scales: int | None = None
    input_scale: float | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A graph in the form of one engine. `shape_hint` is the (h, w) of the packed grid to which it is fixed, if any."""

    engine: str
    precision: str
    file: str
    shape_hint: tuple[int, int] | None = None
    kernels: tuple[KernelSlot, ...] = ()


@dataclass(frozen=True, slots=True)
class Golden:
    """Tensors "in.<name>" and "out.<name>" of one true run. `tolerance` is the largest relative RMS error of an output,
    rms(output - golden) / rms(golden), with which an engine counts as working."""

    file: str
    tolerance: float


@dataclass(frozen=True, slots=True)
class Graph:
    """One network of a bundle, with the same inputs and outputs in each of its artifacts."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: tuple[Artifact, ...]
    golden: Golden | None = None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a file must be."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was checked. `document` is all of it, as parsed."""

    name: str
    kind: str
    version: str
    counter: int
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileEntry]
    parameters: Mapping[str, Any]
    document: Mapping[str, Any]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical form: it covers every file through the digests in it."""
        return hashlib.sha256(canonical_json(self.document)).digest()


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """The one form of a manifest that is hashed and signed: sorted keys, no spaces, ASCII.

    >>> canonical_json({"b": 1, "a": "é"})
    b'{"a":"\\\\u00e9","b":1}'
    """
    try:
        text = json.dumps(dict(document), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError("manifest cannot be written as JSON", got=str(error)) from error
    return text.encode("ascii")


def load_manifest(data: bytes) -> Manifest:
    """Bytes of a manifest.json -> Manifest. Raises BundleError, and nothing else, if any part of it is not right."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError("manifest is too large", got=f"{len(data)} bytes", allowed=f"at most {MAX_MANIFEST_BYTES}")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError("manifest is not JSON", got=str(error)) from error
    return check_manifest(document)


def check_manifest(document: object) -> Manifest:
    """A parsed manifest -> Manifest."""
    top = _object(document, "manifest", _TOP_REQUIRED, _TOP_OPTIONAL)
    if top["format"] != FORMAT or isinstance(top["format"], bool):
        raise BundleError("bundle of another format", got=top["format"], allowed=FORMAT, hint="Update scene-edge.")
    files = {name: _file(name, entry) for name, entry in _mapping(top["files"], "files", MAX_FILES).items()}
    if sum(entry.size_bytes for entry in files.values()) > MAX_BUNDLE_BYTES:
        raise BundleError("bundle is too large", allowed=f"at most {MAX_BUNDLE_BYTES} bytes")
    for name in files:
        if name.endswith(".bin") and f"{name[:-4]}{ir.SUFFIX}" not in files:
            raise BundleError(
                f"a .bin file without its {ir.SUFFIX}", got=name, hint="Only weights of an OpenVINO IR may be .bin."
            )
    graphs = {
        _text(name, "name of a graph", _NAME): _graph(name, entry, files)
        for name, entry in _mapping(top["graphs"], "graphs", MAX_GRAPHS).items()
    }
    return Manifest(
        name=_text(top["name"], "name", _NAME),
        kind=_choice(top["kind"], "kind", KINDS),
        version=_text(top["version"], "version", _NAME),
        counter=_integer(top["counter"], "counter", 0, 2**32 - 1),
        graphs=MappingProxyType(graphs),
        files=MappingProxyType(files),
        parameters=MappingProxyType(_mapping(top["parameters"], "parameters", 1024)),
        document=MappingProxyType(top),
    )


def check_file_name(name: object) -> str:
    """A bundle is flat: a file is a plain name with a known suffix, never a path."""
    text = _text(name, "file name", _FILE)
    if not text.endswith(SUFFIXES):
        raise BundleError("bundle holds a kind of file that is not allowed", got=text, allowed=", ".join(SUFFIXES))
    if text == "manifest.json":
        raise BundleError("manifest.json cannot list itself")
    return text


def _file(name: str, entry: object) -> FileEntry:
    check_file_name(name)
    fields = _object(entry, f"files.{name}", {"sha256", "bytes"}, set())
    size = _integer(fields["bytes"], f"files.{name}.bytes", 0, MAX_FILE_BYTES)
    return FileEntry(_text(fields["sha256"], f"files.{name}.sha256", _SHA256), size)


def _graph(name: str, entry: object, files: Mapping[str, FileEntry]) -> Graph:
    fields = _object(entry, f"graphs.{name}", {"inputs", "outputs", "artifacts"}, {"golden", "description"})
    where = f"graphs.{name}"
    artifacts = _sequence(fields["artifacts"], f"{where}.artifacts", MAX_ARTIFACTS)
    golden = None
    if fields.get("golden") is not None:
        spec = _object(fields["golden"], f"{where}.golden", {"file", "tolerance"}, set())
        tolerance = spec["tolerance"]
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance <= 1:
            raise BundleError(f"{where}.golden.tolerance out of range", got=tolerance, allowed="above 0, at most 1")
        golden = Golden(_listed(spec["file"], f"{where}.golden.file", files, ".safetensors"), float(tolerance))
    return Graph(
        name=name,
        inputs=_tensors(fields["inputs"], f"{where}.inputs"),
        outputs=_tensors(fields["outputs"], f"{where}.outputs"),
        artifacts=tuple(_artifact(item, f"{where}.artifacts[{i}]", files) for i, item in enumerate(artifacts)),
        golden=golden,
    )


def _artifact(entry: object, where: str, files: Mapping[str, FileEntry]) -> Artifact:
    fields = _object(entry, where, {"engine", "precision", "file"}, {"shape", "kernels"})
    engine = _choice(fields["engine"], f"{where}.engine", ENGINES)
    shape = fields.get("shape")
    hint = None
    if shape is not None:
        sides = _sequence(shape, f"{where}.shape", 2)
        if len(sides) != 2:
            raise BundleError(f"{where}.shape is not [h, w]", got=shape)
        height, width = (_integer(side, f"{where}.shape", 1, MAX_DIMENSION) for side in sides)
        hint = (height, width)
    return Artifact(
        engine=engine,
        precision=_choice(fields["precision"], f"{where}.precision", PRECISIONS),
        file=_listed(fields["file"], f"{where}.file", files, SUFFIX_OF_ENGINE[engine]),
        shape_hint=hint,
        kernels=_kernels(fields.get("kernels", []), f"{where}.kernels", files),
    )


def _kernels(value: object, where: str, files: Mapping[str, FileEntry]) -> tuple[KernelSlot, ...]:
    slots = []
    for item in _sequence(value, where, MAX_KERNELS):
        optional = {"scales", "bias_scales", "input_scale"}
        fields = _object(item, where, {"layer", "file", "layout", "weights", "bias"}, optional)
        file = check_file_name(fields["file"])
        if file not in files:
            raise BundleError(f"{where}.file is not among the files", got=file)
        last = files[file].size_bytes - 1
        places = {
            key: None if fields.get(key) is None else _integer(fields[key], f"{where}.{key}", 0, last)
            for key in ("weights", "bias", "scales", "bias_scales")
        }
        unit = fields.get("input_scale")
        if unit is not None and (isinstance(unit, bool) or not isinstance(unit, int | float) or not 0 < unit < 1e6):
            raise BundleError(f"{where}.input_scale out of range", got=str(unit)[:80], allowed="above 0, below 1e6")
        if places["weights"] is None or places["bias"] is None or (unit is not None and places["bias_scales"] is None):
            raise BundleError(f"{where} must say where weights, bias and its units lie", got=sorted(fields))
        slots.append(
            KernelSlot(
                layer=_text(fields["layer"], f"{where}.layer", _NAME),
                file=file,
                layout=_choice(fields["layout"], f"{where}.layout", LAYOUTS),
                weights=places["weights"],
                bias=places["bias"],
                scales=places["scales"],
                bias_scales=places["bias_scales"],
                input_scale=None if unit is None else float(unit),
            )
        )
    if len({slot.layer for slot in slots}) != len(slots):
        raise BundleError(f"{where} names a layer twice", got=[slot.layer for slot in slots])
    return tuple(slots)


def _tensors(value: object, where: str) -> tuple[TensorSpec, ...]:
    specs = []
    for item in _sequence(value, where, MAX_TENSORS):
        fields = _object(item, where, {"name", "dtype", "shape"}, set())
        shape = tuple(
            None if side is None else _integer(side, f"{where}.shape", 1, MAX_DIMENSION)
            for side in _sequence(fields["shape"], f"{where}.shape", MAX_RANK)
        )
        name = _text(fields["name"], f"{where}.name", _TENSOR)
        specs.append(TensorSpec(name, _choice(fields["dtype"], f"{where}.dtype", DTYPES), shape))
    if not specs or len({spec.name for spec in specs}) != len(specs):
        raise BundleError(f"{where} must be there and have different names", got=[spec.name for spec in specs])
    return tuple(specs)


def _listed(value: object, where: str, files: Mapping[str, FileEntry], suffix: str) -> str:
    name = check_file_name(value)
    if name not in files:
        raise BundleError(
            f"{where} is not among the files", got=name, hint="Every file must be listed with its digest."
        )
    if not name.endswith(suffix):
        raise BundleError(f"{where} has the wrong suffix", got=name, allowed=suffix)
    return name


def _object(value: object, where: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    fields = _mapping(value, where, 64)
    missing, unknown = required - fields.keys(), fields.keys() - required - optional
    if missing:
        raise BundleError(f"{where} lacks keys", got=", ".join(sorted(missing)) + " missing")
    if unknown:
        allowed = ", ".join(sorted(required | optional))
        raise BundleError(f"{where} has unknown keys", got=", ".join(sorted(unknown))[:200], allowed=allowed)
    return fields


def _mapping(value: object, where: str, limit: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise BundleError(f"{where} must be an object", got=type(value).__name__)
    if len(value) > limit:
        raise BundleError(f"{where} has too many entries", got=len(value), allowed=f"at most {limit}")
    return dict(value)


def _sequence(value: object, where: str, limit: int) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise BundleError(f"{where} must be a list", got=type(value).__name__)
    if len(value) > limit:
        raise BundleError(f"{where} has too many entries", got=len(value), allowed=f"at most {limit}")
    return list(value)


def _text(value: object, where: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        got = value[:80] if isinstance(value, str) else type(value).__name__
        raise BundleError(f"{where} is not usable", got=got, allowed=pattern.pattern)
    return value


def _choice(value: object, where: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        got = value[:80] if isinstance(value, str) else type(value).__name__
        raise BundleError(f"{where} is unknown", got=got, allowed=", ".join(allowed))
    return value


def _integer(value: object, where: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        got = value if isinstance(value, int | float) else type(value).__name__
        raise BundleError(f"{where} out of range", got=got, allowed=f"an integer {least}..{most}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BundleError("manifest gives a key twice", got=", ".join(sorted(key for key, _ in pairs))[:200])
    return fields


def _no_constant(name: str) -> NoReturn:
    raise BundleError("manifest holds a number that JSON does not know", got=name)
