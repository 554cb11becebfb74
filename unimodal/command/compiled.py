"""The folder of compiled programs (JAX_COMPILATION_CACHE_DIR): what lies there is run, so nobody else may write there."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import jax

from unimodal.errors import UsageError


def require_private_cache() -> None:
    """Make the folder for its owner alone, where it is not there yet. Raises UsageError if anybody else could write there.

    A bucket has rights of its own, and a group that shares a folder trusts itself.
    """
    named: str | None = jax.config.values["jax_compilation_cache_dir"]
    if not named or "://" in str(named):
        return
    path = Path(named)
    with contextlib.suppress(OSError):  # what cannot be made or looked at is no danger: JAX goes without
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        whose = "belongs to another user" if found.st_uid not in (0, os.getuid()) else "can be written by everyone"
        if found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH:
            raise UsageError(
                f"JAX_COMPILATION_CACHE_DIR={named} {whose}, and what lies there is run: chmod o-w it, or name another folder"
            )
