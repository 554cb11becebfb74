"""Composed search: what words make of a picture, the loss, the score beside simpler queries, and searching with both."""

from __future__ import annotations

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from tasks.composed import Composed, told_apart
from unimodal.data.augment.changes import CHANGES, SEEN, changed
from unimodal.data.blocks import Changes, Texts
from unimodal.errors import UsageError
from unimodal.evaluation import composition
from unimodal.evaluation.evaluation import Measured, result
from unimodal.objectives import clip

RNG = np.random.default_rng(0)
PICTURE = np.asarray(Image.fromarray(RNG.integers(0, 256, (4, 4, 3), np.uint8)).resize((16, 16)))


def test_evaluation_asks_in_words_that_training_has_not() -> None:
    said = {word for change in CHANGES.values() for phrase in change.said for word in phrase.split()}
    for name, change in CHANGES.items():
        assert all(set(phrase.split()) - said for phrase in change.unseen), name
        assert len(set(change.said)) == len(change.said) > 1


def test_each_change_changes_and_keeps_the_size() -> None:
    wide = PICTURE[:, :12]
    for name, change in CHANGES.items():
        result = np.asarray(change.apply(Image.fromarray(wide)))
        assert result.shape == wide.shape and result.dtype == np.uint8, name
        assert np.abs(result.astype(int) - wide).mean() > SEEN, name


def test_changes_of_one_picture_can_be_told_apart() -> None:
    results, asked = changed(PICTURE, 5, np.random.default_rng(3), kinds=tuple(CHANGES), unseen=False)
    again = changed(PICTURE, 5, np.random.default_rng(3), kinds=tuple(CHANGES), unseen=False)
    np.testing.assert_array_equal(results, again[0])
    assert asked == again[1] and len(set(asked)) == 5
    different = [np.abs(a.astype(int) - b).mean() for i, a in enumerate(results) for b in (PICTURE, *results[:i])]
    assert min(different) >= SEEN
    # A white picture looks the same upside down and mirrored: the one change that shows comes first, the others fill up.
    white = np.full((8, 8, 3), 255, np.uint8)
    kinds = ("upside down", "mirrored", "negative")
    results, asked = changed(white, 3, np.random.default_rng(0), kinds=kinds, unseen=False)
    assert (results[0] == 0).all() and (results[1:] == 255).all() and asked[0] in CHANGES["negative"].said


def test_triplets_of_ones_own() -> None:
    block, texts = Changes(column="before", changed="after"), Texts(column="words", length=8)

    def png(picture: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        return stream.getvalue()

    other = 255 - PICTURE
    part = block.triplets(texts, (16, 16), 3, 264)
    record = {"id": "1", "before": png(PICTURE), "after": png(other), "words": "inverted"}
    made = part.make(part.read(record), np.random.default_rng(0), True)
    assert {name: (value.shape, value.dtype) for name, value in made.items()} == {
        name: (spec.shape, np.dtype(spec.dtype)) for name, spec in part.spec.items()
    }
    np.testing.assert_array_equal(block.to_uint8(made["image"]), PICTURE)
    np.testing.assert_array_equal(block.to_uint8(made["changed"][0]), other)
    assert texts.opened.decode(made["ids"][0]) == "inverted"


def test_the_loss_by_its_definition() -> None:
    """Each query among all targets and all pictures as they were; each target among all queries; equal looks are no rivals."""
    query, target, picture = (RNG.standard_normal(shape).astype(np.float32) for shape in ((3, 2, 5), (3, 2, 5), (3, 5)))
    looks = np.array([[1, 2], [3, 1], [4, 5]], np.int32)  # the second of row 1 looks like the first of row 0
    before = np.array([7, 8, 5], np.int32)  # the last picture is what its own second query wants
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    q, t, p = unit(query.reshape(6, 5)), unit(target.reshape(6, 5)), unit(picture)
    flat, nats = looks.reshape(-1), []
    for i in range(6):
        rivals = [j for j in range(6) if j == i or flat[j] != flat[i]]
        there = np.concatenate([q[i] @ t[rivals].T, q[i] @ p[before != flat[i]].T]) * 10
        back = t[i] @ q[rivals].T * 10
        own = q[i] @ t[i] * 10
        nats.append(0.5 * (np.log(np.exp(there).sum()) - own + np.log(np.exp(back).sum()) - own))
    rows = {"query": query, "target": target, "picture": picture, "looks": looks, "before": before}
    loss, metrics = told_apart((), {k: jnp.asarray(v) for k, v in rows.items()}, (jnp.float32(10),))
    np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-5)
    assert 0 <= metrics["accuracy"] <= 1
    pieces = clip(q, t, 10.0, ids_B=jnp.asarray(flat), more_ND=jnp.asarray(p), more_ids_N=jnp.asarray(before), chunk=2)[
        0
    ]
    np.testing.assert_allclose(pieces.mean(), np.mean(nats), rtol=1e-5)


