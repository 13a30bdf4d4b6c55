"""What a camera is made of, as CycloneDX 1.5 JSON: packages by this environment's metadata, FFmpeg, model bundles.

`python -m scene_edge.sbom --extra openvino > sbom.cdx.json`. The same environment gives the same bytes: no time, no
random number. It names what is installed, so run it where the camera's packages are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from scene_edge.codec.bundle import Bundle, shipped_bundles
from scene_edge.codec.errors import UsageError

ROOT = "scene-edge"
MAX_LICENCE_CHARS = 120


def closure(extras: Iterable[str] = (), root: str = ROOT) -> dict[str, tuple[metadata.Distribution, list[str]]]:
    """Normalised name -> the installed package and what it needs here, from `root` with `extras` on.

    Raises UsageError where something is not installed: a list with holes would be worse than none.
    """
    from packaging.requirements import Requirement

    found: dict[str, tuple[metadata.Distribution, list[str]]] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        name, wanted = item
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise UsageError("a package of the camera is not installed here", got=name) from error
        needs = found.setdefault(normalised(name), (package, []))[1]
        for text in package.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
                continue
            if normalised(requirement.name) not in needs:
                needs.append(normalised(requirement.name))
            waiting.append((normalised(requirement.name), frozenset(requirement.extras)))
    return found


def normalised(name: str) -> str:
    """As package indexes compare names.

    >>> normalised("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def document(extras: Iterable[str] = ()) -> dict[str, Any]:
    """The whole bill of materials."""
    packages = closure(extras)
    components = {name: _package(name, package) for name, (package, _) in packages.items()}
    root = components.pop(ROOT)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**root, "type": "application"}},
        "components": [
            *(components[name] for name in sorted(components)),
            _ffmpeg(),
            *(_model(name) for name in shipped_bundles()),
        ],
        "dependencies": [
            {
                "ref": _purl(name, package),
                "dependsOn": sorted(_purl(need, packages[need][0]) for need in needs),
            }
            for name, (package, needs) in sorted(packages.items())
        ],
    }


def _package(name: str, package: metadata.Distribution) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _purl(name, package),
        "name": name,
        "version": package.version,
        "purl": _purl(name, package),
    }
    licence = _licence(package)
    return {**component, "licenses": [{"license": {"name": licence}}]} if licence else component


def _licence(package: metadata.Distribution) -> str | None:
    """The expression or name that a package states, else its first licence classifier."""
    fields = package.metadata
    for key in ("License-Expression", "License"):
        for stated in map(str.strip, fields.get_all(key) or ()):
            if stated and "\n" not in stated:  # some put the whole text there
                return stated[:MAX_LICENCE_CHARS]
    classified = [text for text in fields.get_all("Classifier") or () if text.startswith("License ::")]
    return classified[0].rpartition(" :: ")[2] if classified else None


def _purl(name: str, package: metadata.Distribution) -> str:
    return f"pkg:pypi/{name}@{package.version}"


def _ffmpeg() -> dict[str, Any]:
    """What PyAV's wheels bring along; x264 and others are inside it, and nothing says which."""
    import av

    purl = f"pkg:generic/ffmpeg@{av.ffmpeg_version_info}"
    return {"type": "library", "bom-ref": purl, "name": "ffmpeg", "version": av.ffmpeg_version_info, "purl": purl}


def _model(name: str) -> dict[str, Any]:
    bundle = Bundle.open(name)
    return {
        "type": "machine-learning-model",
        "bom-ref": f"bundle:{name}@{bundle.digest.hex()[:16]}",
        "name": name,
        "version": bundle.version,
        "hashes": [{"alg": "SHA-256", "content": bundle.digest.hex()}],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scene_edge.sbom", description=__doc__)
    parser.add_argument(
        "--extra", action="append", default=[], help="extra of scene-edge, such as openvino; repeatable"
    )
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(document(options.extra), indent=1, sort_keys=True))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
