"""Where a worker process of the data begins. It has no use for JAX, but grain imports it wherever it is installed.

Nor does it run the main script again, as processes that are spawned do. What that script defines is pickled with the data, and it may
import JAX, or train without asking whether it is the main one.
"""

from __future__ import annotations

import logging
import pickle
import sys
import types
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


def begin(packed: bytes) -> None:
    """Import grain as if there were no JAX, then call what was pickled. A process takes 190 MB and a second less so.

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
    pickle.loads(packed)()


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
