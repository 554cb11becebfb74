"""Numbers of files that somebody else wrote, read strictly: a count is whole, and small enough to be one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from unimodal.errors import UsageError

LARGEST = 2**31 - 1  # of any count or size: what does not fit 32 bits is a slip, and could hold up the program for ever

DEEPEST = 10_000  # layers, of which a list may be made before anything else is known


def is_count(value: Any, least: int = 0) -> bool:
    """True for a whole number from `least` to `LARGEST`. True and 3.0 are none."""
    return type(value) is int and least <= value <= LARGEST


def check_number(where: str, key: str, value: Any) -> None:
    """Raises UsageError for a number that is not finite, or too large to mean anything."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}: {key}={value!r} should be a finite number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UsageError(f"{where}: {key}={shown(value)} is too large a number")


def check_depth(where: str, depths: Sequence[int], tensors: int) -> None:
    """Raises UsageError for a model of more layers than its files hold tensors: it is none, and takes for ever to plan."""
    for depth in depths:
        if depth > max(tensors, 1):
            raise UsageError(f"{where}: the model has {depth} layers, but the files hold only {tensors} tensors")


@contextlib.contextmanager
def making(where: str) -> Iterator[None]:
    """Turn what breaks while a model is made of a config into a UsageError: each number of it may be right by itself."""
    try:
        yield
    except UsageError:
        raise
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{where}: no model can be made of these numbers ({said[:200]})") from error


def shown(value: Any) -> str:
    """A value in an error line, not at any length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
