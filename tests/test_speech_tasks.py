"""The tasks on speech: what is skipped and counted, what a collapse looks like, what is scored and shown."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
import tiny
from quick import quick

from unimodal import data
from unimodal.data.blocks.spectrograms import blanked
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Shown
from unimodal.objectives import as_scalars

rng = np.random.default_rng(0)


def task_and_model(kind: str, **fields: Any) -> tuple[Any, Any]:
    """A task, and its model as shapes."""
    config = tiny.plain(kind, **{f"tasks__{kind}__{field}": value for field, value in fields.items()})
    experiment = tiny.build(config)
    return experiment.tasks[0], experiment.model


def weights(kind: str, **fields: Any) -> tuple[Any, Any]:
    """A task, and its model with weights."""
    config = tiny.plain(kind, **{f"tasks__{kind}__{field}": value for field, value in fields.items()})
    experiment = tiny.build(config)
    return experiment.tasks[0], quick(experiment.program.make_model)(jax.random.key(0))


def wav(seconds: float, rate: int = 16_000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    sound = 0.1 * rng.standard_normal((int(seconds * rate), channels))
    soundfile.write(out, sound, rate, format="WAV")
    return out.getvalue()


def score(task: Any, rows: Mapping[str, Any]) -> dict[str, float]:
    """What the task's evaluation makes of the rows of one batch."""
    tally = task.evaluations()[task.name].tally()
    tally.add({"index": np.arange(len(next(iter(rows.values())))), **rows})
    return tally.score()


def recordings(folder: Path, train: Mapping[str, Any], validation: Mapping[str, Any] | None = None) -> str:
    """A source of records {id: (audio, text)}."""
    folder.mkdir(exist_ok=True)
    for split, records in (("train", train), ("validation", validation or train)):
        made = [{"id": name, "audio": audio, "text": text} for name, (audio, text) in records.items()]
        data.write_array_record(folder / f"{split}.array_record", made)
    return f"array_record:{folder}"


# ---- wav2vec 2.0 ---------------------------------------------------------------------------------------------------


def test_a_forced_collapse_is_flagged() -> None:
    task, model = weights("wav2vec2", diversity=0.0)
    dataset = task.inputs(model).dataset("validation")
    batch = {k: np.stack([dataset[i][k] for i in range(8)]) for k in task.inputs(model).spec}
    predict = quick(task.predict)
    free = score(task, jax.device_get(predict(model, batch)))
    assert free["code_perplexity"] > 1.5

    scores = model.heads["wav2vec2"]["quantiser"].scores
    scores.kernel.set_value(0.0 * scores.kernel.get_value())
    scores.bias.set_value(scores.bias.get_value().at[:, 3].set(9.0))
    forced = score(task, jax.device_get(predict(model, batch)))
    assert forced["code_perplexity"] == pytest.approx(1.0)
    assert forced["collapsed"] == 1.0
    assert forced["value"] == 0.0  # nothing to tell apart is nothing told apart


@pytest.mark.parametrize(("codes", "collapsed"), [(16, 0.0), (4, 0.0), (3, 1.0), (1, 1.0)])
def test_the_floor(codes: int, collapsed: float) -> None:
    task, _ = task_and_model("wav2vec2", codes=16)
    assert task.perplexity_floor == 4.0
    used = np.zeros((5, 2, 16))
    used[:, 0, :codes] = 7.0  # one codebook below the floor is enough, whatever the other does
    used[:, 1, :] = 7.0
    found = score(task, {"used": used, "correct": np.ones(5), "frames": np.full(5, 2.0)})
    assert found["collapsed"] == collapsed
    assert found["value"] == 0.5


def test_too_short_for_a_frame_or_a_span_is_counted(tmp_path: Path) -> None:
    good = {"good": (wav(1), ""), "other": (wav(1), "")}
    source = recordings(tmp_path, {"empty": (wav(0), ""), "tiny": (wav(0.01), ""), **good})
    task, model = weights("wav2vec2", source=source)
    dataset = task.inputs(model).dataset("train")
    batch = {k: np.stack([dataset[i][k] for i in range(3)]) for k in task.inputs(model).spec}
    assert batch["length"].tolist() == [0, 160, 4800]
    loss, metrics = quick(lambda m, b: as_scalars(*task.loss(m, b, key=jax.random.key(0), step=np.int32(0))))(
        model, batch
    )
    assert metrics["skipped"] == 2
    assert np.isfinite(loss)


