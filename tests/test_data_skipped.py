"""Damaged records are left out, listed and bounded, and nothing else changes; what only looks strange is decoded right."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from unimodal.data import (
    LEDGER,
    Alphabet,
    Budget,
    ByteEncoder,
    Dataset,
    Where,
    cached,
    decode_audio,
    decode_image,
    eval_batches,
    text_windows,
    train_batches,
)
from unimodal.data.audio import sound_length
from unimodal.data.blocks import Images, Labels, Pixels, Sounds, Texts, columns
from unimodal.data.blocks.pairs import TextPairs, labelled_texts
from unimodal.data.blocks.patches import PatchRows
from unimodal.data.blocks.speech import TranscribedSpeech
from unimodal.data.blocks.transcripts import Transcripts
from unimodal.data.convert import convert
from unimodal.data.filling import Packing
from unimodal.data.pictures import picture_size
from unimodal.data.schemes.csv import cells_of
from unimodal.data.schemes.jsonl import parse
from unimodal.data.sources import open_source, write_array_record
from unimodal.data.spec import STAND_IN
from unimodal.errors import RecordError, UsageError

# What each decoder is given, at random; the long form is UNIMODAL_FUZZ=10000.
FUZZ = int(os.environ.get("UNIMODAL_FUZZ", "200"))


@pytest.fixture(autouse=True)
def ledger() -> Iterator[None]:
    LEDGER.clear()
    yield
    LEDGER.clear()


def saved(array: np.ndarray, form: str, mode: str | None = None, **options: Any) -> bytes:
    out, picture = io.BytesIO(), Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(out, form, **options)
    return out.getvalue()


def strange_pictures(folder: Path) -> dict[str, np.ndarray | str]:
    """Files that people have → their pixels by a reference decoder, or why they cannot be used."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (24, 20, 3), np.uint8)
    deep = rng.integers(0, 65536, (24, 20), np.uint16)
    whole, other = saved(rgb, "PNG"), saved(255 - rgb, "PNG")
    frames = [Image.fromarray(rgb).quantize(200), Image.fromarray(255 - rgb).quantize(200)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    inks = saved(rgb, "JPEG", "CMYK", quality=95)
    files: dict[str, tuple[bytes, np.ndarray | str]] = {
        "truncated.png": (whole[: len(whole) // 2], "not an image"),
        "empty.png": (b"", "not an image"),
        "words.jpg": (b"this is no picture", "not an image"),
        "really_a_png.jpg": (other, 255 - rgb),
        "deep.png": (saved(deep, "PNG"), np.rint(deep / 257)[..., None].repeat(3, 2).astype(np.uint8)),
        "inks.jpg": (inks, np.asarray(Image.open(io.BytesIO(inks)).convert("RGB"))),
        "moving.gif": (moving.getvalue(), np.asarray(frames[0].convert("RGB"))),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: truth for name, (_, truth) in files.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_decoded_right_or_listed(tmp_path: Path) -> None:
    truth = strange_pictures(tmp_path)
    for i in range(193):
        Image.new("RGB", (20, 24), (i, 0, 0)).save(tmp_path / f"plain{i:03}.png")
    uri = f"folder:{tmp_path}?validation=0.1"
    inputs = columns(uri, Images(mean=(0.0,), std=(1.0,)).part((24, 20)))
    LEDGER.list_in(tmp_path / "run" / "skipped.jsonl")
    found: dict[str, np.ndarray] = {}
    for split in ("train", "validation"):
        dataset = inputs.dataset(split)
        stream, clean = dataset.stream(0), len(dataset)
        for i in range(clean):
            example = stream[i]
            found[example["id"]] = example["image"]
    bad = {name for name, pixels in truth.items() if isinstance(pixels, str)}
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text("utf-8").splitlines()]
    assert {line["id"] for line in lines} == bad and len(lines) == len(bad) and bad.isdisjoint(found)
    assert all(line["source"] == uri and line["id"] in line["reason"] for line in lines)
    assert len(found) == 200 - len(bad)
    for name, pixels in truth.items():
        if not isinstance(pixels, str):
            np.testing.assert_allclose(found[name] * 255, pixels, atol=0.01, err_msg=name)


def numbers(count: int, bad: set[int], **options: Any) -> Any:
    def decode(record: dict[str, Any]) -> dict[str, Any]:
        if record["n"] in bad:
            raise RecordError(f"record {record['id']} is damaged")
        return record

    records = [{"id": str(i), "n": i} for i in range(count)]
    where = Where("folder:x?bad=0.2", "train")
    return Dataset(cached(records, decode, where=where, **options), lambda record, rng: {"n": np.int32(record["n"])})


def ids(dataset: Any, steps: int = 25, **options: Any) -> list[str]:
    batches = train_batches(dataset, batch_size=8, seed=3, **options)
    return [str(name) for _ in range(steps) for name in next(batches)["id"]]


def test_all_others_keep_their_places(tmp_path: Path) -> None:
    clean, found = ids(numbers(50, set())), ids(numbers(50, {7, 8, 49}))
    stands_in = {"7": "9", "8": "9", "49": "0"}  # the next one that can be used, and round the end
    assert found == [stands_in.get(name, name) for name in clean]
    LEDGER.clear()
    halves = [ids(numbers(50, {7, 8, 49}), rows=range(first, first + 4)) for first in (0, 4)]
    assert [n for i in range(25) for half in halves for n in half[4 * i : 4 * i + 4]] == found


def test_a_place_that_is_left_out_counts_nothing_in_an_evaluation() -> None:
    batches = list(eval_batches(numbers(20, {3, 19}), batch_size=8))
    weight, n = (np.concatenate([batch[name] for batch in batches]) for name in ("example_weight", "n"))
    assert sorted(n[weight > 0]) == sorted({*range(20)} - {3, 19}) and len(n) == 24
    assert all(set(batch) == {"n", "index", "example_weight"} for batch in batches)
    # A process whose rows of the last batch only fill it up has the same arrays as all others.
    only_fill = eval_batches(numbers(20, {19}), batch_size=8, rows=range(4, 8))[2]
    assert set(only_fill) == set(batches[0]) and not only_fill["example_weight"].any()


def test_the_list_goes_on_where_a_run_does(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    for bad in ({7, 8}, {7, 9}):  # the second time, another one has been damaged
        LEDGER.clear()
        LEDGER.list_in(path)
        ids(numbers(50, bad))
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == sorted({"7", "8", "9"}, key=lambda n: [x["id"] for x in lines].index(n))
    assert LEDGER.report() == f"3 records could not be used and were left out; {path} says which and why"


def test_a_run_that_goes_on_is_not_ended_by_what_it_knew(tmp_path: Path) -> None:
    bad = set(range(7, 400, 10))  # 40: of the first records that are seen again, each known one would be most of them
    for _ in range(2):
        LEDGER.clear()
        LEDGER.list_in(tmp_path / "skipped.jsonl")
        source = numbers(400, bad, budget=Budget(0)).source
        assert [source[i]["n"] for i in range(400)] == [i + (i in bad) for i in range(400)]
    with pytest.raises(UsageError, match="of 400 records cannot be used"):  # what is bad here and now still counts
        numbers(400, set(range(100, 160)), budget=Budget(0)).source[100]


@pytest.mark.parametrize("reader", ["pictures", "speech", "convert"])
def test_what_is_read_ahead_counts_the_good_ones(tmp_path: Path, reader: str) -> None:
    """33 of 100 are bad, of which half may be: no reader takes them for most of what it saw."""
    out = io.BytesIO()
    soundfile.write(out, np.zeros(400, np.float32), 8000, format="WAV")
    (tmp_path / "good.png").write_bytes(saved(np.zeros((8, 8, 3), np.uint8), "PNG"))
    (tmp_path / "good.wav").write_bytes(out.getvalue())
    good, bad = '{"image": "good.png", "audio": "good.wav", "text": "ab"}', "{"
    (tmp_path / "train.jsonl").write_text("\n".join(bad if i % 3 == 2 else good for i in range(100)), "utf-8")
    uri = f"jsonl:{tmp_path}/{{split}}.jsonl?bad=0.5"
    if reader == "pictures":
        shape: dict[str, Any] = dict(patch=4, channels=3, grid=(4, 4), registers=0)
        rows = PatchRows(uri, Images(), Labels(), Packing(row=32), **shape, open_split=lambda s: open_source(uri, s))
        assert rows.grids(open_source(uri, "train"), Where(uri, "train")).count(None) == 33
    elif reader == "speech":
        spoken = Transcripts(characters=4, alphabet=" ab")
        speech = TranscribedSpeech("tasks.ctc", uri, Sounds(rate=8000), spoken, spoken.letters(uri))
        assert list(speech.lengths("train", lambda n: n // 40)).count((0, False)) == 33
    else:
        assert convert(uri, tmp_path / "out") == {"train": 67}
    # Each is listed once, by the name that it has when it is read for an example.
    assert {name for *_, name in LEDGER.found} == {f"train.jsonl:{i + 1}" for i in range(2, 100, 3)}


def test_what_stands_in_for_a_picture_keeps_its_proportions(tmp_path: Path) -> None:
    wide, tall = (saved(np.full(shape, 9, np.uint8), "PNG", compress_level=0) for shape in ((8, 32, 3), (32, 8, 3)))
    records = [{"id": f"{i}", "image": tall, "label": i % 2} for i in range(8)]
    records[3]["image"] = wide[: len(wide) // 2]  # its header is whole
    for split in ("train", "validation"):
        write_array_record(tmp_path / f"{split}.array_record", records)
    uri = f"array_record:{tmp_path}?bad=0.5"
    shape: dict[str, Any] = dict(patch=4, channels=3, grid=(4, 4), registers=0)
    rows = PatchRows(uri, Images(), Labels(), Packing(row=160), **shape, open_split=lambda s: open_source(uri, s))
    row = rows.inputs().dataset("train")[0]
    grids = [tuple(row["place"][row["segment"] == i + 1][0, 2:]) for i in range(8)]
    assert set(grids) == {(8, 2)} and {name for *_, name in LEDGER.found} == {"3"}


def test_too_many_end_the_run_with_the_list(tmp_path: Path) -> None:
    LEDGER.list_in(tmp_path / "skipped.jsonl")
    with pytest.raises(
        UsageError, match=r"train: 11 of 50 records cannot be used, listed in .*; \?bad=0.2 is the share"
    ) as e:
        ids(numbers(50, set(range(20, 40))), prefetch=False)
    assert not isinstance(e.value, RecordError)
    assert len((tmp_path / "skipped.jsonl").read_text("utf-8").splitlines()) == 11
    LEDGER.clear()
    with pytest.raises(UsageError, match="of 10000 records cannot be used"):  # most are: no need to wait for 20 %
        numbers(10_000, set(range(10_000)))[0]
    assert len(LEDGER.found) <= 40


def test_sounds_are_decoded_right_or_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tone = np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000).astype(np.float32) * 0.5
    good = io.BytesIO()
    soundfile.write(good, tone, 16_000, "PCM_16", format="WAV")
    fast = np.sin(np.arange(192_000) * 2 * np.pi * 440 / 192_000).astype(np.float32) * 0.5
    both = np.stack([tone, 0 * tone], axis=1)
    files = {
        "truncated.flac": b"fLaC" + rng.bytes(30),
        "empty.wav": b"",
        "words.mp3": b"this is no sound",
        "wav_as.flac": good.getvalue(),
    }
    for name, (samples, rate, code) in {
        "law.wav": (tone, 16_000, "ULAW"),
        "fast.wav": (fast, 192_000, "PCM_16"),
        "stereo.wav": (both, 16_000, "PCM_16"),
    }.items():
        out = io.BytesIO()
        soundfile.write(out, samples, rate, code, format="WAV")
        files[name] = out.getvalue()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for i in range(93):
        (tmp_path / f"plain{i}.wav").write_bytes(good.getvalue())
    inputs = columns(f"folder:{tmp_path}", Sounds(seconds=1.0, normalize=False).part(random=False))
    found = {}
    for split in ("train", "validation"):
        stream = inputs.dataset(split).stream(0)
        for i in range(len(inputs.dataset(split))):
            example = stream[i]
            found[example["id"]] = example["audio"]
    assert {name for *_, name in LEDGER.found} == {"truncated.flac", "empty.wav", "words.mp3"}
    np.testing.assert_allclose(found["wav_as.flac"], tone, atol=2e-4)
    np.testing.assert_allclose(found["law.wav"], tone, atol=0.02)
    np.testing.assert_allclose(found["fast.wav"][100:-100], tone[100:-100], atol=2e-3)
    np.testing.assert_allclose(found["stereo.wav"], tone / 2, atol=2e-4)


def test_texts_are_read_or_listed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"line {i}"}).encode() for i in range(97)]
    lines += [b'{"text": "\xff\xfe"}', b'{"text": null}', json.dumps({"text": "y" * 10_000_000}).encode()]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    uri, read = f"jsonl:{tmp_path}/t.jsonl", 0
    for split in ("train", "validation"):
        windows = text_windows(Texts().open(uri, split), ByteEncoder().encode, 1 << 20, random=False)
        read += sum(int((windows[i]["ids"] > 0).sum()) for i in range(len(windows)))
    assert {name for *_, name in LEDGER.found} == {"t.jsonl:98", "t.jsonl:99"} and read > 10_000_000


def test_labels_of_rows_that_cannot_be_read(tmp_path: Path) -> None:
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    rows = [f'{{"image": "{i}.png", "label": "{"ab"[i % 2]}"}}' for i in range(40)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(["{", *rows]), "utf-8")
    uri, labels = f"jsonl:{tmp_path}/{{split}}.jsonl", Labels()
    assert (
        labels.names(uri) == ("a", "b")
        and labels.numbers(uri, "train")[0] == -1
        and len(labels.known(uri, "train")) == 40
    )
    inputs = columns(uri, Images().part((8, 8)), labels.part(uri))
    example = inputs.dataset("train")[0]
    assert example[STAND_IN] and example["label"] == 0
    assert inputs.dataset("train")[1].keys() == {"image", "label"}


def test_a_run_says_what_it_left_out(tmp_path: Path) -> None:
    for i in range(30):
        for name in "ab":
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (i, 0, 255 * (name == "a"))).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "a" / "3.png").write_bytes(b"no picture")
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        f"import sys\nsys.path.insert(0, {str(tiny.ROOT / 'tests')!r})\nimport tiny\n"
        "def get_config(source):\n    config = tiny.get_config('vit')\n    config.tasks.vit.source = source\n    return config\n"
    )
    lines = [
        [
            "train",
            f"--config={recipe}:folder:{tmp_path}/photos{more}",
            f"--workdir={tmp_path}/{name}",
            "--config.steps=8",
        ]
        for name, more in (("run", ""), ("strict", "?bad=0.001"))
    ]
    (tmp_path / "scratch").mkdir()
    done, refused = tiny.launches(lines, tmp_path / "scratch", 1)
    assert done[0] == 0, done[2]
    assert f"1 records could not be used and were left out; {tmp_path}/run/skipped.jsonl says which and why" in done[1]
    line = json.loads((tmp_path / "run" / "skipped.jsonl").read_text("utf-8"))
    assert (line["id"], line["split"]) == ("a/3.png", "train") and "not an image" in line["reason"]
    assert refused[0] == 2 and "1 of" in refused[2] and refused[2].count("\n") <= 2
    assert (tmp_path / "strict" / "skipped.jsonl").is_file()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["picture", "sound", "picture header", "sound header", "json", "csv"])
