"""Model bundles: a flat folder with a manifest that names, sizes and hashes every file. No network is parsed here.

Everything is checked before a weight is looked at: no links, no paths, no unlisted file, no unknown suffix, digests,
and an Ed25519 signature over the manifest where a key is configured. `Bundle.read` hands out bytes that it hashed
itself, so that a file swapped after the check is refused as well; engines load from those bytes, never from a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from scene_edge.codec import ir
from scene_edge.codec.errors import BundleError
from scene_edge.codec.manifest import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    Artifact,
    FileEntry,
    Golden,
    Graph,
    Manifest,
    TensorSpec,
    canonical_json,
    check_file_name,
    check_manifest,
    load_manifest,
)

__all__ = [
    "Artifact",
    "Bundle",
    "Golden",
    "Graph",
    "TensorSpec",
    "public_key_of",
    "read_public_key",
    "shipped_bundles",
    "shipped_zoo",
    "sign_bundle",
    "sign_manifest",
    "write_bundle",
]

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
KEY_BYTES = 32
SIGNATURE_BYTES = 64

_ZOO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# ONNX TensorProto.external_data holds a StringStringEntryProto whose key is "location": weights outside the digest.
_ONNX_EXTERNAL = b"\x0a\x08location"


class Bundle:
    """A bundle that was checked. Make one with `Bundle.open`."""

    def __init__(self, path: Path, manifest: Manifest, *, signed: bool) -> None:
        self.path = path
        self.manifest: Mapping[str, Any] = manifest.document
        self.name = manifest.name
        self.kind = manifest.kind
        self.version = manifest.version
        self.counter = manifest.counter
        self.digest = manifest.digest
        self.graphs = manifest.graphs
        self.files = manifest.files
        self.parameters: Mapping[str, Any] = manifest.parameters
        self.signed = signed
        """Whether the signature was checked against a configured key."""

    @classmethod
    def open(
        cls,
        path_or_name: str | Path,
        *,
        public_key: bytes | None = None,
        zoo: Path | None = None,
        least_counter: int = 0,
    ) -> Bundle:
        """A folder with a manifest, or the name of a bundle in the zoo (the shipped one unless given).

        `public_key`: 32 bytes of Ed25519; then an unsigned bundle is refused, and one of another name in the zoo, whose
        signature would be as good. `least_counter`: what is installed
        already, so that an old bundle with a good signature cannot take its place. Raises BundleError.
        """
        folder = _resolve(path_or_name, zoo)
        manifest = load_manifest(_read_plain(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES))
        if public_key is not None:
            _verify_signature(folder, manifest, public_key)
            if not Path(path_or_name).is_dir() and manifest.name != str(path_or_name):
                raise BundleError(
                    "another bundle lies where this one should be", got=manifest.name, allowed=str(path_or_name)
                )
        if manifest.counter < least_counter:
            raise BundleError(
                f"bundle {manifest.name} is older than the one in use",
                got=manifest.counter,
                allowed=f">= {least_counter}",
            )
        _check_folder(folder, manifest)
        for name, entry in manifest.files.items():
            _read_listed(folder, name, entry)
        return cls(folder, manifest, signed=public_key is not None)

    def __repr__(self) -> str:
        return f"Bundle({self.name} {self.version}, {self.kind}, {self.digest.hex()[:16]})"

    @property
    def short_digest(self) -> bytes:
        """The first 8 bytes of the digest: what a semantic packet carries."""
        return self.digest[:8]

    def graph(self, name: str) -> Graph:
        """Raises BundleError if there is no such graph."""
        found = self.graphs.get(name)
        if found is None:
            raise BundleError(
                f"bundle {self.name} has no such graph", got=name, allowed=", ".join(self.graphs) or "none"
            )
        return found

    def read(self, file: str) -> bytes:
        """The bytes of a listed file, hashed now. Raises BundleError if it is not what the manifest says."""
        entry = self.files.get(file)
        if entry is None:
            raise BundleError(f"bundle {self.name} has no such file", got=file, allowed=", ".join(self.files) or "none")
        return _read_listed(self.path, file, entry)

    def tensors(self, file: str) -> dict[str, NDArray[Any]]:
        """The tensors of a listed .safetensors file. Raises BundleError."""
        if not file.endswith(".safetensors"):
            raise BundleError("not a file of tensors", got=file, allowed=".safetensors")
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors: dict[str, NDArray[Any]] = load(self.read(file))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{file} holds no tensors that can be read", got=str(error)) from error
        return tensors


def shipped_zoo() -> Path:
    """The folder of the bundles that are installed with the package. It may not exist."""
    return Path(str(package_files("scene_edge"))) / "models" / "zoo"


def shipped_bundles(zoo: Path | None = None) -> list[str]:
    """Names of the bundles in the zoo, sorted."""
    folder = zoo if zoo is not None else shipped_zoo()
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / MANIFEST_FILE).is_file())


def write_bundle(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    """Write manifest.json for the files that lie in `folder`, with their digests, and open the result.

    `manifest` is everything but "files". A signature of an earlier manifest is removed. Raises BundleError.
    """
    listed = {}
    for path in sorted(folder.iterdir()):
        if path.name in (MANIFEST_FILE, SIGNATURE_FILE):
            continue
        check_file_name(path.name)
        data = _read_plain(path, None)
        listed[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    document = {**manifest, "files": listed}
    check_manifest(document)
    canonical_json(document)
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    temporary = folder / f".{MANIFEST_FILE}.new"
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST_FILE)
    return Bundle.open(folder)


def sign_manifest(manifest: Mapping[str, Any], private_key: bytes) -> bytes:
    """Ed25519 signature (64 bytes) over the canonical manifest. `private_key` is the 32-byte seed."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    _check_key(private_key, "private key")
    return Ed25519PrivateKey.from_private_bytes(private_key).sign(canonical_json(manifest))


