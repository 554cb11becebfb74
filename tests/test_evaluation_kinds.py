"""Evaluations of texts that a config attaches, against slow readings of what they mean; and kinds of the user's own."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from quick import quick
from scipy.stats import pearsonr, spearmanr

from unimodal.data import write_array_record
from unimodal.errors import UsageError
from unimodal.evaluation.answers import METRICS, Answers
from unimodal.evaluation.evaluation import result
from unimodal.evaluation.kinds.continuation import Continuation
from unimodal.experiment import build
from unimodal.places import places_of

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def table(folder: Path, rows: list[dict[str, Any]]) -> str:
    """A source whose two splits hold the same records."""
    for split in ("train", "validation"):
        named = ({"id": str(i), **row} for i, row in enumerate(rows))
        write_array_record(folder / f"{split}.array_record", named)
    return f"array_record:{folder}"


def experiment_and_model(kind: str, **changes: Any) -> tuple[Any, Any]:
    experiment = tiny.build(tiny.plain(kind, **changes))
    return experiment, experiment.program.model(experiment.program.init())


# ---- Similarity ----------------------------------------------------------------------------------------------------


def embeddings(model: Any, texts: list[str], how: str) -> np.ndarray:
    """One text at a time, without padding."""
    found = []
    for text in texts:
        ids = jnp.asarray([[byte + 8 for byte in text.encode()]], jnp.int32)
        hidden, tokens = model.hidden("text", "shared", ids)
        made = hidden.mean(axis=1) if how == "mean" else model.heads["sentence"]["embed"](hidden, tokens.segment)
        found.append(np.asarray(made[0], np.float64))
    return np.stack(found)


@pytest.mark.parametrize("head", ["", "sentence.embed"])
def test_similarity_is_a_correlation_of_cosines(tmp_path: Path, head: str) -> None:
    first, second = WORDS[:8], [f"{WORDS[(3 * i) % 10]} {i}" for i in range(8)]
    scores = [0.5, 4.0, 1.0, 1.0, 3.0, 2.0, 5.0, 0.0]
    rows = [dict(a=a, b=b, alike=s) for a, b, s in zip(first, second, scores, strict=True)]
    asked = dict(kind="similarity", source=table(tmp_path, rows), second="b", scores="alike", head=head, batch_size=3)
    texts = dict(column="a", length=16)
    experiment, model = experiment_and_model("sentence", evaluations__sts=dict(asked, texts=texts))
    evaluation = experiment.evaluations["sts"]
    measured = evaluation.measure(model, experiment.reader)
    a, b = (embeddings(model, texts, "head" if head else "mean") for texts in (first, second))
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert evaluation.metric == "Spearman correlation" and evaluation.higher_is_better
    assert measured.score["value"] == pytest.approx(spearmanr(cosines, scores).statistic, abs=1e-6)
    assert measured.score["pearson"] == pytest.approx(pearsonr(cosines, scores).statistic, abs=1e-5)
    shown = evaluation.samples(model, measured.shown)
    best = int(np.argmax(cosines))
    assert shown[0].prompt == f"{first[best]} | {second[best]}" and shown[0].note == f"score {scores[best]:g}"
    for wrong in (math.nan, "high", None):
        with pytest.raises(UsageError, match="record '3': alike=.* is no number"):
            evaluation._score(dict(id="3", alike=wrong))
    assert evaluation.baseline({"value": -1.0})[1] == "shared words"
    assert evaluation.baseline({"value": 2.0}) == (2.0, "the untrained model")


def test_without_scores_each_text_finds_its_partner(tmp_path: Path) -> None:
    rows = [dict(a=word, b=word.upper()) for word in WORDS]
    texts = dict(column="a", length=16)
    asked = dict(kind="similarity", source=table(tmp_path, rows), second="b", texts=texts, batch_size=4)
    experiment, model = experiment_and_model("sentence", evaluations__pairs=asked)
    evaluation = experiment.evaluations["pairs"]
    a, b = (embeddings(model, texts, "mean") for texts in (WORDS, [word.upper() for word in WORDS]))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    found = [(a @ b.T).argmax(axis=1), (b @ a.T).argmax(axis=1)]
    wanted = np.mean([f == np.arange(10) for f in found])
    assert evaluation.metric == "recall@1"
    measured = evaluation.measure(model, experiment.reader).score
    assert measured["value"] == pytest.approx(wanted)
    assert evaluation.baseline({**measured, "value": 0.0}) == (0.1, "chance")
    with pytest.raises(UsageError, match="head='text.embed' makes no embeddings; those that do: sentence.embed"):
        wrong, model = experiment_and_model("sentence", evaluations__pairs=dict(asked, head="text.embed"))
        wrong.evaluations["pairs"].measure(model, wrong.reader)


def test_texts_that_are_equal_are_no_rivals_by_chance_either(tmp_path: Path) -> None:
    """Of two partners one is right by chance; and a partner finds its own text among those of the other partner: 1 of 6."""
    rows = [dict(a=word, b=("yes", "no")[i % 2]) for i, word in enumerate(WORDS)]
    asked = dict(kind="similarity", source=table(tmp_path, rows), second="b", texts=dict(column="a", length=16))
    experiment, model = experiment_and_model("sentence", evaluations__pairs=asked)
    evaluation = experiment.evaluations["pairs"]
    measured = evaluation.measure(model, experiment.reader).score
    value, name = evaluation.baseline({**measured, "value": 0.0})
    assert name == "chance" and value == pytest.approx((1 / 2 + 1 / 6) / 2, abs=0.02)


# ---- Continuation --------------------------------------------------------------------------------------------------


def greedy(model: Any, prompt: list[int], steps: int) -> list[int]:
    """The likeliest ids after a prompt, each from the whole of the text so far."""
    head, table = model.heads["gpt"]["language"], model.tokenizers["text"].table
    made: list[int] = []
    run = quick(lambda ids: head(model.hidden("text", "shared", ids, causal=True)[0], table))
    for _ in range(steps):
        ids = np.zeros((1, 16), np.int32)  # causal: what is behind the prompt changes nothing
        ids[0, : len(prompt) + len(made)] = prompt + made
        made.append(int(np.asarray(run(jnp.asarray(ids)))[0, len(prompt) + len(made) - 1].argmax()))
    return made


def nats_of(model: Any, prompt: list[int], follows: list[int]) -> float:
    ids = jnp.asarray([prompt + follows], jnp.int32)
    head, table = model.heads["gpt"]["language"], model.tokenizers["text"].table
    logits = np.asarray(head(model.hidden("text", "shared", ids, causal=True)[0], table)[0], np.float64)
    places = np.arange(len(prompt) - 1, len(prompt) + len(follows) - 1)
    return float(sum(np.log(np.exp(logits[p]).sum()) - logits[p, i] for p, i in zip(places, follows, strict=True)))


def test_continuation_counts_what_follows(tmp_path: Path) -> None:
    """Bits per byte of the reference, and what is written, are those of the uncached model, text by text."""
    rows = [dict(text=word + "=", answer=str(i)) for i, word in enumerate(WORDS)]
    asked = dict(kind="continuation", source=table(tmp_path, rows), reference="answer", packed=True, batch_size=4)
    sizes = dict(prompt=8, steps=4)
    experiment, model = experiment_and_model("gpt", evaluations__sums=dict(asked, **sizes))
    evaluation = experiment.evaluations["sums"]
    measured = evaluation.measure(model, experiment.reader)
    # BOS is 2 and EOS 3; the longest prompt, `seven=`, has room beside BOS.
    prompts = [[2, *(b + 8 for b in row["text"].encode())] for row in rows]
    nats = sum(
        nats_of(model, p, [*(b + 8 for b in r["answer"].encode()), 3]) for p, r in zip(prompts, rows, strict=True)
    )
    assert measured.score["value"] == pytest.approx(nats / 10 / np.log(2), rel=1e-5)  # ten answers of one byte
    assert measured.score["exact_match"] == 0.0
    made = measured.shown.rows["made"]
    for place, ids in zip(measured.shown.index, made, strict=True):
        assert greedy(model, prompts[int(place)], 4) == ids.tolist()
    samples = evaluation.samples(model, measured.shown)
    assert (samples[0].prompt, samples[0].truth) == ("one=", "0")
    assert evaluation.baseline({"value": 7.0}) == (7.0, "the untrained model")


def test_a_text_is_cut_where_there_is_no_reference(tmp_path: Path) -> None:
    rows = [dict(text="a longer text, cut after its sixth"), dict(text="abcd")]
    asked = dict(kind="continuation", source=table(tmp_path, rows), prompt=6, steps=8, score="exact match")
    experiment, model = experiment_and_model("gpt", evaluations__rest=asked)
    evaluation = experiment.evaluations["rest"]
    examples = evaluation.inputs(model).dataset("validation")
    first, short = examples[0], examples[1]
    decode = evaluation.texts.opened.decode
    assert decode(first["prompt"]) == "a long" and decode(first["ids"]) == "a longer text,"
    assert decode(short["prompt"]) == "ab" and decode(short["ids"][short["foretold"] > 0]) == "cd"
    score = evaluation.measure(model, experiment.reader).score
    assert set(score) >= {"value", "bits_per_byte"} and evaluation.higher_is_better


@pytest.mark.parametrize("score", METRICS)
def test_continuations_have_an_interval(tmp_path: Path, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the examples, for either metric; each example's numbers make the value, as `ledger diff` asks for."""
    rows = [dict(text=word + "=", answer=str(i)) for i, word in enumerate(WORDS)]
    asked = dict(kind="continuation", source=table(tmp_path, rows), reference="answer", score=score, prompt=8, steps=4)
    experiment, model = experiment_and_model("gpt", evaluations__sums=asked)
    # An untrained model never writes the answer, so let every second one be right.
    monkeypatch.setattr(Continuation, "matches", lambda _self, made, truth: truth[0] % 2 == 0)
    evaluation = experiment.evaluations["sums"]
    measured = evaluation.measure(model, experiment.reader)
    assert measured.each is not None and len(measured.each.ids()) == 10
    sums = {name: values.astype(np.float64).sum() for name, values in measured.each.columns.items()}
    value = evaluation.value_of({**sums, "examples": np.float64(10)})
    low, high = measured.each.interval()
    assert value == pytest.approx(measured.score["value"]) and low < value < high
    if score == "exact match":
        assert value == 0.5
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x, model)
    lost = result(evaluation, evaluation.measure(nan, experiment.reader), {"value": 0.0})
    assert all(np.isnan(number) for number in (lost.value, lost.low, lost.high))


