"""The program behind `launch.py` and the console command `unimodal`: a command line → a run.

| module | what it does |
|---|---|
| `words` | commands and flags, their help, and a command line as `Words`; needs no JAX |
| `process` | the process itself, before JAX is imported: large pages, a cache of compiled programs |
| `recipe` | a recipe, or the config.json of a run, as a ConfigDict, with its fields changed |
| `compiled` | whose the folder of compiled programs is |
| `runs` | what each command that trains or evaluates does |
| `going_on` | what a run keeps and says where its workdir had another config |
| `use` | what each command that uses a model does |
| `data`, `inspect`, `data_words` | `data inspect` and `data convert` |
| `ledger`, `ledger_words` | `ledger commit`, `diff`, `revert`, `merge` and the others |
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from unimodal.command import words
from unimodal.command.process import prepare
from unimodal.errors import DivergedError, ReplicasDifferError, Stopped, StorageError, UsageError

EXIT_STORAGE = 74
EXIT_CODES: dict[type[BaseException], int] = {
    UsageError: 2,
    DivergedError: 3,
    ReplicasDifferError: 4,
    StorageError: EXIT_STORAGE,
    Stopped: 75,
}
EXIT_PIPE = 141  # as shells have it: 128 + SIGPIPE
EXIT_INTERRUPTED = 130  # as shells have it: 128 + SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (None: this process's own), the program's name first; returns the exit code.

    0 done, 2 something to mend first, 3 numbers that are not finite again and again, 4 copies of the weights that differ,
    74 a disk or bucket that takes no more, 75 stopped by a signal, 76 another process was lost, 130 interrupted.
    """
    name, *rest = sys.argv if arguments is None else arguments
    program = "python launch.py" if os.path.basename(name) == "launch.py" else "unimodal"
    try:
        if (text := words.answer(rest, program)) is not None:
            print(text)
            return 0
        from unimodal.command.runs import run  # only here: help and version need not wait for it

        return run(rest, program)
    except tuple(EXIT_CODES) as error:
        print(f"error: {error}", file=sys.stderr)
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except BrokenPipeError:  # whoever reads what is printed has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from the last checkpoint, if there is one", file=sys.stderr)
        return EXIT_INTERRUPTED


def program() -> NoReturn:
    """Run this process's own command line and end with its exit code."""
    prepare(sys.argv[1:])
    code = main()
    if code == EXIT_STORAGE:  # the store's threads would each add a traceback on their way out
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


__all__ = ["main", "program"]
