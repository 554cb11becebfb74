"""Where a worker process of the data begins. It has no use for JAX, but grain imports it wherever it is installed."""

from __future__ import annotations

import logging
import pickle
import sys


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
