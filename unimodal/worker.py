"""Where a worker process of the data begins. It has no use for JAX, but grain imports it wherever it is installed.

Nor does it run the main script again, as processes that are spawned do. What that script defines is pickled with the data, and it may
import JAX, or train without asking whether it is the main one.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


def begin(function: str, *arguments: Any) -> None:
    """Import grain as if there were no JAX, then call MODULE:FUNCTION. A process takes 190 MB and a second less so.

    The function comes by its name, since its module must not be imported before grain is.

    Own code that imports JAX, such as a task's function among the data, still can.
    """
    if "grain" not in sys.modules and "jax" not in sys.modules:
        absl = logging.getLogger("absl")
        level, sys.modules["jax"] = absl.level, None  # pyright: ignore[reportArgumentType]
        absl.setLevel(logging.ERROR)  # grain warns that it cannot profile
        try:
            import grain as grain
        finally:
            del sys.modules["jax"]
            absl.setLevel(level)
    module, name = function.split(":")
    getattr(importlib.import_module(module), name)(*arguments)


class _Process(SpawnProcess):
    """A process that is told of no main script. Whichever thread starts it, and however late, as pools start theirs one by one."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            sys.modules["__main__"] = main


class Alone(SpawnContext):
    """Starts processes afresh, without the main script."""

    Process = _Process  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]
