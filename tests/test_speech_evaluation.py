"""Transcripts: spelling, alphabets, CTC decoding against enumeration, error rates against values by hand."""

import itertools
import math
import unicodedata

import numpy as np
import pytest
from rapidfuzz.process import cdist

from unimodal import data
from unimodal.errors import UsageError
from unimodal.evaluation import error_rates as rates
from unimodal.evaluation.decoding import collapse, greedy, prefix_beam
from unimodal.evaluation.error_rates import constant_answer, error_rates
from unimodal.evaluation.transcription import Transcribed


def random_table(frames: int, classes: int, seed: int) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).standard_normal((frames, classes))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def enumerated(table: np.ndarray) -> dict[tuple[int, ...], float]:
    """Probability of every label sequence: the sum over all alignments that collapse to it."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(table.shape[1]), repeat=len(table)):
        labels = tuple(label for label, _ in itertools.groupby(path) if label)
        chance = math.exp(sum(table[t, label] for t, label in enumerate(path)))
        found[labels] = found.get(labels, 0.0) + chance
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_is_exact(seed):
    table = random_table(6, 3, seed)
    wanted = enumerated(table)
    found = prefix_beam(table, width=10_000)
    assert len(found) >= len(wanted)
    for labels, chance in found:
        assert math.exp(chance) == pytest.approx(wanted.get(labels, 0.0), rel=1e-9, abs=1e-300)
    assert found[0][0] == max(wanted, key=wanted.__getitem__)
    assert [c for _, c in found] == sorted((c for _, c in found), reverse=True)


def test_the_beam_beats_the_likeliest_alignment():
    # Blank is likeliest in both frames (0.36), but "a" has three alignments that sum to 0.64.
    table = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert greedy(table) == []
    (labels, chance), *_ = prefix_beam(table, width=4)
    assert labels == (1,)
    assert math.exp(chance) == pytest.approx(0.64)


def test_a_narrow_beam_underestimates_and_the_cut_keeps_the_likeliest():
    table = random_table(8, 5, 9)
    exact = dict(prefix_beam(table, width=100_000))
    narrow = prefix_beam(table, width=3)
    assert len(narrow) == 3
    assert all(chance <= exact[labels] + 1e-9 for labels, chance in narrow)
    assert prefix_beam(table, 8, labels_per_frame=4) == prefix_beam(table, 8)
    likeliest = int(table[0, 1:].argmax()) + 1
    assert {labels for labels, _ in prefix_beam(table[:1], 9, labels_per_frame=1)} == {(), (likeliest,)}


def test_collapse_merges_then_drops_blanks():
    assert collapse(np.array([0, 1, 1, 0, 1, 2, 2, 0, 0])) == [1, 1, 2]
    assert collapse(np.array([2, 2, 1, 2]), blank=2) == [1]
    assert collapse(np.zeros(0, int)) == []
    assert prefix_beam(np.zeros((0, 3)), 4) == [((), 0.0)]
    with pytest.raises(ValueError, match="at least 1"):
        prefix_beam(np.zeros((1, 2)), 0)


def test_error_rates_by_hand():
    # the → substituted; "sat" deleted; "now" inserted: 3 of 5 words.
    found = error_rates(["the cat sat", "on mats"], ["a cat", "on mats now"])
    assert found["word_error_rate"] == pytest.approx(3 / 5)
    # "the" → "a": 3 edits (one substitution, two deletions), " sat": 4 deletions, " now": 4 insertions, of 18.
    assert found["character_error_rate"] == pytest.approx(11 / 18)
    assert error_rates(["да"], [""]) == {"word_error_rate": 1.0, "character_error_rate": 1.0}
    assert error_rates(["да", ""], ["да", "ну да"])["word_error_rate"] == 2.0
    assert error_rates(["кот"], ["кот"]) == {"word_error_rate": 0.0, "character_error_rate": 0.0}
    with pytest.raises(ValueError, match="no reference has a word"):
        error_rates(["", " "], ["a", "b"])
    with pytest.raises(ValueError, match="1 references, but 2"):
        error_rates(["a"], ["b", "c"])


def test_the_constant_answer_is_the_middle_of_the_training_set():
    assert constant_answer(["abcd", "abce", "zzzzzzzzzzz"], ["abcf"]) == (0.25, 1.0)
    assert constant_answer(["zzzzzzzz"], ["ab"]) == (1.0, 1.0)  # silence is better
    assert constant_answer([""], ["ab"]) == (1.0, 1.0)
    assert np.isnan(constant_answer(["ab"], [])).all()


def test_the_constant_answer_needs_little_memory_and_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    train = ["".join(rng.choice(list("abc"), rng.integers(1, 12))) for _ in range(60)]
    far = [sum(distance(a, b) for b in train) for a in train]
    guess = train[int(np.argmin(far))]
    wanted = min(1.0, distance("abba", guess) / 4)
    assert constant_answer(train, ["abba"])[0] == pytest.approx(wanted)
    held = []
    monkeypatch.setattr(rates, "_HELD", 128)
    monkeypatch.setattr(rates, "cdist", lambda a, b, **more: held.append(len(a) * len(b)) or cdist(a, b, **more))
    assert constant_answer(train, ["abba"])[0] == pytest.approx(wanted)
    assert len(held) > 20 and max(held) <= 128
    monkeypatch.setattr(rates, "_COMPARED", 20)
    assert constant_answer(train, ["abba"]) == constant_answer(train, ["abba"]) and held[-1] <= 400


def distance(a: str, b: str) -> int:
    """Levenshtein's, by the table of prefixes."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def test_spelling():
    assert data.spell("Мальчик, ворона, - кто-то зовёт!") == "мальчик ворона кто-то зовёт"
    assert data.spell("прядь вол+ос") == "прядь волос"
    assert data.spell("прядь вол+ос", drop="", keep="+") == "прядь вол+ос"
    assert data.spell("Don’t 'quote' — x") == "don't quote x"
    assert data.spell("и\u0306ё е\u0308") == "йё ё"  # letters and their marks are one character
    assert data.spell(" ,. ") == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("हिन्दी, क्या?", "हिन्दी क्या"),
        ("العَرَبِيَّة!", unicodedata.normalize("NFC", "العَرَبِيَّة")),
        ("İstanbul", "i\u0307stanbul"),  # Unicode's own lower case of İ
        ("ภาษาไทย ที่นี่", "ภาษาไทย ที่นี่"),
        ("தமிழ்-நாடு", "தமிழ்-நாடு"),  # a hyphen after a mark is inside the word
        ("Cafe\u0301 \u0301x", "café x"),  # a mark without a letter is none
        ("می\u200cخواهم", "می\u200cخواهم"),  # a joiner inside a word is spelling
        ("a\u200c b co\u00adop \u200fx", "a b coop x"),  # elsewhere, and other signs without extent, it is nothing
        ("вода\u0301", "вода\u0301"),
        ("x² Ⅷ 42", "x² ⅷ 42"),
    ],
)
def test_spelling_keeps_the_marks_of_every_script(text, wanted):
    assert data.spell(text) == wanted
    assert data.spell(unicodedata.normalize("NFD", text)) == wanted and data.spell(wanted) == wanted


def test_marks_of_stress_may_be_dropped():
    assert data.spell("вода\u0301", drop="\u0301") == "вода"


def test_alphabet():
    letters = data.collect_alphabet(["ба", "а в"])
    assert letters.characters == " абв"
    assert letters.classes == 5
    ids = letters.encode("вaб")  # a Latin a
    assert ids.tolist() == [4, 5, 3]
    assert letters.decode([0, *ids, 0]) == "в\ufffdб"
    with pytest.raises(UsageError, match="twice"):
        data.Alphabet("aba")
    with pytest.raises(UsageError, match="empty"):
        data.collect_alphabet([])


def test_recordings_in_which_nothing_is_said_have_no_error_rate() -> None:
    tally = Transcribed(data.Alphabet("ab "), 0)
    path, text = np.array([[1, 0, 2], [0, 0, 0]]), np.zeros((2, 2), np.int32)
    tally.add({"frames": np.array([3, 3]), "path": path, "text": text, "likeliest": np.array([-1.0, -1.0])})
    score = tally.score()
    assert math.isnan(score["value"]) and math.isnan(score["word_error_rate"])