# ---- CTC -----------------------------------------------------------------------------------------------------------


def test_alphabet_of_the_embedded_speech() -> None:
    task, model = task_and_model("ctc")
    assert task.letters.characters == " -абвгдежзийклмнопрстуфхцчшщъыьэюяё"
    spec = task.inputs(model).spec
    assert spec["text"].high == task.letters.classes == 36
    assert tiny.plain("ctc")["tasks"]["ctc"]["sounds"]["segments"] == "phrases"
    value, what = task.evaluations()["ctc"].baseline({})
    assert what == "the best constant answer" and 0.7 < value < 1.0


def test_the_constant_answer_is_asked_of_the_recordings_that_are_scored(tmp_path: Path) -> None:
    held_out = {"a": (wav(1), "да"), "long": (wav(3), "нет нет"), "broken": (b"no sound", "да да")}
    source = recordings(tmp_path, {"a": (wav(1), "дай"), "b": (wav(3), "да")}, held_out)
    task, _ = task_and_model("ctc", source=f"{source}?bad=0.5", sounds__segments="", sounds__seconds=2.0)
    assert task.evaluations()["ctc"].baseline({})[0] == pytest.approx(0.5)  # `дай` for `да` alone


def test_phrases_lie_where_their_words_are_spoken() -> None:
    task, model = task_and_model("ctc")
    dataset = task.inputs(model).dataset("validation")
    first = dataset[0]
    assert task.letters.decode(first["text"]) == "мальчик"
    assert first["length"] == 16 * (1132 - 362)
    assert dataset.source[0]["id"] == "ru_0011/362"


def test_what_has_no_alignment_is_skipped_and_counted(tmp_path: Path) -> None:
    records = {
        "good": (wav(1), "да"),
        "long": (wav(3), "да"),
        "empty": (wav(0), "да"),
        "dense": (wav(0.1), "да да да да"),  # 11 characters in 5 frames
        "wordy": (wav(1), "д" * 50),
        "strange": (wav(1), "да xyz"),
        "more": (wav(1), "да"),
        "and more": (wav(1), "да"),
    }
    source = recordings(tmp_path, records, {"good": (wav(1), "да")})
    task, model = weights("ctc", source=source, sounds__segments="", transcripts__alphabet=" ад")
    dataset = task.inputs(model).dataset("train")
    batch = {k: np.stack([dataset[i][k] for i in range(6)]) for k in task.inputs(model).spec}
    assert batch["length"].tolist() == [16000, 0, 0, 1600, 0, 16000]
    run = quick(lambda m, b: as_scalars(*task.loss(m, b, key=jax.random.key(0), step=np.int32(0))))
    loss, metrics = run(model, batch)
    assert metrics["skipped"] == 4
    assert metrics["unknown_characters"] == 3
    assert np.isfinite(loss)
    # What the alphabet lacks is left out of the labels, and the rest closes up.
    batch["text"][5] = np.zeros(48)
    batch["text"][5, :3] = task.letters.encode("да ")
    again, metrics = run(model, batch)
    assert metrics["unknown_characters"] == 0
    assert again == loss


