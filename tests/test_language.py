"""The language systems: rows of one text and of two, likelihood and similarity as library calls, options of the tasks."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from quick import quick
from scipy import stats

from unimodal import data
from unimodal.data.blocks import Texts
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import bigram_bits, chance_recall, majority_accuracy
from unimodal.evaluation.classification import guesses
from unimodal.evaluation.language import Likelihood, text_likelihood
from unimodal.evaluation.retrieval import mean_reciprocal_rank
from unimodal.evaluation.similarity import cosine, similarity_ranking

ENCODER = data.ByteEncoder()
BOOK = [
    {"id": "a", "text": "the quick brown fox jumps over the lazy dog and runs on " * 3},
    {"id": "b", "text": "0123 4567 8901 2345 6789 0123 4567 8901 2345 6789 0123 " * 3},
    {"id": "c", "text": ""},
]


# ---- Rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "wanted", "types"),
    [
        ("abc", None, "Cabc|...", "00000000"),
        ("abcdefghij", None, "Cabcdef|", "00000000"),
        ("ab", "cd", "Cab|cd|.", "00001110"),
        ("abcdefgh", "xy", "Cabc|xy|", "00000111"),
        ("ab", "uvwxyz", "Cab|uvw|", "00001111"),
        ("abcdefgh", "stuvwxyz", "Cabc|st|", "00000111"),
    ],
)
def test_pair_row(first: str, second: str | None, wanted: str, types: str) -> None:
    more = None if second is None else ENCODER.encode(second)
    ids, kinds = data.pair_row(ENCODER, 8, ENCODER.encode(first), more)
    names = {ENCODER.CLS: "C", ENCODER.SEP: "|", ENCODER.PAD: "."}
    assert "".join(names.get(int(i), ENCODER.decode([i])) for i in ids) == wanted
    assert "".join(map(str, kinds)) == types
    assert ids.dtype == kinds.dtype == np.int32


def test_no_room_for_text() -> None:
    with pytest.raises(UsageError, match="rows of length=2 ids have no room for text"):
        data.pair_row(ENCODER, 2, ENCODER.encode("a"))


def test_empty_texts_are_left_out_and_long_ones_cut_and_both_are_said(caplog: pytest.LogCaptureFixture) -> None:
    records: Any = [
        {"id": "1", "text": "good", "label": 1},
        {"id": "2", "text": "  ", "label": 0},
        {"id": "3", "text": "too long by far", "label": 0},
    ]
    with caplog.at_level(logging.WARNING):
        rows = data.text_rows(
            records, ENCODER, 8, ("text",), keep={"label": lambda record: record["label"]}, what="a set of three"
        )
    assert [row["id"] for row in rows.records] == ["1", "3"] and (rows.skipped, rows.cut) == (1, 1)
    assert "1 of 3 records of a set of three have no text" in caplog.text
    assert "1 of 3 texts of a set of three are longer than length=8 and are cut" in caplog.text
    with pytest.raises(UsageError, match="^no text in the source: every record is empty"):
        data.text_rows(records[1:2], ENCODER, 8, ("text",))
    with pytest.raises(UsageError, match="field 'label' of record '1' is no text, but int"):
        data.text_rows(records, ENCODER, 8, ("label",))


def test_texts_are_read_alike_in_training_and_when_a_model_is_asked(tmp_path: Path) -> None:
    from tasks.sentence import Sentence
    from tasks.text_classifier import TextClassifier
    from unimodal.answers import Asked

    record = dict(text=" a b\n", other="\tc ")
    lines = [json.dumps(dict(record, id=i, label=i % 2)) for i in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    model: Any = SimpleNamespace(tokenizers=dict(text=SimpleNamespace(config=SimpleNamespace(vocabulary=264))))
    about: dict[str, Any] = dict(source=f"jsonl:{tmp_path / 'data.jsonl'}", texts=Texts(column="text", length=16))
    second = dict(second="other")
    for task in (TextClassifier(**about), TextClassifier(**about, **second), Sentence(**about, **second)):
        trained, asked = (task.inputs(model).dataset("validation")[0], task.answers(model, Asked())[0].row(record))
        np.testing.assert_array_equal(asked["ids"], trained["ids" if "ids" in trained else "first"])


def test_distinct_pairs_share_no_word() -> None:
    source = data.open_source("embedded:emoji", "validation")
    rows = data.text_pairs(source, ("name",), ("keywords",), distinct=True)
    assert 100 < len(rows) < len(source)
    for row in rows.records:
        first = set(row["first"][0].lower().split())
        assert not any(first & set(phrase.lower().split()) for phrase in row["second"])
    with pytest.raises(
        UsageError, match="no pairs of texts in the source: 0 of 1 records have both, .* distinct=False keeps"
    ):
        data.text_pairs([{"id": "x", "a": "one", "b": ["one"]}], ("a",), ("b",), distinct=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="0 of 1 records have both$"):
        data.text_pairs([{"id": "x", "a": "one", "b": ""}], ("a",), ("b",))  # type: ignore[arg-type]


def test_words_are_shared_in_every_script() -> None:
    records: Any = [
        {"id": "a", "first": "हिन्दी", "second": ["हि दी", "न्दी"]},  # letters alike, no word
        {"id": "b", "first": "Das Öl", "second": ["oel", "öl-Bild"]},
    ]
    rows = data.text_pairs(records, ("first",), ("second",), distinct=True)
    assert [row["second"] for row in rows.records] == [["हि दी", "न्दी"], ["oel"]]


def test_rows_of_next_sentences_count_bytes_where_the_ids_are() -> None:
    pytest.importorskip("tokenizers")
    encoder: Any = data.open_encoder(str(tiny.ROOT / "tests/reference/interop/preprocess/roberta"))
    for random in (False, True):
        rows = data.next_sentence_rows(BOOK, encoder, 48, random=random, count=True)  # type: ignore[arg-type]
        for index in range(len(rows)):
            row = rows.transform(rows.source[index], np.random.default_rng(index))
            real = encoder.ordinary(row["ids"])
            # Of byte-level ids the table is exact wherever they stand.
            assert row["bytes"].tolist() == np.where(real, encoder.byte_lengths[np.maximum(row["ids"], 0)], 0).tolist()
            assert row["bytes"].any() and row["types"].max() == 0  # RoBERTa knows one type of sentence
        assert not (set(rows[0]) - {"ids", "types", "next", "bytes"})


def test_next_sentences_follow_or_come_from_elsewhere() -> None:
    rows, seen = data.next_sentence_rows(BOOK, ENCODER, 32, random=True), []  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for _ in range(40):
        for place in rows.source[0], rows.source[len(rows) - 1]:
            row = rows.transform(place, rng)
            first, second = (ENCODER.decode(row["ids"][row["types"] == t]) for t in (0, 1))
            seen.append(int(row["next"]))
            followed = any(first + second in record["text"] for record in BOOK)
            assert followed == bool(row["next"]), (first, second)
            assert row["ids"].shape == row["types"].shape == (32,) and first and second
    assert 0.3 < np.mean(seen) < 0.6
    fixed = data.next_sentence_rows(BOOK, ENCODER, 32, random=False)  # type: ignore[arg-type]
    np.testing.assert_array_equal(fixed[1]["ids"], fixed[1]["ids"])
    with pytest.raises(UsageError, match="needs two documents with text or more, found 1"):
        data.next_sentence_rows(BOOK[::2], ENCODER, 32, random=True)  # type: ignore[arg-type]


def test_the_edges_of_documents_are_read_about_as_often_as_their_midst() -> None:
    texts = ["".join(chr(0x4E00 + 100 * d + i) for i in range(60)) for d in (0, 1)]
    # An id a character, and no word longer than one, so that stretches begin where they are drawn.
    encoder = data.ByteEncoder()
    object.__setattr__(encoder, "encode", lambda text: np.array([ord(c) for c in text], np.int32))
    object.__setattr__(encoder, "words", lambda ids: np.arange(len(ids), dtype=np.int32))
    documents: Any = [{"id": str(d), "text": text} for d, text in enumerate(texts)]
    rows, rng, seen = data.next_sentence_rows(documents, encoder, 23, random=True), np.random.default_rng(0), {}
    for _ in range(2000):
        ids = rows.transform(rows.source[int(rng.integers(len(rows)))], rng)["ids"]
        for i in ids[ids >= 0x4E00]:
            seen[int(i) % 100] = seen.get(int(i) % 100, 0) + 1
    found = np.array([seen[(0x4E00 + i) % 100] for i in range(60)])
    midst = found[25:35].mean()
    assert 0.4 * midst < found.min() and found.max() < 1.6 * midst


def test_some_records_are_spread_and_the_same_always() -> None:
    source = data.open_source("embedded:emoji", "train")
    some = data.some_records(source, 60)
    assert [r["id"] for r in some.records] == [r["id"] for r in data.some_records(source, 60).records]
    assert len({r["label"] for r in some.records}) >= 7
    with pytest.raises(UsageError, match="cannot take 2000 records of 1105"):
        data.some_records(source, 2000)


# ---- Likelihood and similarity -------------------------------------------------------------------------------------

TABLE = np.random.default_rng(0).standard_normal((264, 264)).astype(np.float32)
TEXTS = ["Call me Ishmael. Some years ago", "x", "never mind — how long précisely"]


@pytest.mark.parametrize(("length", "stride", "batch"), [(64, None, 8), (8, 3, 2), (8, 7, 3), (2, 1, 5)])
def test_likelihood_counts_every_token_once(length: int, stride: int | None, batch: int) -> None:
    # A bigram model looks at one token, so that windows must not matter.
    def logits(ids: jax.Array) -> jax.Array:
        return jnp.asarray(TABLE)[ids]

    found = text_likelihood(logits, TEXTS, ENCODER, length=length, stride=stride, batch_size=batch)
    normal = TABLE - np.log(np.exp(TABLE).sum(axis=1, keepdims=True))
    ids = [[ENCODER.BOS, *ENCODER.encode(text)] for text in TEXTS]
    nats = -sum(float(normal[a, b]) for row in ids for a, b in zip(row, row[1:], strict=False))
    count = sum(len(text.encode()) for text in TEXTS)
    assert (found.tokens, found.bytes) == (count, count)
    np.testing.assert_allclose(found.nats, nats, rtol=1e-5)
    np.testing.assert_allclose(found.perplexity, np.exp(nats / count), rtol=1e-5)
    np.testing.assert_allclose(found.bits_per_byte, nats / count / np.log(2), rtol=1e-5)


def test_likelihood_of_nothing() -> None:
    zeros = lambda ids: jnp.zeros((*ids.shape, 264))  # noqa: E731
    with pytest.raises(UsageError, match="^no text has two tokens or more"):
        text_likelihood(zeros, [""], ENCODER, length=8)
    with pytest.raises(UsageError, match="1 <= stride < length, found length=8 stride=8"):
        text_likelihood(zeros, TEXTS, ENCODER, length=8, stride=8)


def test_likelihood_counts_the_bytes_of_the_text_whatever_the_vocabulary() -> None:
    pytest.importorskip("tokenizers")
    encoder = data.open_encoder(str(tiny.ROOT / "tests/reference/interop/preprocess/llama"))
    texts = ["hello 😀 world", "  naïve  हिन्दी", "The sea"]
    found = text_likelihood(lambda ids: jnp.zeros((*ids.shape, encoder.vocab_size)), texts, encoder, length=8, stride=3)
    assert found.bytes == sum(len(text.encode()) for text in texts)  # its BOS foretells the first token, too
    assert found.tokens == sum(len(encoder.encode(text)) for text in texts)
    bits = found.tokens * np.log2(encoder.vocab_size) / found.bytes
    np.testing.assert_allclose(found.bits_per_byte, bits, rtol=1e-5)


def test_numbers_that_are_none_stay_none() -> None:
    nan = lambda ids: jnp.full((*ids.shape, 264), jnp.nan)  # noqa: E731
    found = text_likelihood(nan, TEXTS, ENCODER, length=8)
    assert np.isnan(found.perplexity) and np.isnan(found.bits_per_byte)
    assert Likelihood(8e4, 100, 400).perplexity == np.inf
    assert np.isnan(Likelihood(5.0, 3, 0).bits_per_byte)
    none = np.zeros(0, int)
    assert np.isnan(majority_accuracy(none, np.ones(3, int))) and np.isnan(majority_accuracy(np.ones(3, int), none))
    assert np.isnan(chance_recall(0, 5))
    assert bigram_bits(np.array([2]), np.array([1, 2]), np.array([2, 0]), 3) == pytest.approx(-np.log2(0.5) / 2 + 1)


def test_bigram_bits_are_those_of_the_whole_table() -> None:
    rng = np.random.default_rng(0)
    train, ids = rng.integers(0, 7, 60), rng.integers(0, 9, 40)  # ids that were never seen, too
    table = np.zeros((9, 9))
    for a, b in zip(train, train[1:], strict=False):
        table[a, b] += 1
    unigram = np.array([(train == i).sum() + 1 for i in range(9)]) / (60 + 9)
    probability = (table + unigram) / (table.sum(axis=1, keepdims=True) + 1)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    bits = -np.log2(probability[ids[:-1], ids[1:]]).mean()
    np.testing.assert_allclose(bigram_bits(train, ids[:-1], ids[1:], 9), bits, rtol=1e-12)


def test_similarity_ranking_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50, 6))
    judged = np.round(3 * rng.random(50) + 2 * cosine(a, b))  # with ties
    found = similarity_ranking(a, b, judged)
    alike = [1 - np.float64(x) for x in np.diag(1 - (a @ b.T) / np.outer(*(np.linalg.norm(x, axis=1) for x in (a, b))))]
    np.testing.assert_allclose(found["spearman"], stats.spearmanr(alike, judged).statistic, rtol=1e-9)
    np.testing.assert_allclose(found["pearson"], stats.pearsonr(alike, judged).statistic, rtol=1e-9)
    assert mean_reciprocal_rank(np.eye(4), np.eye(4)) == 1.0
    assert mean_reciprocal_rank(np.eye(3), np.eye(3)[[1, 0, 2]]) < 0.7
    assert np.isnan(similarity_ranking(a, b, np.ones(50))["pearson"])
    a[7] = np.nan
    assert np.isnan(stats.spearmanr(cosine(a, b), judged).statistic)
    assert all(np.isnan(value) for value in similarity_ranking(a, b, judged).values())


# ---- Tasks ---------------------------------------------------------------------------------------------------------


def untrained(config: Any) -> tuple[Any, Any]:
    """An experiment and its model before the first step."""
    experiment = tiny.build(config)
    return experiment, experiment.program.model(experiment.program.init())


def evaluated(made: tuple[Any, Any], name: str) -> tuple[Any, Any, Any]:
    """A task, its evaluation, and what that measures on two batches."""
    experiment, model = made
    task = next(task for task in experiment.tasks if task.name == name)
    return task, experiment.evaluations[name], experiment.evaluations[name].measure(model, experiment.reader, limit=2)


def first_batch(made: tuple[Any, Any], task: Any) -> dict[str, np.ndarray]:
    """The first rows of validation, stacked."""
    dataset = task.inputs(made[1]).dataset("validation")
    rows = [dataset[i] for i in range(task.batch_size)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def options() -> tuple[Any, Any]:
    """The options that the demo leaves alone, all at once."""
    config = tiny.plain("gpt", "bert", "text_classifier", tokenizers__text__types=2, tokenizers__text__max_length=32)
    config["tasks"]["gpt"] |= dict(packed=True, texts=dict(length=32, column="name"), source="embedded:emoji")
    config["tasks"]["bert"] |= dict(next_sentence=True, whole_words=True)
    config["tasks"]["text_classifier"]["texts"]["column"] = "name"
    config["tasks"]["text_classifier"] |= dict(second="keywords", pooling="first")
    return untrained(config)


def test_packed_documents_do_not_see_each_other(options: tuple[Any, Any]) -> None:
    task, evaluation, measured = evaluated(options, "gpt")
    _, model = options
    batch = first_batch(options, task)
    row = next(i for i in range(len(batch["ids"])) if batch["segment"][i].max() > 1)
    other = dict(batch, ids=np.where(batch["segment"] == 1, 40, batch["ids"]).astype(np.int32))
    logits = quick(task.logits)
    before, after = (np.asarray(logits(model, {k: jnp.asarray(v) for k, v in b.items()}))[row] for b in (batch, other))
    second = batch["segment"][row] > 1
    np.testing.assert_array_equal(before[second], after[second])
    assert np.abs(before - after)[~second].max() > 1e-3
    assert batch["ids"][row, 0] == ENCODER.BOS and np.isfinite(measured.score["value"])
    assert evaluation.samples(model, measured.shown)


def test_a_model_that_knows_nothing_takes_eight_bits_a_byte(options: tuple[Any, Any]) -> None:
    for name in ("gpt", "bert"):
        score = evaluated(options, name)[2].score
        slack = 0.0 if name == "bert" else 1.0  # ends of documents cost bits and are no bytes
        assert 7.8 < score["value"] < 8.6 + slack, (name, score)
    assert 0 <= score["next_accuracy"] <= 1


def test_pairs_are_classified(options: tuple[Any, Any]) -> None:
    task, evaluation, measured = evaluated(options, "text_classifier")
    batch = first_batch(options, task)
    assert set(np.unique(batch["types"])) == {0, 1}
    assert 0 <= measured.score["value"] <= 1
    tally = evaluation.tally()
    tally.add({name: np.asarray(x) for name, x in guesses(jnp.eye(9)[batch["label"]], batch["label"]).items()})
    assert tally.score() == {"value": 1.0, "balanced_accuracy": 1.0}


def test_subwords_are_counted_in_bytes(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from unimodal.data.train_encoder import main

    path = str(tmp_path / "tokenizer.json")
    main(["--source=embedded:emoji", "--fields=name", "--size=300", f"--out={path}"])
    config = tiny.plain("gpt", "bert", tokenizers__text__vocabulary=300)
    for task in config["tasks"].values():
        task |= dict(texts=dict(encoder=path, column="name", length=16), source="embedded:emoji")
    made = untrained(config)
    encoder = data.open_encoder(path)
    task, _, _ = evaluated(made, "gpt")
    rows = quick(task.predict)(made[1], {k: jnp.asarray(v) for k, v in first_batch(made, task).items()})
    names = [record["name"] for record in (data.open_source(task.source, "validation")[i] for i in range(8))]
    following = [encoder.byte_lengths[encoder.encode(name)[1:16]].sum() for name in names]
    assert rows["bytes"].tolist() == following and following != rows["tokens"].tolist()
    task, evaluation, measured = evaluated(made, "bert")
    assert (first_batch(made, task)["targets"] == -1).any() and np.isfinite(measured.score["value"])
    value, what = evaluation.baseline({})
    assert what == "bigram" and 0 < value < 8
    assert evaluation.samples(made[1], measured.shown)
    with pytest.raises(UsageError, match="has 300 ids, but its tokenizer's table has vocabulary=264 rows"):
        config["tokenizers"]["text"]["vocabulary"] = 264
        tiny.build(config).train_batches(task)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            dict(labels=dict(classes=["a", "b"])),
            "labels.classes lacks 'smileys & emotion', .*; the classes there are 'smil",
        ),
        (dict(limit=5), "9 classes, but embedded:emoji has only 5 examples"),
        (dict(labels=dict(column="name")), "validation, record 0: class '.*' is not among the 1105 classes"),
        (
            dict(labels=dict(column="nme")),
            "has no column 'nme' for a class; it has group, image, keywords, label, name",
        ),
        (
            dict(texts=dict(column="nothing", length=16)),
            "has no column 'nothing' for a text; it has group, image, keywords",
        ),
        (dict(source="array_record:no/where"), "no/where"),
    ],
)
def test_wrong_labels_and_fields_are_one_line(changes: dict[str, Any], says: str) -> None:
    config = tiny.plain("text_classifier")
    config["tasks"]["text_classifier"] |= changes
    with pytest.raises(UsageError, match=says) as error:
        experiment = tiny.build(config)
        experiment.train_batches(experiment.tasks[0])
    assert "\n" not in str(error.value)


def test_packed_rows_must_fit_the_position_table() -> None:
    with pytest.raises(UsageError, match="text of 32 tokens is longer than the position table, max_length=16"):
        tiny.build(tiny.plain("gpt", tasks__gpt__packed=True, tasks__gpt__texts__length=32))