def test_decoders_outlive_any_bytes(kind: str) -> None:
    """Random bytes, and files of each format with some bytes changed, cut or repeated: decoded or refused, never a crash."""
    rng = np.random.default_rng(1)
    pixels, wave = rng.integers(0, 256, (9, 7, 3), np.uint8), rng.standard_normal(400) * 0.1
    seeds: list[bytes] = []
    if kind.startswith("picture"):
        seeds = [saved(pixels, form) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO")]
        seeds.append(saved(pixels, "GIF", "P"))
    elif kind.startswith("sound"):
        for form, code in (
            ("WAV", "ULAW"),
            ("WAV", "PCM_24"),
            ("FLAC", "PCM_16"),
            ("OGG", "VORBIS"),
            ("AIFF", "PCM_16"),
            ("MP3", None),
        ):
            out = io.BytesIO()
            soundfile.write(out, wave, 16_000, code, format=form)
            seeds.append(out.getvalue())
    else:
        seeds = [b'{"text": ["\xc3\xa9", {"a": 1e9}], "b": null}', b'"a ""b""",2,x\r\n']
    decoders: dict[str, Any] = {
        "picture": lambda data: decode_image(data, name="x"),
        "sound": lambda data: decode_audio(data, 16_000, name="x"),
        "picture header": lambda data: picture_size(data, "x"),
        "sound header": lambda data: sound_length(data, 16_000, "x"),
        "json": lambda data: parse(data, "x"),
        "csv": lambda data: cells_of(data, ",", True, "x"),
    }
    outcomes = {"decoded": 0, "refused": 0}
    for i in range(FUZZ):
        data = bytearray(seeds[i % len(seeds)] if i % 5 else rng.bytes(int(rng.integers(0, 300))))
        for _ in range(int(rng.integers(0, 6)) if data else 0):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        if i % 7 == 0:
            data = data[: int(rng.integers(len(data) + 1))]
        try:
            made = decoders[kind](bytes(data))
            outcomes["decoded"] += 1
            assert kind != "picture" or (made.dtype == np.uint8 and made.shape[2] == 3)
            assert "header" not in kind or np.min(made) >= 0
            assert kind != "sound" or (made.dtype == np.float32 and np.isfinite(made).all())
        except RecordError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > FUZZ // 50, outcomes


def test_a_palette_is_made_of_the_pictures_that_can_be_read(tmp_path: Path) -> None:
    for name, bad in (("some", (7,)), ("all", range(40))):
        for split in ("train", "validation"):
            (tmp_path / name / split).mkdir(parents=True)
            for i in range(40):
                Image.new("RGB", (8, 8), (6 * i, 0, 0)).save(tmp_path / name / split / f"{i:02}.png")
        for i in bad:
            (tmp_path / name / "train" / f"{i:02}.png").write_bytes(b"no picture")
    pixels = Pixels(count=4)
    pixels.check(f"folder:{tmp_path}/some")
    assert len(pixels.palette(f"folder:{tmp_path}/some")) == 4
    with pytest.raises(UsageError, match="train: no picture of those that a palette is made of can be read"):
        Pixels(count=4).check(f"folder:{tmp_path}/all")


def test_texts_with_classes_and_pairs_of_texts_are_read_or_listed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"line {i}", "label": "ab"[i % 2], "second": f"other {i}"}) for i in range(60)]
    lines[0], lines[31] = "{", json.dumps({"text": None, "label": "a", "second": "x"})
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), "utf-8")
    uri = f"jsonl:{tmp_path}"
    for limit, count in ((0, 58), (58, 58), (20, 20)):
        made = labelled_texts(uri, Texts(length=16), Labels(), 264, limit=limit).dataset("train")
        assert len(made) == count and made[0].keys() == {"ids", "label"}
    assert len(TextPairs(uri, Texts(column="text"), "second").rows("validation")) == 58
    bad = {"train.jsonl:1", "train.jsonl:32", "validation.jsonl:1", "validation.jsonl:32"}
    assert {name for *_, name in LEDGER.found} == bad


