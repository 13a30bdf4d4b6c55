"""Logging of the camera: structlog to stderr, one event a line, for people or for machines."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from scene_edge.edge.config import LogConfig


def configure_logging(config: LogConfig) -> None:
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        # Looked up when a logger is bound, so that whoever has replaced stderr by then gets the lines.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger(**context: Any) -> Any:
    return structlog.get_logger().bind(**context)
