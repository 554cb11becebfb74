"""Commits made of commits: revert, cherry-pick and merge. Tensors that nobody changed are neither read nor written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unimodal.configuration import nearest
from unimodal.errors import UsageError
from unimodal.ledger import arithmetic
from unimodal.ledger.ledger import Arrays, Commit, Draft, Ledger
from unimodal.ledger.manifest import FLOATS, Entry

METHODS = ("mean", "task_arithmetic", "ties", "fisher")
FROM_BASE = ("task_arithmetic", "ties")


@dataclass(frozen=True)
class Merging:
    """How commits become one."""

    method: str = "task_arithmetic"  # one of METHODS
    scale: float = 1.0  # of what is added to the base, for task_arithmetic and ties
    keep: float = 0.2  # ties: the share of each branch's numbers that stay, the largest
    fishers: Sequence[Mapping[str, np.ndarray]] = field(default=())  # of each commit: importance by parameter's name

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"there is no merge method {self.method!r}; {nearest(self.method, METHODS)}")
        if not 0 < self.keep <= 1:
            raise UsageError(f"keep must be above 0 and at most 1, but is {self.keep:g}")

    def as_json(self) -> dict[str, Any]:
        more = {"scale": self.scale} if self.method in FROM_BASE else {}
        return {"merge": self.method, **more, **({"keep": self.keep} if self.method == "ties" else {})}


@dataclass(frozen=True)
class Conflict:
    """Entries of a tensor that several branches changed, and those that they moved in opposite directions."""

    name: str
    both: int
    opposite: int


def is_weight(name: str, entry: Entry, source: str) -> bool:
    """Whether a tensor is what training moves: a parameter or its average, and not a count or a queue."""
    return entry.dtype in FLOATS and (source != "run" or name.startswith(("parameters.", "ema.values.")))


def moved_by(head: Commit, before: Commit, after: Commit, scale: float, made: Mapping[str, Any]) -> Draft:
    """The weights of `head` + scale · (after − before); store them within `Ledger.writing`.

    −1 takes a commit back and 1 brings it along. Where `head` still has what the change left, the other side's tensor is
    taken as it is, so that taking back the last commit gives its parent bit for bit. Raises UsageError, naming it, for
    the first tensor whose type or shape differs.
    """
    check_alike([head, before, after])
    entries = dict(head.manifest.tensors)
    here, old, new = entries.copy(), before.manifest.tensors, after.manifest.tensors
    one_way = {1.0: (old, new), -1.0: (new, old)}.get(scale)

    def arrays() -> Arrays:
        for name, entry in here.items():
            if old[name].chunks == new[name].chunks or not is_weight(name, entry, head.manifest.source):
                continue
            if one_way is not None and entry.chunks == one_way[0][name].chunks:
                entries[name] = one_way[1][name]
                continue
            weights = arithmetic.moved(head.read(name), after.read(name), before.read(name), scale)
            yield name, weights, entry.axes

    found = head.ledger.add(arrays())
    draft = head.draft
    return _draft(draft, {**entries, **found}, made)


def merged(commits: Sequence[Commit], base: Commit | None, how: Merging) -> tuple[Draft, list[Conflict]]:
    """Merge the weights of commits; all else is that of the first. Store within `Ledger.writing`.

    Raises UsageError for tensors that differ in type or shape, naming the first, and for a method that needs a base
    where there is none.
    """
    if base is None and how.method in FROM_BASE:
        raise UsageError(f"{' and '.join(c.short for c in commits)} have no common ancestor; give --base=REF")
    check_alike([*commits, *([] if base is None else [base])])
    first, conflicts = commits[0], []
    entries = dict(first.manifest.tensors)
    least = [_least(c, base, how.keep) for c in commits] if base is not None and how.method == "ties" else []

    def arrays() -> Arrays:
        for name, entry in first.manifest.tensors.items():
            if len({c.manifest.tensors[name].chunks for c in commits}) == 1 and _same_as_base(entry, base, name, how):
                continue
            if not is_weight(name, entry, first.manifest.source):
                continue
            tensors = [commit.read(name) for commit in commits]
            start = None if base is None else base.read(name)
            if start is not None:
                both, opposite = arithmetic.conflict(start, tensors)
                if opposite:
                    conflicts.append(Conflict(name, both, opposite))
            yield name, _merged(name, start, tensors, how, least), entry.axes

    found = first.ledger.add(arrays())
    conflicts.sort(key=lambda c: -c.opposite)
    made = {**how.as_json(), "base": None if base is None else base.id, "of": [c.id for c in commits]}
    return _draft(first.draft, {**entries, **found}, made), conflicts


def _same_as_base(entry: Entry, base: Commit | None, name: str, how: Merging) -> bool:
    """Whether all branches' equal tensor is what a merge gives: task arithmetic adds a change that all made several times."""
    if how.method not in FROM_BASE or base is None:
        return True
    return base.manifest.tensors[name].chunks == entry.chunks


