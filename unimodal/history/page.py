"""The page of a history: one HTML file, nothing from a network, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from unimodal.history import words
from unimodal.history.effects import Effect
from unimodal.history.graph import Line, lanes
from unimodal.history.measure import Measurement
from unimodal.ledger import Commit
from unimodal.ledger.compare import Change
from unimodal.storage import write_whole

ROW, LANE = 64, 18  # pixels of a row of the matrix, and between lanes of the graph
TENSORS = 12  # of each change on the page


@dataclass(frozen=True)
class Step:
    """A commit on the page: what was measured, and what it did beside its first parent."""

    commit: Commit
    refs: Sequence[str] = ()
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    effects: Sequence[Effect] = ()
    changes: Sequence[Change] = ()


def write_page(path: Path, title: str, steps: Sequence[Step], facts: Mapping[str, str]) -> Path:
    """Write the page of commits, newest first, replacing it in one piece; returns the path."""
    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    tasks = list(dict.fromkeys(name for step in steps for name in step.measured))
    largest = {
        name: max(
            (abs(e.gain) for step in steps for e in step.effects if e.name == name and e.gain == e.gain), default=0
        )
        for name in tasks
    }
    where, lines = lanes([step.commit for step in steps])
    text = environment.from_string(template).render(
        title=title,
        facts=facts,
        tasks=[_task(name, steps) for name in tasks],
        rows=[_row(step, tasks, largest) for step in steps],
        graph=_graph(where, lines),
    )
    write_whole(path, text)
    return path


def _task(name: str, steps: Sequence[Step]) -> dict[str, str]:
    one = next(step.measured[name] for step in steps if name in step.measured)
    return {
        "name": name,
        "metric": one.metric,
        "way": "higher is better" if one.higher_is_better else "lower is better",
    }


def _row(step: Step, tasks: Sequence[str], largest: Mapping[str, float]) -> dict[str, Any]:
    commit, by_name = step.commit, {effect.name: effect for effect in step.effects}
    return {
        "short": commit.short,
        "subject": commit.subject,
        "when": words.day(commit.when),
        "author": commit.author,
        "refs": step.refs,
        "body": commit.message.partition("\n")[2].strip(),
        "cells": [_cell(step.measured.get(name), by_name.get(name), largest[name]) for name in tasks],
        "effects": [_shown(effect) for effect in step.effects],
        "changes": [_change(change) for change in step.changes[:TENSORS]],
        "more": max(0, len(step.changes) - TENSORS),
    }


def _cell(measured: Measurement | None, effect: Effect | None, largest: float) -> dict[str, Any]:
    """A number with its colour: green gained, red lost, and the stronger the more of the task's largest change it is."""
    if measured is None:
        return {"value": "", "change": "", "kind": "none", "strength": 0, "said": "not measured"}
    if effect is None:
        return {"value": words.short(measured.value), "change": "", "kind": "first", "strength": 0, "said": "the first"}
    strength = abs(effect.gain) / largest if largest and effect.gain == effect.gain else 1.0
    return {
        "value": words.short(measured.value) or "NaN",
        "change": words.signed(effect.change),
        "kind": effect.verdict,
        "strength": round(18 + 62 * strength),
        "said": f"{effect.verdict}, {words.interval(effect)}",
    }


def _shown(effect: Effect) -> dict[str, Any]:
    """An effect with its interval as a bar, in percent of a width whose middle is 0."""
    ends = [abs(v) for v in (effect.low, effect.high, effect.change) if math.isfinite(v)]
    width = max(ends, default=0) or 1.0
    place = lambda v: round(50 + 48 * v / width, 1)  # noqa: E731
    bar = (
        None
        if math.isnan(effect.low)
        else {"from": place(effect.low), "to": place(effect.high), "at": place(effect.change)}
    )
    return {
        "name": effect.name,
        "metric": effect.metric,
        "before": words.short(effect.before),
        "after": words.short(effect.after),
        "change": words.signed(effect.change),
        "interval": words.interval(effect),
        "verdict": effect.verdict,
        "bar": bar,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "name": change.name,
        "spelt": change.spelt if change.kind == "changed" else f"{change.kind}, {change.spelt}",
        "norm": words.short(change.norm, 3),
        "relative": words.percent(change.relative),
        "cosine": words.short(change.cosine, 4),
        "rank": "" if change.rank is None else f"{change.rank:.1f}",
    }


def _graph(where: Sequence[int], lines: Sequence[Line]) -> dict[str, Any]:
    across, down = (lambda lane: LANE // 2 + 4 + LANE * lane), (lambda row: ROW * row + ROW // 2)
    paths = []
    for line in lines:
        x, y, to_x, to_y = across(line.lane), down(line.row), across(line.to_lane), down(line.to_row)
        if line.lane == line.to_lane:
            paths.append(f"M{x} {y}V{to_y}")
        elif line.to_lane > line.lane:  # to another branch: aside at once, then down
            paths.append(f"M{x} {y}C{x} {y + ROW // 2} {to_x} {y + ROW // 2} {to_x} {y + ROW}V{to_y}")
        else:  # where a branch began: down, and aside at the end
            paths.append(f"M{x} {y}V{to_y - ROW}C{x} {to_y - ROW // 2} {to_x} {to_y - ROW // 2} {to_x} {to_y}")
    dots = [{"x": across(lane), "y": down(row)} for row, lane in enumerate(where)]
    return {"width": across(max(where, default=0)) + LANE // 2 + 4, "row": ROW, "paths": paths, "dots": dots}
