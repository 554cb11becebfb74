"""results.json as others read it: the scores of a run, and the checkpoint that they are of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from etils import epath

from unimodal.errors import UsageError

FILE = "results.json"


@dataclass(frozen=True)
class Score:
    """One evaluation's value beside its baseline; NaN where the value was not finite."""

    metric: str  # name and unit of the value
    value: float  # of the trained model
    baseline: float  # the number to beat
    baseline_is: str  # what the baseline is, in words
    higher_is_better: bool  # direction of the metric


@dataclass(frozen=True)
class Scores:
    """What a run wrote at its end."""

    step: int  # of the checkpoint
    fingerprint: str  # of the checkpoint
    by_name: Mapping[str, Score]  # by evaluation


def read_scores(workdir: epath.Path) -> Scores | None:
    """The scores in a workdir, None where there are none yet. Raises UsageError for a file that is no results.json."""
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = {str(name): _score(row) for name, row in found["tasks"].items()}
        return Scores(int(found["step"]), str(found["fingerprint"]), rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged; `launch.py eval --workdir={workdir}` writes it again") from error


def _score(row: Mapping[str, Any]) -> Score:
    number = lambda value: math.nan if value is None else float(value)  # noqa: E731
    known = {field.name: row[field.name] for field in fields(Score)}
    numbers = {name: number(known[name]) for name in ("value", "baseline")}
    if not isinstance(known["metric"], str) or not isinstance(known["baseline_is"], str):
        raise TypeError("a name that is no text")
    return Score(**{**known, **numbers})
