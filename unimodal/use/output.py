"""Answers as a file of JSON lines or Parquet. What was stopped half-way goes on where it was."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, TextIO

from unimodal.errors import UsageError
from unimodal.storage import write_whole
from unimodal.use.inputs import Entry


@dataclasses.dataclass(frozen=True)
class Output:
    """A file that is written line by line. Beside it, `FILE.asked` says whose answers they are until they are whole."""

    path: Path  # of the lines
    final: Path  # what the user named
    done: tuple[str, ...]  # ids that are answered already
    failed: int = 0  # rows among them that are errors
    size: int = 0  # bytes of their lines

    def left(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries that have no answer yet. Raises UsageError where the answers that are there are to other inputs."""
        waiting = iter(entries)
        for i, name in enumerate(self.done):
            entry = next(waiting, None)
            if entry is None or entry.id != name:
                other = "there are no more" if entry is None else f"it is {entry.id} now"
                raise UsageError(
                    f"{self.final} answers other inputs: input {i + 1} was {name} there, and {other}; give another --out"
                )
        return waiting

    def write(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Append the rows, one by one, and give them on. Raises UsageError where another process writes there, or has since."""
        with self.path.open("a", encoding="utf-8") as stream:
            self._claim(stream)
            for row in rows:
                stream.write(json_line(row) + "\n")
                stream.flush()
                yield row

    def _claim(self, stream: TextIO) -> None:
        """Let nobody else write until the stream is closed: two would each append what the other does, too."""
        _lock(stream, self.final)
        if os.fstat(stream.fileno()).st_size != self.size or not _asked(self.final).exists():
            raise UsageError(f"another process has written {self.final} meanwhile; give the command again")

    def finish(self) -> None:
        """Turn the lines into what was asked for."""
        if self.final.suffix == ".parquet":
            _to_parquet(self.path, self.final)
            self.path.unlink()
        _asked(self.final).unlink(missing_ok=True)


def open_output(file: str, asked: Mapping[str, Any]) -> Output:
    """Begin a file of answers, or go on with one. asked: whatever changes them, which must be as it was.

    Raises UsageError for another kind of file, one that is whole, and one whose answers are to another question.
    """
    final = Path(file)
    if final.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"--out={file} should end in .jsonl or .parquet")
    if final.suffix == ".parquet":
        parquet()  # now, and not when all is answered
    path = final if final.suffix == ".jsonl" else final.with_name(final.name + ".jsonl")
    mark, said = _asked(final), json.dumps(asked, sort_keys=True)
    if final.exists() and not mark.exists():
        raise UsageError(f"{final} is there already, and whole; remove it, or give another --out")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if mark.exists():
            if mark.read_text(encoding="utf-8") != said:
                raise UsageError(
                    f"{final} was begun with another model or other flags; remove it, or give another --out"
                )
        else:
            write_whole(mark, said)
    except OSError as error:
        raise UsageError(f"cannot write {final}: {error.strerror}") from error
    return _whole_lines(path, final)


def begun(file: str) -> bool:
    """Whether a command has begun a file of answers, and was stopped before it was whole."""
    return _asked(Path(file)).exists()


def _whole_lines(path: Path, final: Path) -> Output:
    """The lines that are there. A last one that was cut off is taken away."""
    if not path.exists():
        return Output(path, final, ())
    names, failed, good = [], 0, 0
    with path.open("r+b") as stream:
        _lock(stream, final)  # until it is closed: what another process is writing is not cut off
        for line in stream:
            try:
                row = json.loads(line) if line.endswith(b"\n") else {}
                name = row["id"]
            except (ValueError, KeyError, TypeError):
                break
            names.append(name)
            failed, good = failed + ("error" in row), good + len(line)
        os.truncate(path, good)
    return Output(path, final, tuple(names), failed, good)


def _lock(stream: IO[Any], final: Path) -> None:
    """Hold a file of answers while the stream is open. Raises UsageError where another process does."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another process writes {final}; wait until it has ended") from None
    except OSError:  # a file system without locks
        return


def json_line(value: Any) -> str:
    """JSON on one line. A file name that is not UTF-8 has surrogates, which become escapes of JSON and read back as they were."""
    return _escaped(json.dumps(value, ensure_ascii=False))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    with path.open("rb") as stream:  # str.splitlines would also split at U+2028, which JSON leaves as it is
        return [json.loads(line) for line in stream]


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def parquet() -> Any:
    """pyarrow's module. Raises UsageError where it is not installed."""
    try:
        import pyarrow.parquet as found
    except ImportError:
        raise UsageError("Parquet takes pyarrow: pip install 'unimodal[parquet]', or give --out=FILE.jsonl") from None
    return found


def _to_parquet(lines: Path, final: Path) -> None:
    """One column for each name that a row has; maps become JSON, as their keys differ from row to row."""
    import pyarrow

    rows = rows_of(lines)
    names = dict.fromkeys(chain.from_iterable(rows))
    table = pyarrow.table({name: _flat([row.get(name) for row in rows]) for name in names})
    fresh = final.with_name(final.name + ".partial")
    parquet().write_table(table, fresh)
    fresh.replace(final)


def _flat(column: Sequence[Any]) -> list[Any]:
    """A column of one type: an empty list among lists of maps becomes JSON as they do."""
    if any(isinstance(value, dict) or _maps(value) for value in column):
        return [None if value is None else json_line(value) for value in column]
    return [_escaped(value) if isinstance(value, str) else value for value in column]


def _maps(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _asked(final: Path) -> Path:
    return final.with_name(final.name + ".asked")
