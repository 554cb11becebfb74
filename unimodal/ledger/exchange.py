"""Push and pull: tensors first, then the refs that need them, so that a ledger never names what it does not have."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.errors import UsageError
from unimodal.ledger.git import GitError
from unimodal.ledger.ledger import HISTORY, Ledger
from unimodal.ledger.store import Store


@dataclass(frozen=True)
class Sent:
    """What went over: tensor files and their bytes; those that the other side had already cost nothing."""

    files: int
    bytes: int
    there: int


def push(ledger: Ledger, to: str, branches: Sequence[str] = (), *, git: str | None = None) -> Sent:
    """Send branches (none: all) to another ledger, or tensors to a folder or bucket and the history to a git address.

    Raises UsageError for a branch that has gone another way there: pull and merge first.
    """
    names = list(branches) or sorted(ledger.heads())
    for name in names:
        ledger.resolve(f"refs/heads/{name}")
    if not names:
        raise UsageError(f"{ledger.path} has no branch to push: nothing is committed yet")
    other = None if git is not None else Ledger(to)
    store = Store(to) if other is None else other.store
    if other is None:
        store.check_not_of_another(ledger.id)  # whose gc would remove what is sent
    where = str(other.path / HISTORY) if other is not None else str(git)
    chunks = {c for commit in ledger.history([f"refs/heads/{n}" for n in names]) for c in commit.manifest.chunks()}
    with contextlib.nullcontext() if other is None else other.writing():
        sent = _copy(ledger.store, store, chunks)
        specs = [f"refs/heads/{name}:refs/heads/{name}" for name in names]
        _spoken(ledger, "push", "--quiet", where, *specs)
    return sent


def pull(ledger: Ledger, source: str, branches: Sequence[str] = (), *, git: str | None = None) -> Sent:
    """Fetch branches of another ledger: `name` becomes origin/name, and moves forward here if nothing is lost by it."""
    other = None if git is not None else Ledger(source)
    store = Store(source) if other is None else other.store
    where = str(other.path / HISTORY) if other is not None else str(git)
    with ledger.writing():
        listed = _spoken(ledger, "ls-remote", "--heads", where, *branches)
        rows = [line.split("\trefs/heads/") for line in listed.splitlines()]
        incoming = {name: commit for commit, name in rows if not branches or name in branches}
        if missing := [name for name in branches if name not in incoming]:
            raise UsageError(f"{source} has no branch {missing[0]!r}")
        if incoming:
            _spoken(ledger, "fetch", "--quiet", "--no-tags", where, *(f"refs/heads/{name}" for name in incoming))
        chunks = {c for commit in ledger.history(list(incoming.values())) for c in commit.manifest.chunks()}
        sent = _copy(store, ledger.store, chunks if incoming else set())
        for name, commit in sorted(incoming.items()):
            _arrive(ledger, name, commit)
    return sent


def _arrive(ledger: Ledger, name: str, new: str) -> None:
    """Give what has come its name: origin/NAME, and the branch itself where it only moves forward."""
    local, remote = f"refs/heads/{name}", f"refs/remotes/origin/{name}"
    here = ledger.git.where(local)
    ledger.git.move(remote, new, ledger.git.where(remote), "pull")
    if here is None or (here != new and ledger.base([here, new]) == ledger.commit(here)):
        ledger.git.move(local, new, here, "pull")


def _copy(source: Store, target: Store, chunks: set[str]) -> Sent:
    files = size = 0
    for chunk in sorted(chunks):
        there = target.size(chunk)
        if there is None or there != source.size(chunk):  # a file that was cut short there is mended
            content = source.read(chunk, "a tensor to be sent")  # checked, so damage does not spread
            target.write(chunk, content)
            files, size = files + 1, size + len(content)
    return Sent(files, size, len(chunks) - files)


def _spoken(ledger: Ledger, *words: str) -> str:
    try:
        return ledger.git.text(*words)
    except GitError as error:
        if "rejected" in str(error):
            hint = "it has commits there that are not here; pull and merge first"
            raise UsageError(f"cannot push {', '.join(words[3:])}: {hint}") from error
        raise
