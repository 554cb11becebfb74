"""Keeps the checkpoint store from printing tracebacks of what it raises as well."""

from __future__ import annotations

import logging
import sys
from typing import Any


def quiet_store() -> None:
    """From now on drop what the store says of its own errors: they reach the caller, too, who says them in a line."""
    logging.getLogger("absl").addFilter(_no_traceback)  # again is harmless: it is the same filter
    if sys.unraisablehook is not _hook:
        _before.append(sys.unraisablehook)
        sys.unraisablehook = _hook


_before: list[Any] = []


def _hook(unraisable: Any) -> None:
    # Writes that were under way when another failed come back to an event loop that is closed.
    closed = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
    if not closed and "write_fragment" not in repr(unraisable.object):
        _before[-1](unraisable)


def _no_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)
