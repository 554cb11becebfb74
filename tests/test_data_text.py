"""Encoding, windows, BERT's masking, packing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unimodal.data import ByteEncoder, fit_length, mask_tokens, pack, packed_rows, text_windows
from unimodal.data.text import window_phases
from unimodal.errors import UsageError

ENCODER = ByteEncoder()
SPECIAL: dict[str, Any] = {"vocab_size": 264, "mask_id": ENCODER.MASK, "first_ordinary_id": 8}


@pytest.mark.parametrize(
    "text",
    ["", "Call me Ishmael.", "Съешь ещё этих мягких булок", "🙂 naïve\n\t\x00", "".join(map(chr, range(1, 700)))],
)
def test_encoding_round_trip(text: str) -> None:
    ids = ENCODER.encode(text)
    assert ids.dtype == np.int32 and ids.shape == (len(text.encode()),)
    assert not ids.size or (ids.min() >= 8 and ids.max() < ENCODER.vocab_size)
    assert ENCODER.decode(ids) == text


def test_decoding_skips_specials_replaces_halves_and_refuses_strangers() -> None:
    specials = [
        ENCODER.CLS,
        ENCODER.BOS,
        *ENCODER.encode("ab"),
        ENCODER.MASK,
        ENCODER.SEP,
        ENCODER.EOS,
        ENCODER.PAD,
        6,
        7,
    ]
    assert ENCODER.decode(specials) == "ab"
    assert ENCODER.decode(ENCODER.encode("é")[:1]) == "\ufffd"
    assert ENCODER.encode("\ud800").tolist() == [ord("?") + 8]
    for stranger in (264, -1):
        with pytest.raises(UsageError, match=f"id {stranger} is not a byte id"):
            ENCODER.decode([stranger])


def test_fitting() -> None:
    ids = np.arange(10, 20, dtype=np.int32)
    assert fit_length(ids, 3).tolist() == [10, 11, 12]
    assert fit_length(ids[:2], 4).tolist() == [10, 11, 0, 0]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 128])
def test_at_every_phase_each_id_is_in_one_window_and_none_is_empty(length: int) -> None:
    for size in range(1, 4 * length + 2):
        count, lowest, highest = window_phases(size, length)
        assert 0 <= lowest <= highest < length
        if size > length:  # as many beginnings as half of all, or more
            assert highest - lowest + 1 >= length // 2
        for phase in range(lowest, highest + 1):
            windows = [range(max(0, i * length - phase), min(size, (i + 1) * length - phase)) for i in range(count)]
            assert [i for window in windows for i in window] == list(range(size)) and all(windows)
        assert size <= length * count < size + 2 * length


@pytest.mark.parametrize(("size", "length"), [(192, 128), (130, 128), (128, 128), (256, 128), (700, 128), (5, 128)])
def test_training_windows_see_every_id_about_equally(size: int, length: int) -> None:
    letters = np.random.default_rng(1).integers(0, 1 << 30, size)
    document: Any = [{"id": "a", "text": "x"}]
    windows = text_windows(document, lambda text: letters, length, random=True, pad_id=-1)
    place, rng, epochs, seen = (
        {int(x): i for i, x in enumerate(letters)},
        np.random.default_rng(0),
        1000,
        np.zeros(size),
    )
    for _ in range(epochs):
        for slot in range(len(windows)):
            ids = windows.transform(windows.source[slot], rng)["ids"]
            real = ids[ids >= 0]
            assert real.size and (ids[real.size :] == -1).all()
            seen[[place[int(x)] for x in real]] += 1
    # An id near the border of two windows is in the one or the other, each drawn for itself: at most a variance of 1/2.
    assert abs(seen / epochs - 1).max() < 5 * (0.5 / epochs) ** 0.5
    assert size > length or (seen == epochs).all()


def test_bytes_go_with_their_ids() -> None:
    def count(text: str) -> np.ndarray:
        return np.arange(len(text.encode()), dtype=np.int32) % 7 + 1

    def counted(text: str) -> tuple[np.ndarray, np.ndarray]:
        return ENCODER.encode(text), count(text)

    for random in (True, False):
        windows = text_windows(DOCUMENTS, pytest.fail, 16, random=random, counted=counted)  # read once, not twice
        row, rng = windows.transform(windows.source[0], np.random.default_rng(0)), None
        start = DOCUMENTS[0]["text"].find(ENCODER.decode(row["ids"]))
        size = int((row["ids"] > 0).sum())
        assert size and not row["bytes"][size:].any() and row["bytes"].dtype == np.int32
        text = windows.source[0]["rows"]
        at = next(i for i in range(100) if (text["bytes"][i : i + size] == row["bytes"][:size]).all())
        assert start >= 0 and rng is None and (text["ids"][at : at + size] == row["ids"][:size]).all()
    packed = packed_rows(DOCUMENTS, ENCODER.encode, 16, count=count)
    total = sum(int(packed[i]["bytes"].sum()) for i in range(len(packed)))
    assert total == count(DOCUMENTS[0]["text"]).sum() + count("xyz").sum()
    last = packed[len(packed) - 1]
    assert (last["bytes"] > 0).tolist() == (last["segment"] > 0).tolist()


def test_masking_is_80_10_10() -> None:
    rng = np.random.default_rng(0)
    ids = np.full(200_000, 20, dtype=np.int32)
    inputs, targets, weights = mask_tokens(ids, rng, **SPECIAL)
    chosen = weights == 1
    assert chosen.sum() == 30_000 and set(np.unique(weights)) == {0.0, 1.0}
    np.testing.assert_array_equal(targets, ids)
    np.testing.assert_array_equal(inputs[~chosen], ids[~chosen])
    masked = (inputs[chosen] == ENCODER.MASK).mean()
    kept = (inputs[chosen] == 20).mean()
    # Three standard deviations of a share over 30,000 draws; a random replacement is the same id 1 time in 256.
    assert abs(masked - 0.8) < 0.007 and abs(kept - (0.1 + 0.1 / 256)) < 0.0053
    replaced = inputs[chosen & (inputs != ENCODER.MASK) & (inputs != 20)]
    assert replaced.min() == 8 and replaced.max() == 263 and len(np.unique(replaced)) == 255


def test_masking_leaves_specials_alone_and_masks_at_least_one() -> None:
    rng = np.random.default_rng(1)
    ids = np.array([5, 30, 31, 4, 0, 0], dtype=np.int32)
    for _ in range(50):
        inputs, _, weights = mask_tokens(ids, rng, **SPECIAL)
        assert weights.sum() == 1 and weights[[0, 3, 4, 5]].sum() == 0
        np.testing.assert_array_equal(inputs[[0, 3, 4, 5]], ids[[0, 3, 4, 5]])
    only = np.array([False, True, False, False, False, False])
    assert mask_tokens(ids, rng, rate=1.0, maskable=only, **SPECIAL)[2].tolist() == [0, 1, 0, 0, 0, 0]
    assert mask_tokens(ids[[0, 3, 4]], rng, **SPECIAL)[2].sum() == 0
    assert mask_tokens(ids, rng, rate=1.0, **SPECIAL)[2].tolist() == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_masking_refuses_a_bad_rate(rate: float) -> None:
    with pytest.raises(UsageError, match=r"mask rate must be in \(0, 1\]"):
        mask_tokens(np.arange(9), np.random.default_rng(0), rate=rate, **SPECIAL)


def test_masking_refuses_a_vocabulary_of_specials() -> None:
    with pytest.raises(UsageError, match="no ordinary ids"):
        mask_tokens(np.arange(9), np.random.default_rng(0), vocab_size=8, mask_id=1, first_ordinary_id=8)


DOCUMENTS: Any = [
    {"id": "long", "text": "abcdefghij" * 10},
    {"id": "empty", "text": ""},
    {"id": "short", "text": "xyz"},
]


def test_fixed_text_windows_cover_every_id_once() -> None:
    windows = text_windows(DOCUMENTS, ENCODER.encode, 16, random=False)
    assert len(windows) == 7 + 1
    assert [windows.source[i]["id"] for i in (0, 1, 7)] == ["long@0", "long@16", "short@0"]
    text = "".join(ENCODER.decode(windows[i]["ids"]) for i in range(len(windows)))
    assert text == DOCUMENTS[0]["text"] + "xyz"
    assert all(windows[i]["ids"].shape == (16,) for i in range(len(windows)))


def test_random_text_windows_follow_length_and_crop_anew() -> None:
    windows = text_windows(DOCUMENTS, ENCODER.encode, 16, random=True)
    assert [windows.source[i]["id"] for i in range(len(windows))] == [f"long#{i}" for i in range(7)] + ["short#0"]
    rng = np.random.default_rng(0)
    for slot in (1, 5):
        crops = {ENCODER.decode(windows.transform(windows.source[slot], rng)["ids"]) for _ in range(40)}
        assert len(crops) > 5 and all(len(crop) == 16 and crop in DOCUMENTS[0]["text"] for crop in crops)
    assert ENCODER.decode(windows.transform(windows.source[7], rng)["ids"]) == "xyz"


def test_text_windows_refuse() -> None:
    with pytest.raises(UsageError, match="window length must be at least 1, found 0"):
        text_windows(DOCUMENTS, ENCODER.encode, 0, random=True)
    with pytest.raises(UsageError, match="record 'long' has no field 'body'"):
        text_windows(DOCUMENTS, ENCODER.encode, 4, random=True, field="body")
    with pytest.raises(UsageError, match="no text: every document is empty"):
        text_windows(DOCUMENTS[1:2], ENCODER.encode, 4, random=True)


def test_packing_keeps_every_document_whole_and_in_its_own_segment() -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(8, 264, size) for size in rng.integers(0, 50, 300)]
    rows = list(pack(documents, 32, open_rows=4))
    pieces: dict[bytes, int] = {}
    for row in rows:
        assert all(array.shape == (32,) and array.dtype == np.int32 for array in row.values())
        segments = row["segment"]
        used = segments > 0
        count = int(segments.max())
        assert count >= 1 and not used[int(used.sum()) :].any()  # padding only at the end
        assert (row["ids"][~used] == 0).all() and (row["position"][~used] == 0).all()
        assert (np.diff(segments[used]) >= 0).all() and set(segments[used]) == set(range(1, count + 1))
        for segment in range(1, count + 1):
            place = segments == segment
            np.testing.assert_array_equal(row["position"][place], np.arange(place.sum()))
            key = row["ids"][place].tobytes()
            pieces[key] = pieces.get(key, 0) + 1
    for document in documents:
        for start in range(0, len(document), 32):
            key = document[start : start + 32].astype(np.int32).tobytes()
            pieces[key] -= 1
    assert set(pieces.values()) == {0}
    assert np.mean([row["segment"] > 0 for row in rows]) > 0.9
    again = list(pack(documents, 32, open_rows=4))
    assert all((a[k] == b[k]).all() for a, b in zip(rows, again, strict=True) for k in a)


def test_packing_is_first_fit_and_streams() -> None:
    sizes = [5, 4, 3, 6]
    rows = list(pack((np.full(size, 10 + size) for size in sizes), 8, open_rows=2))
    assert [row["ids"].tolist() for row in rows] == [
        [15] * 5 + [13] * 3,  # the 3 goes into the first row, which is then full and given out
        [14] * 4 + [0] * 4,
        [16] * 6 + [0] * 2,
    ]

    def endless():
        while True:
            yield np.ones(3, dtype=np.int32)

    assert next(pack(endless(), 7, open_rows=3))["segment"].tolist() == [1, 1, 1, 2, 2, 2, 0]
    with pytest.raises(UsageError, match="length and open_rows must be at least 1"):
        pack([], 0)