def rows(query: np.ndarray, words: np.ndarray, target: np.ndarray, picture: np.ndarray, looks: np.ndarray):
    places = {"index": np.arange(2), "before": np.array([-1, -2], np.int32)}
    return {"query": query, "words": words, "target": target, "picture": picture, "looks": looks, **places}


def test_the_score_beside_simpler_queries() -> None:
    basis = np.eye(8, dtype=np.float32)
    picture, target = basis[:2], basis[2:6].reshape(2, 2, 8)
    looks = np.arange(4, dtype=np.int32).reshape(2, 2)
    tally = composition.Composed()
    tally.add(rows(target, np.zeros_like(target), target, picture, looks))
    score = tally.score()
    assert score["value"] == score["recall@1"] == 1
    # A picture alone is as near to every target (0) as to its own, and ties count against it.
    assert score["picture_alone_recall@1"] == score["words_alone_recall@1"] == 0
    # The picture that is asked with is not searched: a query that is nothing but it would find it first.
    near = 0.9 * picture[:, None] + 0.1 * target
    tally = composition.Composed()
    tally.add(rows(near, target, target, picture, looks))
    assert tally.score()["value"] == 1
    # What looks as the target does is no rival.
    twice = np.repeat(target[:, :1], 2, axis=1)
    for same, right in ((looks, 0), (np.array([[0, 0], [1, 1]], np.int32), 1)):
        tally = composition.Composed()
        tally.add(rows(twice, twice, twice, picture, same))
        assert tally.score()["value"] == right
    # A picture that is what is wanted, or what is asked with, is no rival either: in triplets a picture may be both.
    for before, right in (([-1, -2], 0.75), ([-1, 0], 1)):
        tally = composition.Composed()
        twin = np.stack([picture[0], target[0, 0]])
        tally.add(rows(target, target, target, twin, looks) | {"before": np.array(before, np.int32)})
        assert tally.score()["value"] == right
    sick = composition.Composed()
    sick.add(rows(np.full_like(target, np.nan), target, target, picture, looks))
    assert np.isnan(sick.score()["value"])


def test_the_baseline_is_the_best_of_the_simpler_queries() -> None:
    unused: dict = dict(inputs=lambda _: None, predict=lambda *_: {}, batch_size=1, pictures=Changes(), texts=Texts())
    evaluation = composition.Composition(**unused)
    score = {"value": 0.5, "picture_alone": 0.1, "words_alone": 0.2, "sum": 0.4, "average": 0.3}
    found = result(evaluation, Measured(score), {"value": 0.0})
    assert (found.baseline, found.baseline_is) == (0.4, "the sum of both embeddings")


def test_words_and_picture_are_asked_together(tmp_path: Path) -> None:
    """The trained way in, not the sum of embeddings; the words alone and the picture alone too."""
    import used

    from unimodal.use import load
    from unimodal.use.answering import Asking
    from unimodal.use.embedding import query_of

    used.workdir(tmp_path / "run", tiny.plain("composed"))
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    loaded = load(tmp_path / "run")
    asking = Asking(loaded, gives="embedding")
    parts = {"image": str(tmp_path / "a.png"), "text": "in blue"}
    both, image, text = (query_of(asking, {k: parts[k] for k in names}) for names in (parts, ("image",), ("text",)))
    assert all(np.isclose(np.linalg.norm(x), 1, atol=1e-5) for x in (both, image, text))
    task, model = loaded.tasks["composed"], loaded.model
    block, words = task.pictures, task.texts
    pixels = jnp.asarray(block.to_float(block.fitted(PICTURE, (16, 16))))[None]
    ids = jnp.asarray(words.row(words.opened, "in blue"))[None, None]
    expected = jax.jit(task.query)(model, pixels, ids, jnp.ones((1, 1), bool))[0, 0]
    np.testing.assert_allclose(both, expected, atol=1e-5)
    # Hidden, a picture does not matter; padding behind the words neither.
    blind = [jax.jit(task.query)(model, p, ids, jnp.zeros((1, 1), bool))[0, 0] for p in (pixels, 1 - pixels)]
    np.testing.assert_array_equal(blind[0], blind[1])
    np.testing.assert_allclose(text, blind[0], atol=1e-5)
    total = image + text
    assert np.abs(both - total / np.linalg.norm(total)).max() > 1e-3


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(kinds=("red", "bleu")), "kinds has 'bleu', which is no change: there is red"),
        (dict(count=0), "count must be from 1"),
        (dict(kinds=("red",), count=2), "the number of kinds, 1, but is 2"),
    ],
)
def test_slips(fields: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Composed(pictures=Changes(**fields))
