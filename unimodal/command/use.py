"""Commands that use a model: predict, embed, index, search, export and serve."""

from __future__ import annotations

import base64
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unimodal.answers import Asked
from unimodal.command.words import USE, Words
from unimodal.errors import UsageError
from unimodal.sharding import MESH_AXES
from unimodal.training.alone import alone
from unimodal.use import Loaded, load
from unimodal.use.answering import Asking, answered
from unimodal.use.embedding import query_of, to_numpy, without_embeddings
from unimodal.use.export import Target, export
from unimodal.use.index import append, open_index
from unimodal.use.inputs import entries
from unimodal.use.output import begun, json_line, open_output

EXIT_NOTHING = 2  # not one input could be answered


def run_use(words: Words, program: str) -> int:
    """Run a command that uses a model; returns the exit code. Raises UsageError."""
    commands: Mapping[str, Callable[[Words, str], int]] = {
        "predict": run_predict,
        "embed": run_embed,
        "index": run_index,
        "search": run_search,
        "serve": run_serve,
        "export": run_export,
    }
    return commands[words.command](words, program)


def run_predict(words: Words, program: str) -> int:
    path, given = model_and_inputs(words, program)
    more = dict(words.more)
    asked = asked_of(more)
    batch = whole(more, "batch", 32)
    out = None
    if "out" in more:  # before the model is loaded, which takes long
        if "pictures" in more and not begun(more["out"]):
            check_no_pictures(Path(more["pictures"]))
        out = open_output(more["out"], question_of(path, more))
    loaded = loaded_of(path, more)
    asking = Asking(loaded, asked, more.get("task"), more.get("gives"), batch)
    # Read lazily: a folder of a million pictures is listed, but not opened.
    waiting: Iterable[Any] = entries(given, more.get("split", "validation"))
    if out is not None:
        waiting = out.left(waiting)
        if out.done:
            print(f"{len(out.done)} answers are there; going on", file=sys.stderr)
    rows = answered(asking, waiting)
    if "pictures" in more:
        rows = with_files(rows, Path(more["pictures"]), 0 if out is None else len(out.done), replace=out is not None)
    rows = printed(rows) if out is None else progress(out.write(rows), len(out.done))
    total, bad = counted(rows)
    if out is not None:
        out.finish()
        total, bad = total + len(out.done), bad + out.failed
        print(f"{total} answers in {out.final}", file=sys.stderr)
    return ending(total, bad)


def run_embed(words: Words, program: str) -> int:
    path, given = model_and_inputs(words, program)
    more = dict(words.more)
    # Write lines first: an .npy file must know its length, and a killed command could not go on with one.
    as_numpy = str(more.get("out", "")).endswith(".npy")
    lines = more["out"].removesuffix(".npy") + ".jsonl" if as_numpy else more.get("out")
    if as_numpy and Path(more["out"]).exists() and not begun(str(lines)):
        raise UsageError(f"{more['out']} is there already, and whole; remove it, or give another --out")
    out = None if lines is None else open_output(lines, question_of(path, more))
    asking = embedder(path, more)
    waiting: Iterable[Any] = entries(given, more.get("split", "validation"))
    rows = answered(asking, waiting if out is None else out.left(waiting))
    total, bad = counted(printed(rows) if out is None else progress(out.write(rows), len(out.done)))
    if out is not None:
        if as_numpy:
            to_numpy(out.path, Path(more["out"]))
        # The mark goes only when the .npy file is whole, and the lines lose their embeddings only when it has gone: a
        # command that is killed in between has lost nothing.
        out.finish()
        if as_numpy:
            without_embeddings(out.path)
        total, bad = total + len(out.done), bad + out.failed
        print(f"{total} rows in {more['out']}", file=sys.stderr)
    return ending(total, bad)


def run_index(words: Words, program: str) -> int:
    path, given = model_and_inputs(words, program)
    more = dict(words.more)
    if "to" not in more:
        raise UsageError("say where the index is: --to=FOLDER")
    with alone(more["to"]):  # from before what is there is counted: two would overwrite each other's rows
        return add_to_index(path, given, more)