@pytest.mark.parametrize(
    ("fields", "made", "truth", "same"),
    [
        (dict(packed=True, reference="b"), [57, 3, 0], [57, 3], True),  # 57 is the digit 1
        (dict(packed=True, reference="b"), [57, 58, 3], [57, 3], False),  # 12 begins with 1, and is not 1
        (dict(stop="\n"), [57, 18, 60], [57], True),  # 18 is the line break
        (dict(stop="\n"), [57, 60, 18], [57], False),
        (dict(stop="\n"), [40, 57, 18], [57], True),  # blanks around an answer do not count
        (dict(), [57, 60], [57], True),
        (dict(), [60, 57], [57], False),
        (dict(), [60, 57], [], False),  # nothing is no continuation
        (dict(stop="\n"), [57, 18], [], False),
        (dict(stop="\n"), [18, 57], [], True),  # nor is it written but by stopping at once
    ],
)
def test_an_answer_ends_where_something_says_so(fields: dict, made: list[int], truth: list[int], same: bool) -> None:
    asked = Continuation(source="embedded:book", **fields)
    assert asked.matches(np.asarray(made), np.asarray(truth)) == same


def test_the_commonest_answer_is_compared_as_written_ones_are(tmp_path: Path) -> None:
    """What always writes it scores the baseline: up to `stop`, and never a reference that `steps` ids cannot hold."""
    said = ["yes\nas it rains"] * 3 + ["yes\nas it snows", "no\nit is dry", "perhaps not\nwho knows", "", "yes"]
    rows = [dict(text=f"{i}=", answer=answer) for i, answer in enumerate([*said, 5])]  # the last cannot be read
    asked: dict = dict(source=table(tmp_path, rows), reference="answer", score="exact match", steps=8)
    for fields, always, wanted in (
        (dict(stop="\n"), "yes\nor no", 5 / 8),
        (dict(packed=True), "yes", 1 / 8),  # the others are too long
        (dict(), "yes, yes", 1 / 8),
    ):
        evaluation = Continuation(**asked, **fields)
        encoder = evaluation.texts.opened
        made = np.asarray([*encoder.encode(always), *[encoder.EOS] * 8])[:8]
        tally = Answers(finish=lambda sums: {"value": 0.0}, matches=evaluation.matches, main="exact match")
        for row in rows[:-1]:
            ids, follows, _, whole = evaluation._ids(encoder, row["text"], row["answer"])
            one = dict(made=made, ids=np.concatenate([ids, follows]), length=len(ids), tokens=len(follows), whole=whole)
            tally.add({name: np.asarray([x]) for name, x in {**one, "index": 0}.items()})
        assert tally.score()["value"] == pytest.approx(wanted)
        assert evaluation.baseline({}) == (pytest.approx(wanted), "the commonest answer")
        assert tally.cut == (1 if "stop" in fields else 6)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(task="gtp"), r"evaluations\.new\.task='gtp' is not among gpt"),
        (
            dict(score="accuracy"),
            r"evaluations\.new\.score must be one of bits per byte, exact match, but is 'accuracy'",
        ),
        (dict(steps=0), r"evaluations\.new: prompt and steps must be 1 or more"),
        (dict(refrence="b"), r"unknown config field evaluations\.new\.refrence; did you mean reference\?"),
    ],
)
def test_wrong_continuations_are_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        tiny.build(tiny.plain("gpt", evaluations__new=dict(kind="continuation", source="embedded:book", **fields)))
    assert "\n" not in str(caught.value)


