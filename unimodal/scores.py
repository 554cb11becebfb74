"""results.json as others read it: the scores of a run, and the checkpoint that they are of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from etils import epath

from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Result

FILE = "results.json"


@dataclass(frozen=True)
class Scores:
    """What a run wrote at its end."""

    step: int  # of the checkpoint
    fingerprint: str  # of the checkpoint
    by_name: Mapping[str, Result]  # by evaluation; a value that was not finite is NaN


def read_scores(workdir: epath.Path) -> Scores | None:
    """The scores in a workdir, None where there are none yet. Raises UsageError for a file that is no results.json."""
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = {str(name): _score(row) for name, row in found["tasks"].items()}
        return Scores(int(found["step"]), str(found["fingerprint"]), rows)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UsageError(f"{path} is damaged; `launch.py eval --workdir={workdir}` writes it again") from error


def _score(row: Mapping[str, Any]) -> Result:
    number = lambda value: math.nan if value is None else float(value)  # noqa: E731
    if not isinstance(row["metric"], str) or not isinstance(row["baseline_is"], str):
        raise TypeError("a name that is no text")
    numbers = {name: number(row[name]) for name in ("value", "baseline")}
    numbers |= {name: number(row.get(name)) for name in ("low", "high")}  # runs before them have none
    return Result(**{**{field.name: row[field.name] for field in fields(Result) if field.name in row}, **numbers})
