"""A ledger: a folder with a git repository of small files, and tensors by their content beside it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.configuration import nearest
from unimodal.errors import UsageError
from unimodal.ledger.git import Git, GitError, MovedError
from unimodal.ledger.locks import held
from unimodal.ledger.manifest import DamagedError, Entry, Manifest
from unimodal.ledger.store import Store
from unimodal.storage import write_whole

HISTORY, TENSORS, SETTINGS = "history.git", "tensors", "ledger.json"
MANIFEST = "manifest.json"
MAIN = "main"
TRIES = 20  # of a commit whose branch others move
Arrays = Iterable[tuple[str, np.ndarray, tuple[str, ...]]]  # name, array, logical axes


@dataclass(frozen=True)
class Draft:
    """What a commit is made of: a manifest, and small files by path, such as config.json."""

    manifest: Manifest
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """A commit of a ledger."""

    ledger: Ledger = field(repr=False)
    id: str
    parents: tuple[str, ...]
    tree: str
    author: str
    when: int  # seconds since 1970
    message: str

    @property
    def short(self) -> str:
        return self.id[:10]

    @property
    def subject(self) -> str:
        return self.message.partition("\n")[0]

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.parse(self.file(MANIFEST), f"{MANIFEST} of commit {self.short}")

    @cached_property
    def names(self) -> list[str]:
        """The paths of its small files. Raises DamagedError for one that would lead out of a folder."""
        found = self.ledger.git.text("ls-tree", "-r", "-z", "--name-only", self.id).rstrip("\0").split("\0")
        if strange := [path for path in found if {"..", ".", ""} & set(path.split("/"))]:
            raise DamagedError(f"commit {self.short} has a file {strange[0]!r}, which leads out of its folder")
        return found

    def file(self, path: str) -> bytes:
        try:
            return self.ledger.git.run("cat-file", "blob", f"{self.id}:{path}")
        except GitError as error:
            raise DamagedError(f"commit {self.short} has no {path} that can be read ({error})") from error

    def json(self, path: str) -> Any:
        """A file of JSON; None where there is none."""
        return json.loads(self.file(path)) if path in self.names else None

    def read(self, name: str) -> np.ndarray:
        """A tensor, checked. Raises DamagedError."""
        entry = self.manifest.tensors.get(name)
        if entry is None:
            raise UsageError(f"commit {self.short} has no {name}; {nearest(name, list(self.manifest.tensors))}")
        return self.ledger.store.get(entry, f"{name} of commit {self.short}")

    @property
    def draft(self) -> Draft:
        """The same again, to be changed."""
        return Draft(self.manifest, {path: self.file(path) for path in self.names if path != MANIFEST})


class Ledger:
    """Opens the ledger in a folder. Raises UsageError if there is none."""

    def __init__(self, path: Path | str):
        self.path = Path(path).expanduser().absolute()
        if not (self.path / SETTINGS).is_file():
            raise UsageError(f"{path} is no ledger; `ledger init {path}` makes one")
        settings = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        tensors = settings.get("tensors", TENSORS)
        self.id = settings.get("id", str(self.path))  # earlier ledgers have none
        self.git = Git(self.path / HISTORY)
        self.store = Store(tensors if "://" in tensors else str(self.path / tensors))

    @classmethod
    def create(cls, path: Path | str, tensors: str | None = None) -> Ledger:
        """Make a ledger in a new or empty folder. tensors: a folder or bucket for the store (None: beside the history).

        Raises UsageError if something is there already, and for a folder of tensors that belongs to another ledger.
        """
        path = Path(path).expanduser().absolute()
        if (path / SETTINGS).exists():
            raise UsageError(f"{path} is a ledger already")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} is not empty; give a new folder")
        store = Store(str(path / TENSORS) if tensors is None else tensors)
        where = tensors if tensors is None or store.folder is None else str(store.folder.absolute())
        own = uuid.uuid4().hex
        store.claim(own, path)
        path.mkdir(parents=True, exist_ok=True)
        Git(path / HISTORY).run("init", "--quiet", "--bare", f"--initial-branch={MAIN}", str(path / HISTORY))
        (path / TENSORS).mkdir(exist_ok=True)
        settings = {"format": 1, "id": own, "tensors": where or TENSORS}
        write_whole(path / SETTINGS, json.dumps(settings, indent=2) + "\n")
        return cls(path)

    # --- refs -------------------------------------------------------------------------------------------------------

    def resolve(self, ref: str) -> str:
        """The commit of a branch, a tag, main~2, or the first digits of a commit. Raises UsageError with the nearest."""
        found = None
        if ref and not ref.startswith("-"):
            found = self.git.where(ref)
        if found is None:
            ref, known = ref.removeprefix("refs/heads/"), [name.split("/", 2)[-1] for name in self.git.refs()]
            hint = nearest(ref, known) if known else "nothing is committed yet"
            raise UsageError(f"{self.path} has no branch, tag or commit {ref!r}; {hint}")
        return found

    def commit(self, ref: str) -> Commit:
        """The commit that a ref names. Raises UsageError as `resolve` does."""
        return self._commits([self.resolve(ref)], limit=1)[0]

    def history(self, refs: Sequence[str] = (), limit: int | None = None) -> list[Commit]:
        """Commits from which the refs come (none: all branches and tags), children before their parents."""
        starts = [self.resolve(ref) for ref in refs] or sorted(set(self.git.refs().values()))
        return self._commits(starts, limit) if starts else []

    def _commits(self, starts: Sequence[str], limit: int | None) -> list[Commit]:
        most = [] if limit is None else [f"--max-count={limit}"]
        layout = "--format=%H%x00%P%x00%T%x00%an%x00%at%x00%B%x00"
        said = self.git.text("log", "--topo-order", layout, "-z", *most, *starts, "--")
        words = said.split("\0")
        # Each commit ends with an empty word: -z puts one NUL more between them.
        rows = [words[i : i + 6] for i in range(0, len(words) - 5, 7)]
        return [Commit(self, i, tuple(p.split()), t, a, int(w), m.strip("\n")) for i, p, t, a, w, m in rows]

    def heads(self) -> dict[str, str]:
        """Commit of each branch by its short name."""
        return {n.removeprefix("refs/heads/"): c for n, c in self.git.refs().items() if n.startswith("refs/heads/")}

    def base(self, commits: Sequence[str]) -> Commit | None:
        """The last commit that all of them come from."""
        found = self.git.run("merge-base", "--octopus", *commits, fine=(0, 1)).decode().split()
        return self.commit(found[0]) if found else None

    def branch(self, name: str, ref: str) -> str:
        """Begin a branch at a ref. Raises UsageError for a name that git refuses, or that is taken."""
        where = branch_ref(self.git, name)
        if self.git.where(where) is not None:
            raise UsageError(f"{self.path} has a branch {name!r} already")
        commit = self.resolve(ref)
        self.git.move(where, commit, None, f"branch: from {ref}")
        return commit

    # --- writing ----------------------------------------------------------------------------------------------------

    def add(self, arrays: Arrays) -> dict[str, Entry]:
        """Store arrays. Until a commit names them, hold `locks.held(self.path, alone=False)`, or gc may remove them."""
        return self.store.put_all(arrays)

    def record(
        self,
        draft: Draft,
        message: str,
        branch: str,
        *,
        merged: Sequence[str] = (),
        on: str | None = None,
    ) -> Commit:
        """Commit a draft whose tensors are stored. merged: further parents.

        on: the commit that the branch must be at; without it, whatever it is at becomes the parent, also if another
        writer has just put it there. Raises MovedError if the branch is not at `on`, and UsageError without a message.
        """
        if not message.strip():
            raise UsageError("a commit needs a message: -m 'what changed, and why'")
        ref = branch_ref(self.git, branch)
        tree = self.git.write_tree({MANIFEST: draft.manifest.as_bytes(), **draft.files})
        for left in reversed(range(TRIES)):
            head = self.git.where(ref) if on is None else on
            parents = [*([] if head is None else [head]), *(c for c in merged if c != head)]
            new = self.git.commit_tree(tree, parents, message)
            try:
                self.git.move(ref, new, head, f"commit: {message.splitlines()[0]}")
                return self.commit(new)
            except MovedError:
                if on is not None or not left:
                    raise
        raise AssertionError("unreachable")

    def writing(self) -> AbstractContextManager[None]:
        """Hold off gc while tensors are written that no commit names yet."""
        return held(self.path, alone=False)


def branch_ref(git: Git, name: str) -> str:
    """The full name of a branch. Raises UsageError for one that git does not allow."""
    ref = f"refs/heads/{name}"
    try:
        git.run("check-ref-format", "--branch", name)
    except GitError:
        plain = re.sub(r"[^\w./-]+", "-", name).strip("-/.") or MAIN
        raise UsageError(f"{name!r} is no name of a branch; {plain!r} would be") from None
    return ref


def parse_address(text: str) -> tuple[str, str, str | None]:
    """ "ledger:PATH@REF", or "ledger:PATH@REF=COMMIT" of a run that has begun → path, ref, commit. Raises UsageError."""
    found = re.fullmatch(r"ledger:(.+)@([^@=]+)(?:=([0-9a-f]{40}))?", text)
    if found is None:
        raise UsageError(f"{text!r} should be ledger:PATH@REF, such as ledger:runs/ledger@main")
    return found[1], found[2], found[3]