def _merged(
    name: str, base: np.ndarray | None, tensors: Sequence[np.ndarray], how: Merging, least: Sequence[float]
) -> np.ndarray:
    if how.method == "fisher":
        # An average of a run's parameters weighs as they do: a Fisher is measured of parameters only.
        measured = re.sub(r"^ema\.values\.", "parameters.", name)
        fishers = [f.get(measured, np.zeros(tensors[0].shape, np.float32)) for f in how.fishers]
        return arithmetic.fisher_mean(tensors, fishers)
    if how.method == "mean" or base is None:
        return arithmetic.mean(tensors)
    if how.method == "ties":
        return arithmetic.ties(base, tensors, least, how.scale)
    return arithmetic.task_arithmetic(base, tensors, how.scale)


def _least(commit: Commit, base: Commit, keep: float) -> float:
    """The magnitude from which on a branch's numbers stay, over all of its weights together (Yadav 2023, §3)."""
    tensors, source = commit.manifest.tensors, commit.manifest.source

    def deltas() -> Iterator[np.ndarray]:
        for name, entry in tensors.items():
            if is_weight(name, entry, source) and not name.startswith("ema."):
                if entry.chunks == base.manifest.tensors[name].chunks:
                    yield np.zeros(entry.shape, np.float32)
                else:
                    yield arithmetic.delta(commit.read(name), base.read(name))

    return arithmetic.kept_from(deltas, keep)


def check_alike(commits: Sequence[Commit]) -> None:
    """Raises UsageError that names the first tensor which is not the same in type and shape everywhere."""
    first, *others = commits
    here = first.manifest.tensors
    for other in others:
        there = other.manifest.tensors
        for name in [*here, *(n for n in there if n not in here)]:
            a, b = (t[name].spelt if name in t else "not there" for t in (here, there))
            if a != b:
                raise UsageError(f"{name} is {a} in commit {first.short}, {b} in {other.short}: their models differ")


def _draft(draft: Draft, tensors: Mapping[str, Entry], made: Mapping[str, Any]) -> Draft:
    """The same files with other weights; scores were of the weights before."""
    files = {path: text for path, text in draft.files.items() if not path.startswith("scores/")}
    return Draft(replace(draft.manifest, tensors=dict(tensors), made=dict(made)), files)


def parent_of(commit: Commit) -> Commit:
    """The commit before, whose weights a commit changed. Raises UsageError for the first, and for a merge."""
    if len(commit.parents) != 1:
        what = "is the first one: it changed nothing" if not commit.parents else "is a merge of several"
        raise UsageError(f"commit {commit.short} {what}, so there is no one change to take from it")
    return commit.ledger.commit(commit.parents[0])


def revert(ledger: Ledger, ref: str, branch: str, message: str | None = None) -> Commit:
    """Subtract the update of a commit from the weights that a branch has now (Ilharco 2023, §4)."""
    return _apply(ledger, ref, branch, -1.0, message, "Revert", "revert")


def cherry_pick(ledger: Ledger, ref: str, branch: str, message: str | None = None, scale: float = 1.0) -> Commit:
    """Add the update of a commit to the weights that a branch has now."""
    return _apply(ledger, ref, branch, scale, message, "Pick", "cherry-pick")


def _apply(
    ledger: Ledger, ref: str, branch: str, scale: float, message: str | None, verb: str, operation: str
) -> Commit:
    head, commit = ledger.commit(f"refs/heads/{branch}"), ledger.commit(ref)
    before = parent_of(commit)
    said = message or f'{verb} "{commit.subject}"\n\nThe update of {commit.id} times {scale:g}.'
    with ledger.writing():
        draft = moved_by(head, before, commit, scale, {operation: commit.id, "scale": scale})
        if draft.manifest.tensors == head.manifest.tensors:
            raise UsageError(f"{operation} of {commit.short} changes no weight of {branch}")
        return ledger.record(draft, said, branch, on=head.id)


def merge(
    ledger: Ledger,
    refs: Sequence[str],
    branch: str,
    how: Merging,
    *,
    message: str | None = None,
    base: str | None = None,
    commits: Sequence[Commit] = (),
) -> tuple[Commit, list[Conflict]]:
    """Merge refs into a branch; returns the commit, and where the branches disagree.

    commits: what the branch and the refs were when `how` was measured; without them, what they are now. Raises MovedError
    where the branch has moved since.
    """
    commits = commits or [ledger.commit(f"refs/heads/{branch}"), *(ledger.commit(ref) for ref in refs)]
    if len({commit.id for commit in commits}) < len(commits):
        raise UsageError(f"{branch} and {', '.join(refs)} are not different commits: there is nothing to merge")
    start = ledger.base([c.id for c in commits]) if base is None else ledger.commit(base)
    for ref, commit in zip(refs, commits[1:], strict=True):
        if base is None and ledger.base([commits[0].id, commit.id]) == commit:
            raise UsageError(f"{branch} has {ref} in it already: there is nothing to merge")
    with ledger.writing():
        draft, conflicts = merged(commits, start, how)
        said = message or f"Merge {', '.join(refs)} into {branch} by {how.method}"
        made = ledger.record(draft, said, branch, merged=[c.id for c in commits[1:]], on=commits[0].id)
    return made, conflicts
