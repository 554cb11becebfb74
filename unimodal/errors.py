"""The exceptions that are one line to whoever started the run, and no traceback."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")


class UsageError(ValueError):
    """Bad configuration, data or directory. The message is one line: what is wrong, and what would be right.

    `launch.py` prints it without a traceback and exits with code 2; library callers may catch it as a ValueError. Parts of it
    may come from a file that nobody vouches for: line breaks in it become spaces, and other control characters, which
    could command a terminal, are spelt out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_CONTROL.sub(_spelt, str(message)))


def _spelt(found: re.Match[str]) -> str:
    text = found.group()
    return " " if "\n" in text or "\r" in text else "".join(f"\\x{ord(sign):02x}" for sign in text)


# Line breaks with the blanks around them, or a control character that is no tab.
_CONTROL = re.compile(r"[ \t]*[\r\n][\s]*|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class RecordError(UsageError):
    """One record that cannot be used: damaged, cut short, of no known kind. The message is one line that names it.

    Training leaves such a record out and lists it; it ends the run only where there are many (`unimodal.data.skipped`).
    """


def broken(path: Path, error: BaseException) -> UsageError:
    """One line on why a file of Python did not load: where, and what."""
    if isinstance(error, UsageError):
        return error
    if isinstance(error, SyntaxError):
        return UsageError(f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename) == path] or frames[-1:]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return UsageError(f"{ours[-1].filename}, line {ours[-1].lineno}: {what}")


class DivergedError(ArithmeticError):
    """Training has come to numbers that are not finite, again and again. The message is one line: where, and what.

    `launch.py` prints it without a traceback and exits with code 3, as the same command would come to the same end.
    """


class ReplicasDifferError(RuntimeError):
    """Devices hold other bits of what should be copies of one value. The message is one line: which, and what to do.

    `launch.py` prints it without a traceback and exits with code 4. The weights at hand are not saved.
    """

    def __init__(self, where: str, step: int):
        super().__init__(
            f"after step {step} copies of the weights differ, at {where}; the last checkpoint is untouched: have the device "
            f"checked, or leave its host out, and run the same command to go on"
        )


def check_fields(
    where: str, config: object, *, least: Mapping[str, int] = {}, among: Mapping[str, Sequence[str]] = {}
) -> None:
    """Check fields of a config dataclass. Raises UsageError.

    least: the smallest number that a field, or each of its values, may be. among: the words that it may be. None passes.
    """
    for name, limit in least.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not number >= limit:  # NaN neither
                raise UsageError(f"{where} {name} must be at least {limit}, but is {value}")
    for name, words in among.items():
        value = getattr(config, name)
        if value is not None and value not in words:
            raise UsageError(f"{where} {name}={value!r} is not one of {', '.join(words)}")


class StorageError(RuntimeError):
    """A disk or bucket no longer takes what a run writes: full, gone or read-only. The message is one line.

    `launch.py` prints it without a traceback and exits with code 74. What was saved before is whole; the same command
    goes on from there once the storage is mended.
    """


class Stopped(BaseException):
    """SIGTERM outside the training loop, where there is nothing to save. The message is one line; the exit code is 75.

    No Exception, so that whatever catches those lets it through, as it does a KeyboardInterrupt.
    """
