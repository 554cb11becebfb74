"""Keeps the checkpoint store from logging tracebacks of what it raises as well."""

from __future__ import annotations

import logging


def quiet_store() -> None:
    """From now on drop what the store logs with a traceback: the same error reaches the caller, who says it in a line."""
    logging.getLogger("absl").addFilter(_no_traceback)  # again is harmless: it is the same filter


def _no_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)
