"""Set up the program's own process before JAX is imported: memory in large pages, and a cache of compiled programs.

Only the program does so (`unimodal.command.program`). A process that imports the package is left as it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import stat
import sys
import time
from collections.abc import MutableMapping, Sequence
from pathlib import Path

TRAINING = ("train", "eval")
COMPUTING = (*TRAINING, "predict", "embed", "index", "serve")
FLAG = "--huge_pages"
TUNABLE = "glibc.malloc.hugetlb"
AGAIN = "UNIMODAL_STARTED_AGAIN"  # set for a process that was started again
OLDEST_GLIBC = (2, 35)  # the first that has the tunable
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CACHE = "JAX_COMPILATION_CACHE_DIR"
KEPT_DAYS = 30  # a compiled program that nobody wrote anew for so long is deleted


def prepare(arguments: Sequence[str]) -> None:
    """Set the environment up for a command line. It may start this process again, once, with the same arguments."""
    if arguments[:1] and arguments[0] in COMPUTING and not {"-h", "--help"} & set(arguments):
        if arguments[0] in TRAINING:
            take_huge_pages(arguments)
        cache_programs(os.environ)


def take_huge_pages(arguments: Sequence[str]) -> None:
    """Start this process again with a glibc that asks the kernel for pages of 2 MB, if it is to compute on a CPU.

    XLA takes fresh memory at each step, and the kernel hands it out page by page. glibc reads its tunables before
    Python runs, so they can only be set for a new process.
    """
    asked = next((word.partition("=")[2].lower() for word in arguments if word.split("=")[0] == FLAG), None)
    if asked == "false" or TUNABLE in os.environ.get("GLIBC_TUNABLES", ""):
        return
    why = without_huge_pages(on_cpu(os.environ))
    if why is not None:
        if asked is not None:
            print(f"{FLAG}: {why}; going on without", file=sys.stderr, flush=True)
        return
    set_before = os.environ.get("GLIBC_TUNABLES")
    tunables = f"{set_before}:{TUNABLE}=1" if set_before else f"{TUNABLE}=1"
    environment = {**os.environ, "GLIBC_TUNABLES": tunables, AGAIN: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def started_again() -> str | None:
    """The line that says so, once training begins; None where this process was started but once. A command line that is
    refused prints its error alone."""
    return f"memory in pages of 2 MB ({FLAG}=false: without)" if os.environ.get(AGAIN) else None


def without_huge_pages(cpu: bool, pages: Path = PAGES) -> str | None:
    """Say why large pages cannot be had or do not pay; None if they do."""
    if not cpu:
        return "JAX computes on an accelerator here"
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < OLDEST_GLIBC:
        return f"{name or 'this C library'} {version} has no {TUNABLE}; glibc has it from 2.35 on".replace("  ", " ")
    try:
        allowed = "[never]" not in pages.read_text(encoding="ascii")
    except OSError:
        allowed = False
    return None if allowed else f"this kernel gives out none ({pages} says so)"


def on_cpu(environment: MutableMapping[str, str]) -> bool:
    """True if JAX will compute on the CPU, as far as can be told without importing it."""
    chosen = environment.get("JAX_PLATFORMS", "").split(",")[0]
    return chosen == "cpu" if chosen else not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def cache_programs(environment: MutableMapping[str, str]) -> None:
    """Let JAX keep what it compiles in a folder that only this user can read, and delete what is old in it.

    A JAX_COMPILATION_CACHE_DIR that is set already, even to nothing, is left as it is. Where no private folder can be had,
    nothing is kept.
    """
    if CACHE in environment:
        return
    base = environment.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base, "unimodal", "compiled", platform.node() or "here")  # a home may be shared by unlike machines
    with contextlib.suppress(OSError, RuntimeError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        # What lies there is run: nobody else may have put it there.
        if found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077 and os.access(folder, os.W_OK):
            environment[CACHE] = str(folder)
            _delete_old(folder)


def _delete_old(folder: Path) -> None:
    before = time.time() - KEPT_DAYS * 24 * 3600
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink()