def test_recordings_none_of_which_can_be_read_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"no sound")
    for split in ("train", "validation"):
        rows = [json.dumps({"audio": "x.wav", "text": "a b"})] * 3
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), "utf-8")
    speech = TranscribedSpeech("tasks.ctc", f"jsonl:{tmp_path}", Sounds(), Transcripts(), Alphabet(" ab"))
    with pytest.raises(UsageError, match="tasks.ctc, .* train: none of the recordings looked at can be read"):
        speech.inputs(lambda samples: samples // 320).dataset("train")


def test_marks_of_a_damaged_recording_are_left_out_and_the_next_stand_in(tmp_path: Path) -> None:
    """With its own transcript: the sound of one phrase must not meet the words of another."""
    for i in range(40):
        loud = np.full(16_000, 0.01 * (i + 1), np.float32)
        soundfile.write(tmp_path / f"{i}.wav", loud, 16_000, "FLOAT")
    (tmp_path / "7.wav").write_bytes(b"RIFF" + bytes(40))
    for split in ("train", "validation"):
        marks = [[[0, 400, "a" * (1 + i % 9)], [500, 900, "b"]] for i in range(40)]
        rows = [json.dumps({"audio": f"{i}.wav", "phrases": marks[i]}) for i in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), "utf-8")
    sounds = Sounds(seconds=0.5, segments="phrases", normalize=False)
    speech = TranscribedSpeech("tasks.ctc", f"jsonl:{tmp_path}", sounds, Transcripts(), Alphabet(" ab"))
    assert sum(not fine for _, fine in speech.lengths("train", lambda samples: samples // 320)) == 2
    assert len(speech.scored()) == 78
    examples = speech.inputs(lambda samples: samples // 320).dataset("train").stream(0)
    for example in (examples[i] for i in range(80)):
        number = int(str(example["id"]).split("/")[0].split(":")[-1]) - 1
        assert number != 7
        np.testing.assert_allclose(example["audio"][:10], 0.01 * (number + 1), rtol=1e-6)
        first = str(example["id"]).endswith("/0")
        assert Alphabet(" ab").decode(example["text"]) == ("a" * (1 + number % 9) if first else "b")
    assert {(split, name) for _, split, name in LEDGER.found} == {
        (s, f"{s}.jsonl:8/{start}") for s in ("train", "validation") for start in (0, 500)
    }
    assert all("0x" not in reason for reason in LEDGER.found.values())
