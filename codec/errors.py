"""The one error tree of scene-edge: everything that this package raises on purpose is a SceneEdgeError.

SceneEdgeError
 +- UsageError            (exit code 2: the caller can mend it)
 |   +- ConfigError       a key, a value, a profile
 |   +- SourceError       a camera, a file, a URL that cannot be read as video
 |   +- FormatError       bytes that are not what they claim (also a ValueError)
 |       +- PacketError   semantic packets and MQTT message headers
 |       +- SeiError      supplemental enhancement information in H.264
 |       +- EntropyError  rANS words, tables, latents
 |       +- BundleError   model bundles: manifest, digest, signature
 +- RunError              (exit code 1: something failed while it ran)
     +- EncoderError      H.264 encoding
     +- DecoderError      H.264 decoding
     +- EngineError       inference runtimes
     +- TransportError    MQTT
     +- StoreError        databases, spools
"""

from __future__ import annotations


class SceneEdgeError(Exception):
    """Base of the tree. The message says what, got, allowed, and what to do, in one line."""

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, allowed: object = None, hint: str | None = None) -> None:
        self.what, self.got, self.allowed, self.hint = what, got, allowed, hint
        parts = [what]
        if got is not None:
            parts.append(f"got {got!r}" if isinstance(got, str) else f"got {got}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        text = "; ".join(parts)
        super().__init__(f"{text}. {hint}" if hint else text)


class UsageError(SceneEdgeError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class SourceError(UsageError):
    pass


class FormatError(UsageError, ValueError):
    pass


class PacketError(FormatError):
    pass


class SeiError(FormatError):
    pass


class EntropyError(FormatError):
    pass


class BundleError(FormatError):
    pass


class RunError(SceneEdgeError):
    exit_code = 1


class EncoderError(RunError):
    pass


class DecoderError(RunError):
    pass


class EngineError(RunError):
    pass


class TransportError(RunError):
    pass


class StoreError(RunError):
    pass
