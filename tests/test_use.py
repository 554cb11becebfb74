"""A trained model by its path: what it answers, to what inputs, and what it says where it cannot."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny
import used
from flax import nnx
from PIL import Image

import unimodal
from unimodal.answers import Answer, Asked
from unimodal.answers.classes import ranked
from unimodal.answers.texts import guessed
from unimodal.command import main
from unimodal.command.use import printed
from unimodal.data.sources import open_source
from unimodal.errors import UsageError
from unimodal.evaluation.samples import FilledText, TextSample
from unimodal.interop import files as interop_files
from unimodal.sharding import make_mesh
from unimodal.training.checkpoint import Checkpoints
from unimodal.use.answering import Asking
from unimodal.use.embedding import to_numpy, without_embeddings
from unimodal.use.index import append, open_index
from unimodal.use.inputs import entries
from unimodal.use.output import open_output, rows_of

REFERENCES = Path(__file__).parent / "reference" / "interop"
GIVES = {"image": "picture.png", "text": "text.txt", "sound": "sound.ogg"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A workdir with every task there is, its experiment, and its state."""
    folder = tmp_path_factory.mktemp("run")
    return folder, *used.workdir(folder, tiny.plain(ema=0.9))


@pytest.fixture(scope="module")
def loaded(run: tuple[Path, Any, Any]) -> Any:
    return unimodal.load(run[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "picture.png").write_bytes(open_source("embedded:emoji", "validation")[0]["image"])
    (folder / "sound.ogg").write_bytes(open_source("embedded:speech", "validation")[0]["audio"])
    (folder / "text.txt").write_text("an [MASK] of text", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_the_command_that_asks_again(run: tuple[Path, Any, Any], loaded: Any, capsys: Any) -> None:
    """What the report prints beside a task's samples gives the answers of those records."""
    from unimodal.results import command_of

    folder, experiment, _ = run
    shown: Any = SimpleNamespace(index=np.array([0, 5]))
    some: Any = [None]  # samples that are of no use here
    command = command_of(experiment, "vit", shown, some, folder)
    assert command == f"unimodal predict {folder} 'embedded:emoji#0' 'embedded:emoji#5' --task=vit"
    assert main(shlex.split(command)) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    records = [open_source("embedded:emoji", "validation")[i] for i in (0, 5)]
    assert [a["id"] for a in answers] == ["embedded:emoji#0", "embedded:emoji#5"]
    for answer, record in zip(answers, records, strict=True):
        assert answer["classes"] == pytest.approx(loaded.predict(record, task="vit")[0]["classes"], abs=1e-5)
    # An evaluation is of the task that has it, and what is shown of windows of a book is asked as texts.
    captions = command_of(experiment, "virtex_captions", shown, some, folder)
    assert captions is not None and captions.endswith("--task=virtex") and "emoji#0" in captions
    assert command_of(experiment, "gpt", shown, some, folder) is None
    assert command_of(experiment, "mae", shown, [], folder) is None
    written = TextSample("The old ", "man", again=(("steps", 3), ("temperature", 0.7)))
    command = command_of(experiment, "gpt", shown, [written], folder)
    assert command == f"unimodal predict {folder} 'The old ' --steps=3 --temperature=0.7 --task=gpt"
    gaps = FilledText("an old man", ((3, 4, "x", "o"), (4, 5, "x", "l")))
    command = command_of(experiment, "bert", shown, [gaps], folder)
    assert command == f"unimodal predict {folder} 'an [MASK][MASK]d man' --task=bert"
    assert main(shlex.split(command)) == 0 and len(json.loads(capsys.readouterr().out)["masked"]) == 2
    assert main(["unimodal", "predict", str(folder), "embedded:emoji#999", "--task=vit"]) == 2
    assert "has no record 999 in validation: there are 152, counted from 0" in capsys.readouterr().err


def test_zero_shot_samples_are_asked_again(run: tuple[Path, Any, Any], tmp_path: Path, capsys: Any) -> None:
    from unimodal.results import command_of

    attached = dict(kind="zero_shot", source="embedded:emoji", templates=("{}",))
    experiment = tiny.build(tiny.plain("clip", evaluations={"names": attached}))
    evaluation = experiment.evaluations["names"]
    model = unimodal.load(run[0]).model
    shown = evaluation.measure(model, experiment.reader).shown
    assert shown is not None
    samples: Any = evaluation.samples(model, shown)
    command = command_of(experiment, "names", shown, samples, run[0])
    assert command is not None and "'--classes=smileys & emotion,people & body" in command
    assert main(shlex.split(command)) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["class"] for a in answers] == [sample.guesses[0][0] for sample in samples]


def test_what_a_report_shows_of_a_writer_is_written_again(run: tuple[Path, Any, Any], loaded: Any, capsys: Any) -> None:
    from unimodal.results import command_of

    folder, experiment, _ = run
    evaluation = experiment.evaluations["gpt"]
    shown = evaluation.measure(loaded.model, experiment.reader, limit=1).shown
    samples = evaluation.samples(loaded.model, shown)
    command = command_of(experiment, "gpt", shown, samples, folder)
    assert main(shlex.split(command)) == 0
    found = [json.loads(line)["continuation"] for line in capsys.readouterr().out.splitlines()]
    assert found == [sample.output for sample in samples]


def test_pictures_of_another_command_stay(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "00000.png").write_bytes(b"drawn")
    words = ["unimodal", "predict", "run", "a red heart", f"--out={tmp_path / 'b.jsonl'}", f"--pictures={tmp_path}"]
    assert main(words) == 2 and "00000.png is there already: name another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


def test_pictures_are_answers_in_rows_and_in_files(run: tuple[Path, Any, Any], files: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.jsonl", tmp_path / "drawn"
    words = ["unimodal", "predict", str(run[0]), "a red heart", "a blue star", "--task=dalle", f"--out={out}"]
    assert main([*words, f"--pictures={folder}"]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["picture"] for row in rows] == [str(folder / "00000.png"), str(folder / "00001.png")]
    size = unimodal.load(run[0]).model.tokenizers["codes"].config.image_size
    with Image.open(rows[1]["picture"]) as picture:
        assert picture.size == (size[1], size[0])
    model = unimodal.load(run[0])
    (whole,) = model.predict(files / "picture.png", task="mae")
    (other,) = model.predict(files / "picture.png", task="mae", seed=1)
    (again,) = model.predict(files / "picture.png", task="mae")
    assert whole["picture"].startswith("data:image/png;base64,") and whole == again != other


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_task_answers(kind: str, loaded: Any, files: Path) -> None:
    try:
        answers = loaded.answers(kind)
    except UsageError as error:  # a task that says nothing of it, and reads no pictures
        assert not hasattr(loaded.tasks[kind], "answers") and "nothing can be asked of it" in str(error)
        return
    for reads in dict.fromkeys(answer.reads for answer in answers if "+" not in answer.reads):
        (found,) = loaded.predict(files / GIVES[reads], task=kind, steps=3, batch_size=1)
        assert "error" not in found, found
        assert json.loads(json.dumps(found)) == found and len(found) > 1


def test_the_answer_is_the_models(run: tuple[Path, Any, Any], loaded: Any, files: Path) -> None:
    _, experiment, state = run
    vit = loaded.tasks["vit"]
    found = loaded.predict([files / "picture.png"], task="vit", top=9)[0]["classes"]
    pixels = vit.images.part((16, 16)).make(
        vit.images.read({"id": "x", "image": (files / "picture.png").read_bytes()}), np.random.default_rng(0), False
    )["image"]
    wanted = jax.nn.softmax(vit.logits(experiment.program.model(state), pixels[None]))[0]
    names = vit.labels.classes
    assert sorted(found) == sorted(names)
    np.testing.assert_allclose([found[name] for name in names], wanted, atol=1e-6)


def test_names_come_from_the_workdir_and_not_from_the_data(run: tuple[Path, Any, Any], tmp_path: Path) -> None:
    kept = json.loads((run[0] / "from_data.json").read_text(encoding="utf-8"))
    assert len(kept["tasks.vit.labels.classes"]) == 9 and kept["tasks.ctc.transcripts.alphabet"].startswith(" ")
    config = tiny.plain("vit", tasks__vit__source="folder:/nowhere", tasks__vit__labels=dict(count=9))
    used.workdir(tmp_path, config, learned=False)
    (tmp_path / "from_data.json").write_text(json.dumps({"tasks.vit.labels.classes": list("abcdefghi")}))
    found = unimodal.load(tmp_path).predict(np.zeros((20, 20, 3), np.uint8))[0]
    assert found["class"] in "abcdefghi"


@pytest.mark.parametrize("length", [3, 9, 10, 16, 17, 40])
def test_windows_of_a_recording_are_joined_without_a_seam(length: int) -> None:
    """Windows of ten frames, one every six, of a known sequence: all of it comes back, each frame once."""
    from unimodal.answers.transcripts import joined_frames

    whole, scores = np.arange(length), np.random.default_rng(0).random((length, 3))
    starts = range(0, max(1, length - 10 + 6), 6)
    parts = []
    for start in starts:
        path, frames = whole[start : start + 10], min(10, length - start)
        padded = dict(
            path=np.pad(path, (0, 10 - frames)),
            log_probabilities=np.pad(scores[start : start + 10], ((0, 10 - frames), (0, 0))),
        )
        parts.append({**padded, "frames": np.int32(frames), "likeliest": np.float32(-frames)})
    found = joined_frames(parts, 6)
    np.testing.assert_array_equal(found["path"], whole)
    np.testing.assert_array_equal(found["log_probabilities"], scores)
    assert found["frames"] == length
    parts[-1]["likeliest"] = np.float32(np.nan)
    assert np.isnan(joined_frames(parts, 6)["likeliest"])


def test_a_long_recording_is_heard_to_its_end(loaded: Any) -> None:
    """In windows: their samples are those of the recording, and the transcript is that of all their frames."""
    rate, (answer, *_) = 16_000, loaded.answers("ctc")
    audio = np.random.default_rng(0).standard_normal(6 * rate).astype(np.float32)
    record = {"id": "x", "audio": audio, "rate": rate}
    rows, task = answer.rows(record), loaded.tasks["ctc"]
    normal = task.sounds.read(record)
    size, shift = task.sounds.samples, (len(normal) - int(rows[-1]["length"])) // (len(rows) - 1)
    assert len(rows) > 2 and shift < size and [int(row["length"]) for row in rows[:-1]] == [size] * (len(rows) - 1)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row["audio"][: row["length"]], normal[i * shift : i * shift + size])
    whole = loaded.predict(record, task="ctc", batch_size=2)[0]["transcript"]
    parts = [
        {
            k: np.asarray(v)[0]
            for k, v in jax.jit(answer.predict)(loaded.model, {n: np.asarray(a)[None] for n, a in row.items()}).items()
        }
        for row in rows
    ]
    assert answer.say(answer.join(parts)) == {"transcript": whole}


def test_classes_by_their_names_alone(loaded: Any, files: Path) -> None:
    asked: dict[str, Any] = dict(task="clip", classes=("a cat", "a dog", "a car"))
    (found,) = loaded.predict(files / "picture.png", **asked)
    image = loaded.embed(files / "picture.png", task="clip")
    texts = np.concatenate([loaded.embed(name, task="clip") for name in asked["classes"]])
    wanted = jax.nn.softmax(loaded.model.heads["clip"]["temperature"](image @ texts.T))[0]
    np.testing.assert_allclose([found["classes"][name] for name in asked["classes"]], wanted, atol=1e-5)
    with pytest.raises(UsageError, match="at least two different classes"):
        loaded.predict(files / "picture.png", task="clip", classes=("cat",))


def test_a_question_that_comes_again_is_compiled_once(loaded: Any, files: Path) -> None:
    ask = lambda classes: loaded.predict(files / "picture.png", task="clip", classes=classes)  # noqa: E731
    assert ask(["a cat", "a dog"]) == ask(("a cat", "a dog"))  # a list is the same question
    asked = Asked(classes=("a cat", "a dog"))
    asking = loaded.asking(asked, "clip")
    assert asking is loaded.asking(asked, "clip") and asking is not loaded.asking(asked, "clip", batch_size=4)
    (compiled,) = asking._compiled.values()
    assert compiled[0]._cache_size() == 1
    with pytest.raises(UsageError, match="classes must be several names, but is 'cat'"):
        ask("cat")


def test_an_average_on_request(run: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, experiment, _ = run
    assert unimodal.load(folder).averaged and not unimodal.load(folder, ema=False).averaged
    plain = tmp_path / "plain"
    used.workdir(plain, tiny.plain("vit"))
    with pytest.raises(UsageError, match="kept no average"):
        unimodal.load(plain, ema=True)


def test_the_step_of_a_model_is_that_of_its_weights(tmp_path: Path) -> None:
    config = tiny.plain("vit")
    _, state = used.workdir(tmp_path, config, learned=False)
    later = jax.tree.map(lambda x: x + 1, state.parameters)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(replace(state, step=state.step + 3, parameters=later), {})
    zero, three = (unimodal.load(tmp_path, step=step) for step in (0, None))
    assert (zero.step, three.step) == (0, 3)
    at = lambda loaded: jax.tree.leaves(nnx.state(loaded.model, nnx.Param))[0]  # noqa: E731
    np.testing.assert_array_equal(at(zero) + 1, at(three))


@pytest.mark.parametrize("task", ["gpt", "dalle"])
def test_a_sampled_answer_depends_on_its_question_alone(loaded: Any, task: str) -> None:
    options: dict[str, Any] = dict(task=task, temperature=0.9, seed=7, steps=8)
    what = "continuation" if task == "gpt" else "picture"
    together = [found[what] for found in loaded.predict(["a blue star", "a red heart", "a blue star"], **options)]
    assert together[0] == together[2] != together[1]
    assert [together[1]] == [found[what] for found in loaded.predict("a red heart", **options)]


def test_what_cannot_be_loaded(tmp_path: Path, run: tuple[Path, Any, Any]) -> None:
    for path, message in ((tmp_path, "no config.json"), (tmp_path / "gone", "not a directory")):
        with pytest.raises(UsageError, match=message):
            unimodal.load(path)
    shutil.copy(run[0] / "config.json", tmp_path)
    with pytest.raises(UsageError, match="mesh has no axis 'tensr'; did you mean tensor"):
        unimodal.load(tmp_path, mesh=dict(tensr=2))
    with pytest.raises(UsageError, match="has no checkpoint: train there first"):
        unimodal.load(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint of step 7, only of 0"):
        unimodal.load(run[0], step=7)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_batch_is_what_the_mesh_divides(count: int) -> None:
    double = Answer("class", "text", lambda _: {}, lambda model, batch: {"x": 2 * batch["x"]}, dict)
    mesh = make_mesh(data=3)
    asking = Asking(
        SimpleNamespace(tasks={"a": None}, answers=lambda *_: [double], model=None, mesh=mesh), batch_size=5
    )
    found = asking.run(double, [{"x": np.asarray(i, np.float32)} for i in range(count)])
    assert [float(row["x"]) for row in found] == [2.0 * i for i in range(count)]


def test_a_name_that_stands_twice_has_the_likelier_probability() -> None:
    # As ImageNet's labels have "crane" twice, and as bytes that cannot be seen are all a dot.
    told = ranked(["crane", "crane", "dog"], np.array([0.6, 0.1, 0.3]), 3)
    assert told == {"class": "crane", "probability": 0.6, "classes": {"crane": 0.6, "dog": 0.3}}
    unused: Any = None  # neither a row nor logits are made here
    asked: Any = guessed(unused, "ids", 1, unused, Asked(), decode=str, surface="aa·".__getitem__)
    found = {
        "ids": np.array([1]),
        "real": np.array([1]),
        "chance": np.array([[0.7, 0.2, 0.1]]),
        "best": np.array([[0, 1, 2]]),
    }
    assert asked.say(found)["masked"] == [{"a": 0.7, "·": 0.1}]


def test_rows_that_cannot_be_read_are_errors_and_others_go_on(loaded: Any, files: Path) -> None:
    inputs = [files / "broken.png", files / "gone.png", files / "picture.png", files / "sound.ogg", " "]
    found = loaded.predict(inputs, task="vit", batch_size=2)
    assert [row["id"] for row in found] == [str(i) for i in inputs]
    wanted = ["not an image", "cannot be read: No such file", "", "reads image, not sound", "reads image, not text"]
    for row, message in zip(found, wanted, strict=True):
        assert message in row.get("error", "") and ("class" in row) == (not message)
    assert loaded.predict("  ", task="sentence")[0]["error"] == "the text is empty"
    assert "say which, --task=" in loaded.predict("hello")[0]["error"]
    with pytest.raises(UsageError, match="no task 'vti'; did you mean vit"):
        loaded.predict("hello", task="vti")
    with pytest.raises(UsageError, match="not an image"):
        loaded.embed(files / "broken.png", task="vit")


def test_inputs_of_a_command_line(files: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    words = [str(files), str(files / "*.png"), "some words", "embedded:emoji", str(tmp_path / "rows.jsonl"), "gone.png"]
    found = list(entries(words))
    count = len(open_source("embedded:emoji", "validation"))
    assert len(found) == 4 + 2 + 1 + count + 2 + 1
    assert found[6].read()["text"] == "some words" and found[-2].read()["text"] == "b"
    long = "some words " * 40  # longer than the name of a file may be
    assert [entry.read()["text"] for entry in entries([long, "a" * 300])] == [long, "a" * 300]
    lines = SimpleNamespace(buffer=io.BytesIO("ein Satz ü\r\n".encode() + b"caf\xe9\nmore"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", lines)
        one, bad, last = entries(["-"])
    assert (one.read()["text"], last.read()["text"]) == ("ein Satz ü", "more")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 3\)"):  # and the others go on
        bad.read()
    (empty,) = entries([""])  # and not the folder that it is run in
    assert empty.read()["text"] == ""
    with pytest.raises(UsageError, match="no file is called"):
        list(entries([str(tmp_path / "*.png")]))
    with pytest.raises(UsageError, match="has no pictures"):
        (tmp_path / "empty").mkdir()
        list(entries([str(tmp_path / "empty")]))


def test_predict_goes_on_where_it_was_killed(run: tuple[Path, Any, Any], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    command = ["unimodal", "predict", str(run[0]), "--task=vit", "--out", "", "embedded:emoji", "--batch=64"]
    command[4:6] = [f"--out={out}"]
    assert main(command) == 0
    whole = out.read_text(encoding="utf-8")
    assert whole.count("\n") == len(open_source("embedded:emoji", "validation"))
    assert main(command) == 2 and "is there already, and whole" in capsys.readouterr().err
    # As a kill leaves it: half of a line at the end, and the mark beside it.
    half = whole[: len(whole) // 2]
    out.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unimodal.command.use.answered", lambda *_: iter(()))
        patch.setattr("unimodal.use.output.Output.finish", lambda _: None)
        assert main(command) == 0
    out.write_text(half, encoding="utf-8")
    assert main(command) == 0 and "going on" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == whole
    open_output(str(tmp_path / "other.jsonl"), {})
    with pytest.raises(UsageError, match="another model or other flags"):
        open_output(str(tmp_path / "other.jsonl"), {"task": "x"})


def test_two_commands_do_not_write_one_file_of_answers(tmp_path: Path) -> None:
    file, rows = str(tmp_path / "out.jsonl"), [{"id": str(i)} for i in range(4)]
    early = open_output(file, {})
    first = open_output(file, {})
    writing: Any = first.write(rows)
    next(writing)
    with pytest.raises(UsageError, match="another process writes"):
        open_output(file, {})
    with pytest.raises(UsageError, match="another process writes"):
        next(iter(early.write(rows)))
    next(writing)
    writing.close()  # as a kill does
    with pytest.raises(UsageError, match="has written .* meanwhile; give the command again"):
        next(iter(early.write(rows)))
    assert open_output(file, {}).done == ("0", "1")


def test_a_command_that_goes_on_counts_what_was_answered_before(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["unimodal", "predict", "run", "a", "b", f"--out={tmp_path / 'out.jsonl'}"]
    for name in ("loaded_of", "Asking"):
        monkeypatch.setattr(f"unimodal.command.use.{name}", lambda *_: None)
    monkeypatch.setattr("unimodal.command.use.answered", lambda *_: iter([{"id": "a", "class": "x"}]))
    with monkeypatch.context() as patch:  # as a kill leaves it
        patch.setattr("unimodal.use.output.Output.finish", lambda _: None)
        assert main(words) == 0
    monkeypatch.setattr("unimodal.command.use.answered", lambda *_: iter([{"id": "b", "error": "why"}]))
    assert main(words) == 0  # one of the two was answered
    assert "1 of 2 inputs could not be answered" in capsys.readouterr().err


def test_rows_read_back_whatever_their_names_hold(tmp_path: Path, capsys: Any) -> None:
    # Separators that str.splitlines knows and JSON leaves alone, and a file name that is not UTF-8.
    names = ["a\u2028b", "c\u0085d", "e\u2029f", "g\udcff.png"]
    rows: list[Any] = [{"id": name, "embedding": [float(i)], "map": {name: 1}} for i, name in enumerate(names)]
    out = open_output(str(tmp_path / "out.jsonl"), {})
    assert list(out.write(rows)) == rows and rows_of(out.path) == rows
    assert open_output(str(tmp_path / "out.jsonl"), {}).done == tuple(names)
    to_numpy(out.path, tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), [[0], [1], [2], [3]])
    without_embeddings(out.path)
    assert rows_of(out.path) == [{"id": row["id"], "map": row["map"]} for row in rows]
    assert list(printed(rows)) == rows
    assert [json.loads(line) for line in capsys.readouterr().out.removesuffix("\n").split("\n")] == rows
    index = append(tmp_path / "index\udcff", rows, {"model": "m\udcff"})
    assert [open_index(index.folder).row(i)["id"] for i in range(4)] == names
    assert open_index(index.folder).made_by == {"model": "m\udcff"}
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    table = open_output(str(tmp_path / "out.parquet"), {})
    list(table.write(rows))
    table.finish()
    found = parquet.read_table(table.final).to_pydict()
    assert found["id"] == [*names[:3], "g\\udcff.png"] and json.loads(found["map"][3]) == {names[3]: 1}
    # A text without tokens stands beside one with some, and beside one that could not be read.
    table = open_output(str(tmp_path / "tokens.parquet"), {})
    list(table.write([{"id": "a", "tokens": [{"token": "b"}]}, {"id": "c", "tokens": []}, {"id": "d", "error": "e"}]))
    table.finish()
    assert parquet.read_table(table.final).to_pydict()["tokens"] == ['[{"token": "b"}]', "[]", None]


def test_errors_of_the_command(run: tuple[Path, Any, Any], tmp_path: Path, capsys: Any) -> None:
    for words, message in (
        (["predict", str(run[0])], "usage: unimodal predict WORKDIR_OR_CHECKPOINT INPUT…"),
        (["predict", str(tmp_path), "hello"], "no config.json"),
        (["predict", str(run[0]), "hello", "--tsak=gpt"], "did you mean task"),
        (["predict", str(run[0]), "hello", "--task=gpt", "--top=x"], "--top must be a whole number"),
        (["predict", str(run[0]), "hello", "--task=gpt", "--out=a.txt"], "should end in .jsonl or .parquet"),
        (["predict", str(run[0]), "hello", "--task=gpt", "--mesh=data:2"], "should be as data=2,tensor=4"),
    ):
        assert main(["unimodal", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["unimodal", "predict", str(run[0]), "hello", "--task=vit"]) == 2
    captured = capsys.readouterr()
    assert "reads image, not text" in captured.out and "1 of 1 inputs could not be answered" in captured.err
    assert main(["unimodal", "predict", "--help"]) == 0 and "--classes=A,B,C" in capsys.readouterr().out


def test_the_commands_of_the_page(run: tuple[Path, Any, Any], files: Path, tmp_path: Path, monkeypatch: Any) -> None:
    page = (tiny.ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for block in page.split("```sh\n")[1:] for line in block.split("```")[0].splitlines()]
    assert len(commands) >= 11
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "all").symlink_to(run[0])
    (tmp_path / "photos").mkdir()
    for name, target in (("picture.png", "photo.png"), ("picture.png", "photos/a.png"), ("sound.ogg", "sound.ogg")):
        shutil.copy(files / name, tmp_path / target)
    monkeypatch.chdir(tmp_path)
    for words in commands:
        assert main(words) == 0, words
    assert json.loads((tmp_path / "answers.jsonl").read_text())["id"] == "photos/a.png"


def test_weights_that_are_no_numbers_are_one_line(tmp_path: Path) -> None:
    """A text written with NaN would read like any other, as every id is some id."""
    target = Path(shutil.copytree(REFERENCES / "gpt2", tmp_path / "gpt2"))
    tensors = {name: np.array(tensor.read()) for name, tensor in interop_files.open_source(target).tensors.items()}
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    assert unimodal.load(target).tasks
    tensors[name][0, 0] = np.nan
    shapes = {key: (value.shape, value.dtype) for key, value in tensors.items()}
    interop_files.write_file(target / interop_files.SINGLE, shapes, tensors.values())
    with pytest.raises(
        UsageError, match=r"layers\.mlp\.up\.kernel has values that are not finite, so nothing can be asked"
    ):
        unimodal.load(target)
