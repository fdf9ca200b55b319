"""The log of a run: one JSON object a line, from every process."""

from __future__ import annotations

import os
from pathlib import Path

import structlog


class _Appender:
    """Writes whole lines to the end of a file, which several processes may do at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def msg(self, line: str) -> None:
        """Append one line, in one write."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    debug = info = warning = error = critical = msg


def run_logger(path: Path, **bound: object) -> structlog.typing.FilteringBoundLogger:
    """A logger of its own for one run; nothing is configured for the program as a whole.

    Args:
        path: the log file; it is appended to.
        bound: what every line says, such as the process's rank.
    """
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        _Appender(path),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    return logger.bind(**bound)
