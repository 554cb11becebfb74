"""Git's plumbing. Objects are written before the ref that names them, so a torn write is never seen."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from unimodal.errors import UsageError

NOBODY = "0" * 40  # the ref that is not there yet
SOMEBODY = {"NAME": "unimodal", "EMAIL": "unimodal@localhost"}  # where git knows no author
# A user's hooks and automatic maintenance have no business here, and what a ref names must survive a power cut.
_FIXED = ("core.hooksPath=/dev/null", "gc.auto=0", "maintenance.auto=false", "core.fsync=committed,reference")
STALE = 5.0  # seconds after which a lock file of git, which holds one for milliseconds, is what a killed one left


class GitError(UsageError):
    """Git refused. The message is one line with what it said."""


class MovedError(UsageError):
    """A ref is no longer where it was when the caller looked."""


class Git:
    """A bare repository. Git itself is called: it moves refs atomically, speaks to every host, and knows who the user is."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(
        self, *arguments: str, given: bytes = b"", fine: Sequence[int] = (0,), environment: Mapping[str, str] = {}
    ) -> bytes:
        """Standard output of a git command. Raises GitError for an exit code that is not among the fine ones."""
        fixed = [word for setting in _FIXED for word in ("-c", setting)]
        command = ["git", f"--git-dir={self.folder}", *fixed, *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or "SSH" in name}
        try:
            done = subprocess.run(
                command,
                input=given,
                capture_output=True,
                env={**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", **environment},
            )
        except FileNotFoundError:
            raise UsageError("a ledger needs git, which is not installed here (apt-get install git)") from None
        if done.returncode not in fine:
            said = " ".join(done.stderr.decode(errors="replace").split())[:300]
            raise GitError(f"git {arguments[0]} in {self.folder}: {said or f'exit code {done.returncode}'}")
        return done.stdout

    def text(self, *arguments: str, given: bytes = b"") -> str:
        """Standard output without the line break at its end."""
        return self.run(*arguments, given=given).decode().rstrip("\n")

    def write_tree(self, files: Mapping[str, bytes]) -> str:
        """Write files by path ("config.json", "scores/vit.json") and the folders around them; returns the tree's id."""
        folders: dict[str, dict[str, bytes]] = {}
        lines = []
        for path, content in files.items():
            first, slash, rest = path.partition("/")
            if slash:
                folders.setdefault(first, {})[rest] = content
            else:
                lines.append(f"100644 blob {self.text('hash-object', '-w', '--stdin', given=content)}\t{first}")
        lines += [f"040000 tree {self.write_tree(inside)}\t{name}" for name, inside in folders.items()]
        return self.text("mktree", given="\n".join(lines).encode() + b"\n")

    def commit_tree(self, tree: str, parents: Sequence[str], message: str) -> str:
        """Write a commit object that no ref names yet; returns its id."""
        words = [word for parent in parents for word in ("-p", parent)]
        made = self.run("commit-tree", tree, *words, "-F", "-", given=message.encode(), environment=self._author())
        return made.decode().strip()

    def _author(self) -> dict[str, str]:
        try:
            self.run("var", "GIT_AUTHOR_IDENT")
            self.run("var", "GIT_COMMITTER_IDENT")
            return {}
        except GitError:  # git has no name to guess from
            return {f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in SOMEBODY.items()}

    def move(self, ref: str, new: str, old: str | None, why: str) -> None:
        """Move a ref from `old` (None: it is new) to `new`. Raises MovedError if another writer was there first."""
        began = time.monotonic()
        while True:
            try:
                self.run("update-ref", "-m", why, ref, new, NOBODY if old is None else old)
                return
            except GitError as error:
                if self.where(ref) != old:
                    raise MovedError(f"{ref} has moved meanwhile") from error
                if "File exists" not in str(error) or time.monotonic() - began > 3 * STALE:
                    raise
                self._remove_stale(ref)
                time.sleep(0.05)

    def _remove_stale(self, ref: str) -> None:
        """Remove the lock file that a killed git has left at a ref."""
        lock = self.folder / f"{ref}.lock"
        with contextlib.suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime > STALE:
                lock.unlink()

    def where(self, ref: str) -> str | None:
        """The commit of a full ref name; None where there is none."""
        found = self.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", fine=(0, 1, 128))
        return found.decode().strip() or None

    def refs(self) -> dict[str, str]:
        """Commit of every branch, tag and remote branch, by full name."""
        listed = self.text("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)")
        rows = [line.split(" ") for line in listed.splitlines()]
        return {name: peeled or plain for name, plain, peeled in rows}