# ---- Kinds of the user's own ---------------------------------------------------------------------------------------

PAGE = (tiny.ROOT / "docs" / "evaluations.md").read_text(encoding="utf-8")
OWN = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Spread" in code)


def test_a_kind_of_ones_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder, or beside the recipe, before those that come along."""
    (tmp_path / "elsewhere").mkdir()
    (own := tmp_path / "here" / "evaluations").mkdir(parents=True)
    (own / "spread.py").write_text(OWN)
    monkeypatch.chdir(own.parent)
    asked = dict(kind="spread", source="embedded:emoji")
    experiment = built(dict(asked, batch_size=8))
    model = experiment.program.model(experiment.program.init())
    evaluation = experiment.evaluations["new"]
    assert evaluation.metric == "effective rank"
    assert 1 < evaluation.measure(model, experiment.reader, limit=1).score["value"] <= 8  # of eight examples
    with pytest.raises(UsageError, match=r"evaluations\.new\.poling; did you mean pooling\?"):
        built(dict(asked, poling="first"))

    (own / "broken.py").write_text("x = 1\ndef f(:\n")
    (own / "empty.py").write_text("")
    for kind, says in (
        ("broken", f"{own / 'broken.py'}, line 2: SyntaxError"),
        ("empty", "empty.py has no class Empty"),
        ("spred", "did you mean spread?"),
    ):
        with pytest.raises(UsageError) as caught:
            built(dict(asked, kind=kind))
        assert says in str(caught.value) and "\n" not in str(caught.value)

    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no evaluation of kind 'spread'"):
        built(asked)


def built(evaluation: dict[str, Any]) -> Any:
    """An experiment with one evaluation attached, as a command in the current folder would find its kind."""
    return build(tiny.plain("vit", evaluations__new=evaluation), places_of(None).task_class)
