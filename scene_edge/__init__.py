"""scene-edge: machine-vision cameras that send meaning beside a thin H.264 stream."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("scene-edge")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