def add_to_index(path: str, given: Sequence[str], more: Mapping[str, Any]) -> int:
    """Embed inputs into the index of `more`, which is ours alone; returns the exit code."""
    bad: list[Mapping[str, Any]] = []

    def good(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for row in rows:
            if "error" in row:
                bad.append(row)
                print(f"{row['id']}: {row['error']}", file=sys.stderr)
            else:
                yield row

    there = open_index(more["to"]) if (Path(more["to"]) / "about.json").exists() else None
    asking = embedder(path, more)
    waiting = entries(given, more.get("split", "validation"))
    # Count what is there before, so that only new vectors are told of.
    before = 0 if there is None else there.rows
    if there is not None and there.begun is not None:
        print(f"{there.rows - there.begun} are there; going on", file=sys.stderr)
        before, waiting = there.begun, there.left(waiting)
    rows = good(answered(asking, waiting))
    first = list(itertools.islice(rows, 1))  # shows which task answers where none is named
    index = append(more["to"], progress(itertools.chain(first, one_task(rows, asking)), 0), made_by(asking, more))
    print(
        f"{index.rows - before} added to {index.folder}: {index.rows} vectors of {index.size} numbers", file=sys.stderr
    )
    return ending(index.rows - before + len(bad), len(bad))


def run_search(words: Words, program: str) -> int:
    if len(words.inputs) != 1:
        raise UsageError(f"usage: {program} search {USE['search']} --image=FILE --text=WORDS [flags]; --help says more")
    more = dict(words.more)
    index = open_index(words.inputs[0])
    parts = {kind: more[kind] for kind in ("image", "text", "sound") if kind in more}
    if not parts:
        raise UsageError("say what is looked for: --image=FILE, --text=WORDS, --sound=FILE, or several of them")
    path, said = more.get("model", index.made_by.get("model")), index.made_by
    if path is None:
        raise UsageError(f"{index.folder} does not say which model made it: give --model=WORKDIR_OR_CHECKPOINT")
    more = {"task": said.get("task"), **more}
    # Embed the query by the very weights that made the index, unless another model is asked for.
    if "model" not in more:
        index.check({**said, "task": more["task"]})
        same = {"checkpoint": said.get("step"), "ema": said.get("average"), "dtype": said.get("dtype")}
        more = {**same, **more}
    query = query_of(embedder(path, {name: v for name, v in more.items() if v is not None}), parts)
    for row in index.nearest(query, whole(more, "top", 5), exact=bool(more.get("exact"))):
        print(json_line(row))
    return 0


def run_serve(words: Words, program: str) -> int:
    if len(words.inputs) != 1:
        raise UsageError(f"usage: {program} serve {USE['serve']} [flags]; --help says more")
    more = words.more
    from unimodal.use.serve.start import serve  # only here: nobody else needs its packages

    serve(
        lambda: loaded_of(words.inputs[0], more),
        host=more.get("host", "localhost"),
        port=whole(more, "port", 8000),
        token=more.get("token"),
        index=more.get("index"),
        batch_size=whole(more, "batch", 32),
        most=whole(more, "most", 16 * 2**20),
        timeout=number(more, "timeout", 60.0),
    )
    return 0


def made_by(asking: Asking, more: Mapping[str, Any]) -> dict[str, Any]:
    """What an index says of the model. Raises UsageError where several tasks embed its inputs."""
    names = sorted(asking.answered_by)
    if len(names) > 1:
        raise UsageError(f"several tasks embed these inputs, each in its own way: say which, --task={'|'.join(names)}")
    return {**asking.loaded.made_by(names[0] if names else more.get("task")), "dtype": more.get("dtype")}


def one_task(rows: Iterable[Mapping[str, Any]], asking: Asking) -> Iterator[Mapping[str, Any]]:
    """Give rows on while one task embeds them all."""
    for row in rows:
        made_by(asking, {})
        yield row


def embedder(path: str, more: Mapping[str, Any]) -> Asking:
    """The model of a path, asked for embeddings."""
    return Asking(loaded_of(path, more), task=more.get("task"), gives="embedding", batch_size=whole(more, "batch", 32))


def run_export(words: Words, program: str) -> int:
    path, (target, *more) = model_and_inputs(words, program)
    if more:
        raise UsageError(f"an export goes to one place, but {more[0]} is another")
    where = Target.parse(target)  # before the model is loaded
    more = words.more
    for line in export(loaded_of(path, more), where, more.get("task"), more.get("gives"), int8=bool(more.get("int8"))):
        print(line)
    return 0


def model_and_inputs(words: Words, program: str, *, least: int = 1) -> tuple[str, tuple[str, ...]]:
    """The first word and the others. Raises UsageError where there are too few."""
    if len(words.inputs) < 1 + least:
        raise UsageError(f"usage: {program} {words.command} {USE[words.command]} [flags]; --help says more")
    return words.inputs[0], words.inputs[1:]


def loaded_of(path: str, more: Mapping[str, Any]) -> Loaded:
    """The model that the flags name."""
    mesh = mesh_of(more["mesh"]) if "mesh" in more else None
    step = whole(more, "checkpoint", 0) if "checkpoint" in more else None
    return load(path, step=step, ema=more.get("ema"), mesh=mesh, dtype=more.get("dtype"))


def mesh_of(text: str) -> dict[str, int]:
    """ "data=2,tensor=4" → sizes by axis. Raises UsageError for anything else."""
    found: dict[str, int] = {"data": 1}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not size.isdecimal():
            raise UsageError(f"--mesh={text} should be as data=2,tensor=4, of {', '.join(MESH_AXES)}")
        found[axis] = int(size)
    return found


def asked_of(more: Mapping[str, Any]) -> Asked:
    """Read the options that go along with a question."""
    default = Asked()
    return Asked(
        classes=tuple(dict.fromkeys(name.strip() for name in more.get("classes", "").split(",") if name.strip())),
        template=more.get("template", default.template),
        top=whole(more, "top", default.top),
        steps=whole(more, "steps", default.steps),
        temperature=number(more, "temperature", default.temperature),
        top_p=number(more, "top_p", default.top_p),
        seed=whole(more, "seed", default.seed),
        beam=whole(more, "beam", default.beam),
    )


def whole(more: Mapping[str, Any], name: str, default: int) -> int:
    value = str(more.get(name, default))
    if not value.isdecimal() or len(value) > 12:
        raise UsageError(f"--{name} must be a whole number, but is {value!r}")
    return int(value)


def number(more: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(more.get(name, default))
    except ValueError:
        raise UsageError(f"--{name} must be a number, but is {more[name]!r}") from None


def question_of(path: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """What changes the answers in a file, which goes on only where this is as it was: the model, and the flags but a few."""
    kept = {name: more[name] for name in sorted(more) if name not in ("out", "batch", "mesh")}
    return {"model": str(Path(path).absolute()), "newest": newest(path), **kept}


def newest(path: str) -> list[str]:
    """A value that differs between two states of a workdir or checkpoint."""
    where = Path(path)
    # Take times of files in place of hashes: weights may be large, and any rewriting changes the time.
    files = [where / "config.json", *sorted(where.glob("*.safetensors")), *sorted(where.glob("checkpoints/*"))]
    return [f"{file.name} {file.stat().st_mtime_ns}" for file in files if file.exists()]


def check_no_pictures(folder: Path) -> None:
    """Raises UsageError where pictures of another command would be overwritten."""
    if there := sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9].png")):
        raise UsageError(f"{there[0]} is there already: name another folder")


def with_files(
    rows: Iterable[Mapping[str, Any]], folder: Path, first: int, *, replace: bool
) -> Iterator[Mapping[str, Any]]:
    """Write each picture that is an answer as FOLDER/NUMBER.png, of the row's number from `first` on, and name it there.

    replace: whether a picture may be there already, of a row that was lost with a command that was killed.
    """
    for number, row in enumerate(rows, first):
        if "picture" in row:
            path = folder / f"{number:05}.png"
            if path.exists() and not replace:
                raise UsageError(f"{path} is there already: name another folder")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(row["picture"].partition(",")[2]))
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror}") from error
            row = {**row, "picture": str(path)}
        yield row


def printed(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """One JSON object a line, on standard output, as it comes."""
    for row in rows:
        print(json_line(row), flush=True)
        yield row


def progress(rows: Iterable[Mapping[str, Any]], before: int, every: float = 2.0) -> Iterator[Mapping[str, Any]]:
    """Say now and then how many there are, and how many a second. On a terminal it is one line."""
    began = last = time.monotonic()
    live, said = sys.stderr.isatty(), False
    for i, row in enumerate(rows, 1):
        now = time.monotonic()
        if now - last >= (every if live else 5 * every):
            last, said = now, True
            text = f"{before + i} answered, {i / (now - began):.1f} a second"
            print(f"\r\033[K{text}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)
        yield row
    if live and said:
        print(file=sys.stderr)


def counted(rows: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Count rows, and how many of them are errors."""
    total = bad = 0
    for row in rows:
        total, bad = total + 1, bad + ("error" in row)
    return total, bad


def ending(total: int, bad: int) -> int:
    """Say how many inputs could not be answered; returns the exit code."""
    if bad:
        print(f"{bad} of {total} inputs could not be answered; their rows say why", file=sys.stderr)
    return EXIT_NOTHING if bad and bad == total else 0