def test_what_will_be_skipped_is_said_before_the_first_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {f"good{i}": (wav(1), "да") for i in range(5)}
    bad = {
        "long": (wav(2.5, rate=8_000), "да"),  # 40,000 samples at 16 kHz, where 2.4 s have 38,400
        "dense": (wav(0.1), "да да да да"),
        "double": (
            wav(0.0125 * 5),
            "даад",
        ),  # 5 blocks of 200 samples are 3 frames; "аа" needs one more than its letters
        "wordy": (wav(1), "д" * 49),
    }
    source = recordings(
        tmp_path / "half", {**good, **bad}, {**good, "late": (wav(3), "да"), "short": (wav(0.1), "д" * 9)}
    )
    task, model = task_and_model("ctc", source=source, sounds__segments="", transcripts__alphabet=" ад")
    task.inputs(model).dataset("train")
    assert [record.getMessage() for record in caplog.records] == [
        f"tasks.ctc, {source} train: 4 of 9 examples will be skipped: 2 too short for their transcript, "
        "1 longer than sounds.seconds=2.4, 1 with more than transcripts.characters=48; "
        "sounds.seconds=3 has room for all",
        f"tasks.ctc, {source} validation: 1 of 7 examples will be left out of the score: "
        "1 longer than sounds.seconds=2.4; sounds.seconds=3 has room for all",
    ]
    # Nothing is said where all fit, and most examples must.
    caplog.clear()
    source = recordings(tmp_path / "all", good)
    task, model = task_and_model("ctc", source=source, sounds__segments="", transcripts__alphabet=" ад")
    task.inputs(model).dataset("train")
    assert not caplog.records
    source = recordings(tmp_path / "few", {"good": good["good0"], "long": bad["long"], "later": bad["long"]}, good)
    task, model = task_and_model("ctc", source=source, sounds__segments="", transcripts__alphabet=" ад")
    with pytest.raises(UsageError, match="train: 2 of 3 examples will be skipped: 2 longer than sounds.seconds=2.4"):
        task.inputs(model).dataset("train")
    task, model = task_and_model("wav2vec2", source=recordings(tmp_path / "short", {"a": (wav(0.05), "")}))
    with pytest.raises(UsageError, match="1 of 1 examples will be skipped: 1 of less than span=3 frames"):
        task.inputs(model).dataset("train")


def test_transcripts_of_validation_have_room(tmp_path: Path) -> None:
    source = recordings(tmp_path, {"a": (wav(1), "да")}, {"b": (wav(1), "д" * 50)})
    task, model = task_and_model("ctc", source=source, sounds__segments="")
    with pytest.raises(UsageError, match=r"validation: a transcript of 50 characters, where .*characters=48"):
        task.inputs(model).dataset("train")


def test_bad_transcripts_are_one_line(tmp_path: Path) -> None:
    source = recordings(tmp_path, {"a": (wav(1), "да")}, {"b": (wav(1), "д" * 50)})
    task, model = task_and_model("ctc", source=source, sounds__segments="")
    with pytest.raises(UsageError, match="b: a transcript of 50 characters, where tasks.ctc.transcripts.characters=48"):
        task.inputs(model).dataset("validation")[0]
    with pytest.raises(UsageError, match="record 'a' has no column 'words' for a transcript; it has audio, text"):
        task_and_model("ctc", source=source, sounds__segments="", transcripts__column="words")
    with pytest.raises(UsageError, match="a: no marks under 'words'; the record has audio, id, text"):
        task_and_model("ctc", source=source, sounds__segments="words")
    with pytest.raises(UsageError, match="the first 9 records were asked for, of 1"):
        few, model = task_and_model("ctc", source=source, sounds__segments="", labelled=9)
        few.inputs(model).dataset("train")


def test_transcripts_are_decoded_scored_and_shown() -> None:
    task, model = task_and_model("ctc", beam=4)
    letters, said = task.letters, ["кто там", "я"]
    text = np.zeros((2, 48), np.int32)
    path = np.zeros((2, 60), np.int32)
    for i, sentence in enumerate(said):
        ids = letters.encode(sentence)
        text[i, : len(ids)] = ids
        path[i, : 2 * len(ids) : 2] = ids  # a blank after each character
    path[1, 40:] = letters.encode("й")[0]  # behind the last frame
    frames = np.array([60, 40])
    table = np.log(np.full((2, 60, letters.classes), 1e-3))
    np.put_along_axis(table, path[:, :, None], 0.0, axis=2)
    predictions = {"path": path, "frames": frames, "text": text, "log_probabilities": table, "likeliest": np.zeros(2)}
    found = score(task, predictions)
    assert found["value"] == found["word_error_rate"] == found["beam_word_error_rate"] == 0.0
    path[0, 0] = 0  # the first letter unheard: one of eight characters, one of three words
    found = score(task, predictions)
    assert found["value"] == pytest.approx(1 / 8) and found["word_error_rate"] == pytest.approx(1 / 3)
    assert found["beam_character_error_rate"] == 0.0  # whose table still has it
    text[1, 0] = letters.classes  # a character that the alphabet lacks cannot be heard
    assert score(task, predictions)["value"] == pytest.approx(2 / 8)
    assert score(task, predictions)["unknown_characters"] == 1

    batch = {"audio": np.ones((2, 100), np.float32), "length": np.array([100, 50])}
    assert np.isnan(score(task, {**predictions, "likeliest": np.array([0.0, np.nan])})["value"])
    cut = score(task, {**predictions, "frames": np.array([60, 0])})  # a recording that does not fit is not judged
    assert cut["left_out"] == 1 and cut["value"] == pytest.approx(1 / 7)

    shown = task.evaluations()[task.name].samples(model, Shown(np.arange(2), batch, predictions, None))
    assert [(s.output, s.truth, len(s.waveform)) for s in shown] == [("кто там", "кто там", 100), ("я", "\ufffd", 50)]


