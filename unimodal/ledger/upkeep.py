"""Verify and gc: is everything there as it was written, and what is there that nothing names?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unimodal.errors import UsageError
from unimodal.ledger.git import GitError
from unimodal.ledger.ledger import Commit, Ledger
from unimodal.ledger.locks import PATIENCE, held
from unimodal.ledger.manifest import DamagedError
from unimodal.ledger.store import OWNER, WRITING


@dataclass
class Verified:
    """What `verify` found. faults: one line each; unnamed and torn hurt nobody, and gc removes them."""

    commits: int = 0
    files: int = 0
    bytes: int = 0
    faults: list[str] = field(default_factory=list)
    unnamed: int = 0  # tensors that no commit names
    torn: int = 0  # writes that were cut short
    foreign: list[str] = field(default_factory=list)  # files that are none of a ledger's


def verify(ledger: Ledger) -> Verified:
    """Read every object of git, every manifest, and every tensor that a commit names, and check them all."""
    found = Verified()
    try:
        said = ledger.git.run("fsck", "--full", "--strict", "--no-dangling", "--no-progress", fine=range(256))
        found.faults += [f"git: {line}" for line in said.decode(errors="replace").splitlines()]
        ledger.git.run("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
    except GitError as error:
        found.faults.append(str(error))
    users: dict[str, str] = {}
    for commit in _commits(ledger, found):
        found.commits += 1
        try:
            for name, entry in commit.manifest.tensors.items():
                for chunk in entry.chunks:
                    users.setdefault(chunk, f"{name} of commit {commit.short}")
        except UsageError as error:
            found.faults.append(str(error))
    for chunk, user in sorted(users.items()):
        try:
            found.bytes += len(ledger.store.read(chunk, user))
            found.files += 1
        except DamagedError as error:
            found.faults.append(str(error))
    files, others = ledger.store.listed()
    found.unnamed = len(files.keys() - users.keys())
    found.torn = sum(path.endswith(WRITING) for path in others)
    found.foreign = [path for path in others if not path.endswith(WRITING)]
    return found


def _commits(ledger: Ledger, found: Verified) -> Iterator[Commit]:
    try:
        yield from ledger.history()
    except UsageError as error:
        found.faults.append(str(error))


@dataclass(frozen=True)
class Removed:
    """What a gc removed."""

    files: int
    bytes: int
    torn: int


def gc(ledger: Ledger, patience: float = PATIENCE) -> Removed:
    """Remove tensors that no commit of a branch or tag names, and what killed writers left. Waits for those that write, `patience` seconds at most.

    Raises UsageError, with nothing removed, where a manifest cannot be read, since what it names would then be lost, and
    for a store in a bucket, in which other machines may be writing, or in a folder that may be another ledger's.
    """
    if ledger.store.folder is None:
        raise UsageError(f"{ledger.store.root} is a bucket, in which others may be writing: gc works on folders only")
    _check_owner(ledger, ledger.store.folder)
    with held(ledger.path, alone=True, patience=patience):
        named = {chunk for commit in ledger.history() for chunk in commit.manifest.chunks()}
        files, others = ledger.store.listed()
        unnamed, torn = sorted(files.keys() - named), [path for path in others if path.endswith(WRITING)]
        for path in [*unnamed, *torn]:
            ledger.store.remove(path)
        ledger.git.run("repack", "-d", "-q")  # which touches no ref, so that it may be killed
        return Removed(len(unnamed), sum(files[chunk] for chunk in unnamed), len(torn))


def _check_owner(ledger: Ledger, folder: Path) -> None:
    """Raises UsageError for a store that belongs to another ledger, or lies elsewhere and does not say whose it is."""
    ledger.store.check_not_of_another(ledger.id)
    inside = folder.resolve().is_relative_to(ledger.path.resolve())
    if ledger.store.owner() is None and not inside:
        raise UsageError(
            f"{folder} does not say whose it is, so other ledgers may have tensors there; if none has, write {ledger.id} "
            f"into {folder / OWNER}"
        )