def public_key_of(private_key: bytes) -> bytes:
    """The 32 bytes that a camera is configured with."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    _check_key(private_key, "private key")
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def read_public_key(path: Path) -> bytes:
    """The 32 bytes of an Ed25519 key in a file, raw or hexadecimal. Raises OSError, or ValueError if it is no key."""
    raw = path.read_bytes()
    text = raw.strip()
    if re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text.decode())
    if len(raw) != KEY_BYTES:
        raise ValueError(f"{path} holds no Ed25519 public key (32 bytes, or 64 hexadecimal digits)")
    return raw


def sign_bundle(folder: Path, private_key: bytes) -> None:
    """Check the bundle in `folder` and put its signature beside the manifest."""
    bundle = Bundle.open(folder)
    (folder / SIGNATURE_FILE).write_bytes(sign_manifest(bundle.manifest, private_key))


def _verify_signature(folder: Path, manifest: Manifest, public_key: bytes) -> None:
    _check_key(public_key, "public key")
    path = folder / SIGNATURE_FILE
    if not os.path.lexists(path):
        raise BundleError(
            f"bundle {manifest.name} is not signed", hint="A key is configured: sign it, or remove the key."
        )
    signature = _read_plain(path, SIGNATURE_BYTES)
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise BundleError(
            "a signature cannot be checked without the package cryptography", hint="pip install cryptography"
        ) from error
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, canonical_json(manifest.document))
    except (InvalidSignature, ValueError) as error:
        raise BundleError(
            f"signature of bundle {manifest.name} does not fit", hint="It was changed, or signed with another key."
        ) from error


def _check_key(key: bytes, what: str) -> None:
    if len(key) != KEY_BYTES:
        raise BundleError(
            f"{what} of the wrong length", got=f"{len(key)} bytes", allowed=f"{KEY_BYTES} bytes of Ed25519"
        )


def _resolve(path_or_name: str | Path, zoo: Path | None) -> Path:
    path = Path(path_or_name)
    if path.is_dir():
        return path.resolve()
    name = str(path_or_name)
    folder = zoo if zoo is not None else shipped_zoo()
    if _ZOO_NAME.fullmatch(name) and (folder / name / MANIFEST_FILE).is_file():
        return (folder / name).resolve()
    names = ", ".join(shipped_bundles(folder)) or "none in the zoo"
    raise BundleError("no such bundle", got=name, allowed=f"a folder with a {MANIFEST_FILE}, or one of: {names}")


def _check_folder(folder: Path, manifest: Manifest) -> None:
    """Nothing but what the manifest lists, and nothing but plain files."""
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number > MAX_FILES + 2:
                raise BundleError("bundle holds too many files", allowed=f"at most {MAX_FILES}")
            if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
                raise BundleError("bundle holds something that is not a plain file", got=entry.name)
            if entry.name in (MANIFEST_FILE, SIGNATURE_FILE):
                continue
            check_file_name(entry.name)
            if entry.name not in manifest.files:
                raise BundleError("bundle holds a file that its manifest does not list", got=entry.name)


def _read_plain(path: Path, limit: int | None) -> bytes:
    """A file's bytes, links refused; with `limit`, one byte more is already too much."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"cannot read {path.name} of the bundle", got=error.strerror or str(error)) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleError("bundle holds something that is not a plain file", got=path.name)
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise BundleError(f"{path.name} is larger than it may be", allowed=f"{limit} bytes")
    return data


def _read_listed(folder: Path, name: str, entry: FileEntry) -> bytes:
    data = _read_plain(folder / name, entry.size_bytes)
    if len(data) != entry.size_bytes:
        raise BundleError(f"{name} is cut short", got=f"{len(data)} bytes", allowed=f"{entry.size_bytes} bytes")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{name} is not the file that the manifest names: its SHA-256 differs")
    _check_content(name, data)
    return data


def _check_content(name: str, data: bytes) -> None:
    """Refuse what its suffix does not say: archives and pickles in disguise, weights outside the digest."""
    if data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05" and data[-1:] == b"."):
        raise BundleError(
            "bundle holds a pickle or an archive", got=name, hint="Weights come as ONNX, IR, TFLite, safetensors."
        )
    if name.endswith(ir.SUFFIX):
        ir.inflate(data, name)
    if name.endswith(".tflite") and data[4:8] != b"TFL3":
        raise BundleError(f"{name} is no TFLite model")
    if name.endswith(".safetensors") and data[8:9] != b"{":
        raise BundleError(f"{name} is no safetensors file")
    if name.endswith(".onnx") and _ONNX_EXTERNAL in data:
        raise BundleError(f"{name} keeps weights outside of itself", hint="Export it without external data.")