# ---- Classification ------------------------------------------------------------------------------------------------


def test_phones_and_their_stretches() -> None:
    task, model = task_and_model("audio_classifier")
    names = task.labels.names(task.source, "phones")
    assert task.classes == len(names) == 51 and "pau" in names
    dataset = task.inputs(model).dataset("validation")
    assert len(dataset) == 597
    seen = task.spectrograms(model).samples
    assert seen == 23 * 160 + 400
    whole = data.decode_audio(data.open_source("embedded:speech", "validation")[0]["audio"], 16_000)
    start, end, phone = data.marks(data.first(data.open_source("embedded:speech", "validation"), 1), "phones")[0][7]
    first = 16 * (start + end) // 2 - seen // 2
    wanted = data.kaldi_log_mel(whole[first : first + seen], 16_000, bins=16)
    np.testing.assert_allclose(dataset[7]["spectrogram"][:, :, 0], (wanted.T + 4.27) / 9.14, atol=1e-6)
    assert names[dataset[7]["label"]] == phone
    value, what = task.evaluations()["audio_classifier"].baseline({})
    assert what == "majority class" and 0.03 < value < 0.15


def test_stretches_at_the_ends_are_filled_with_silence() -> None:
    records = [{"id": "a", "sound": np.arange(1.0, 101.0), "marks": [[0, 10, "x"], [90, 100, "y"]]}]
    decode = lambda record: {"id": record["id"], "audio": record["sound"]}  # noqa: E731
    found = data.segments(records, decode, "marks", 1000, window=30)  # pyright: ignore[reportArgumentType]
    assert [r["text"] for r in (found[0], found[1])] == ["x", "y"]
    np.testing.assert_array_equal(found[0]["audio"], [0] * 10 + list(range(1, 21)))
    np.testing.assert_array_equal(found[1]["audio"], [*range(81, 101), *[0] * 10])
    np.testing.assert_array_equal(data.segments(records, decode, "marks", 1000)[1]["audio"], np.arange(91, 101))  # pyright: ignore


def test_blanks_are_stripes_of_at_most_that_size() -> None:
    values = np.ones((20, 10))
    for seed in range(20):
        made = blanked(values, (6, 3), np.random.default_rng(seed))
        frames, bins = (made == 0).all(axis=1).sum(), (made == 0).all(axis=0).sum()
        assert frames <= 6 and bins <= 3
        assert (made == 0).sum() == frames * 10 + bins * 20 - frames * bins
    assert blanked(values, (0, 0), rng) is values


def test_a_class_that_is_not_among_those_configured() -> None:
    task, model = task_and_model("audio_classifier", labels__classes=("a", "pau"))
    with pytest.raises(UsageError, match="labels.classes lacks 'aa', .* of embedded:speech"):
        list(task.inputs(model).dataset("validation").ordered())


# ---- Bad input -----------------------------------------------------------------------------------------------------


def test_other_rates_and_channels_are_converted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    data.audio._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert data.decode_audio(wav(0.5, 11_025, 2), 16_000).shape == (8000,)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert any("2 channels is averaged" in line for line in said)
    assert any("11025 Hz is resampled to 16000 Hz" in line for line in said)
    assert data.decode_audio(wav(0, 8000), 16_000).shape == (0,)
    assert data.normalize(np.zeros(0, np.float32)).shape == (0,)
