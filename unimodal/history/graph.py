"""The graph of commits as lanes: which column each commit stands in, and the lines between rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.ledger import Commit


@dataclass(frozen=True)
class Line:
    """From a commit's row and lane to that of its parent, which lies below."""

    row: int
    lane: int
    to_row: int
    to_lane: int


def lanes(commits: Sequence[Commit]) -> tuple[list[int], list[Line]]:
    """The lane of each commit, children before parents, and the lines to parents that are among them.

    A lane waits for the first parent of its last commit, and lanes that wait for the same one meet there in the first of
    them. A second parent that nobody waits for yet opens a new lane.
    """
    place = {commit.id: row for row, commit in enumerate(commits)}
    waiting: list[str | None] = []
    found: list[int] = []
    for commit in commits:
        lane = waiting.index(commit.id) if commit.id in waiting else _free(waiting)
        waiting = [None if one == commit.id else one for one in waiting]
        waiting += [None] * (lane + 1 - len(waiting))
        found.append(lane)
        for number, parent in enumerate(commit.parents):
            if parent not in place or (number and parent in waiting):
                continue
            where = lane if number == 0 else _free(waiting)
            waiting += [None] * (where + 1 - len(waiting))
            waiting[where] = parent
    lines = [
        Line(row, found[row], place[parent], found[place[parent]])
        for row, commit in enumerate(commits)
        for parent in commit.parents
        if parent in place
    ]
    return found, lines


def _free(waiting: Sequence[str | None]) -> int:
    return waiting.index(None) if None in waiting else len(waiting)
