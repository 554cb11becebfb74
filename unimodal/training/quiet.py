"""Keeps the checkpoint store from printing tracebacks of what it raises as well."""

from __future__ import annotations

import logging
import sys
from typing import Any


def quiet_store() -> None:
    """Silence the store's own reports of its errors. They also reach the caller, who prints one line."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_no_traceback)  # again is harmless: it is the same filter
    if sys.unraisablehook is not _hook:
        _before.append(sys.unraisablehook)
        sys.unraisablehook = _hook


_before: list[Any] = []


def _hook(unraisable: Any) -> None:
    # Writes that were under way when another failed come back to an event loop that is closed.
    closed = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
    code = getattr(unraisable.object, "cr_code", None)  # of a read or write that nobody waits for any more
    if not closed and not (code is not None and "orbax" in code.co_filename):
        _before[-1](unraisable)


def _no_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and ("orbax" in record.pathname or "orbax" in record.getMessage()))
