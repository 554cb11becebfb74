"""Evaluations: what they score, what NaN does to them, and how a config attaches more of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unimodal.data.blocks import Labels, images
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.classification import ByClass, among_the_likeliest, guesses, share_right
from unimodal.evaluation.evaluation import Each
from unimodal.evaluation.kinds.knn import Knn, vote
from unimodal.evaluation.kinds.linear_probe import LinearProbe, accuracy, fit, narrowed
from unimodal.evaluation.retrieval import Pairs, ranks, recall
from unimodal.evaluation.run import MeshReader
from unimodal.objectives import row_codes
from unimodal.tokenizers import image


def clouds(examples: int, seed: int = 0, classes: int = 5, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds that overlap, one for each class: features float32 [N,D] and classes [N]."""
    centres = np.random.default_rng(99).standard_normal((classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    return (centres[labels] + 1.5 * rng.standard_normal((examples, width))).astype(np.float32), labels


# ---- Against scikit-learn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_the_probe_is_logistic_regression(penalty: float) -> None:
    (x, y), (queries, truth) = clouds(600), clouds(400, seed=1)
    theirs = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=5000).fit(x, y)
    ours = fit(x, y, penalty, np.ones(600, bool), classes=5, steps=500)
    assert abs(accuracy(ours, queries, truth) - theirs.score(queries, truth)) <= 0.005
    # The biases of a softmax are free to move together; the weights, being penalised, are not.
    np.testing.assert_allclose(np.asarray(ours[0]).T, theirs.coef_, atol=2e-3)


def test_rows_that_a_fit_does_not_see_are_as_if_they_were_not_there() -> None:
    (x, y), seen = clouds(300), np.arange(300) % 3 > 0
    theirs = LogisticRegression(C=1 / (1e-2 * seen.sum()), tol=1e-8, max_iter=5000).fit(x[seen], y[seen])
    np.testing.assert_allclose(np.asarray(fit(x, y, 1e-2, seen, classes=5, steps=500)[0]).T, theirs.coef_, atol=2e-3)


def test_more_features_than_rows_are_turned_and_say_the_same() -> None:
    (x, y), (queries, _) = clouds(40, width=90), clouds(30, seed=1, width=90)
    few, turned = narrowed(x, queries)
    assert few.shape == (40, 40) and turned.shape == (30, 40)
    theirs = LogisticRegression(C=1 / (1e-2 * 40), tol=1e-10, max_iter=5000)
    true = theirs.fit(x.astype(float), y).decision_function(queries)
    # A fit ends at a gradient of 1e-6, so its weights are within 1e-6 / penalty of the best ones; a row is about 17 long.
    for features, rows in ((x, queries), (few, turned)):
        weights, biases = fit(features, y, 1e-2, np.ones(40, bool), classes=5, steps=200)
        logits = rows @ np.asarray(weights) + np.asarray(biases)
        # The biases of a softmax are free to move together.
        centred = [found - found.mean(axis=1, keepdims=True) for found in (logits, true)]
        np.testing.assert_allclose(*centred, atol=2e-3)
    assert narrowed(queries[:, :20], x[:, :20])[0].shape == (30, 20)  # left as they are


@pytest.mark.parametrize("enough", [10, 1_000])
def test_the_penalty_is_the_best_on_rows_that_were_held_out(enough: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal.evaluation.kinds.linear_probe.ENOUGH", enough)
    (x, y), penalties = clouds(120), (1e-4, 1e-2, 0.3, 10.0)
    order = np.random.default_rng(0).permutation(120)
    folds = [order[:12]] if enough == 10 else np.split(order, 3)
    right = [
        sum(
            (
                LogisticRegression(C=1 / (p * len(rest)), tol=1e-8, max_iter=5000)
                .fit(x[rest], y[rest])
                .predict(x[held])
                == y[held]
            ).sum()
            for held in folds
            for rest in [np.setdiff1d(order, held)]
        )
        for p in penalties
    ]
    probe = LinearProbe(source="embedded:emoji", penalties=penalties, steps=500)
    assert probe._penalty(x, y, 5) == penalties[int(np.argmax(right))] and len(set(right)) > 1


@pytest.mark.parametrize("k", [1, 5, 20])
def test_neighbours_vote_as_scikit_learn_counts_them(k: int) -> None:
    (x, y), (queries, _) = clouds(600), clouds(400, seed=1)
    theirs = KNeighborsClassifier(k).fit(x, y).predict(queries)
    np.testing.assert_array_equal(vote(x, y, queries, k=k, classes=5), theirs)


ASKED: dict = dict(source="embedded:emoji", labels=Labels(count=5, classes=tuple("abcde")))


def test_what_is_constant_in_training_has_no_part_in_a_probe() -> None:
    """A pixel of the border, say, that only some pictures of validation use."""
    (x, y), (queries, truth) = clouds(600), clouds(400, seed=1)
    border = np.zeros((400, 4), np.float32) + np.float32(0.1)
    border[::3] = np.random.default_rng(2).random((134, 4))
    x = np.concatenate([x, np.full((600, 4), 0.1, np.float32)], axis=1)
    queries = np.concatenate([queries, border], axis=1)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (1e-2 * 600), tol=1e-8, max_iter=5000)).fit(x, y)
    ours = LinearProbe(penalties=(1e-2,), **ASKED).score(x, y, queries, truth)["value"]
    assert ours == pytest.approx(theirs.score(queries, truth), abs=0.005)


def test_neighbours_are_found_far_from_zero_and_among_rows_of_zeros() -> None:
    (x, y), (queries, truth) = (clouds(n, seed) for seed, n in enumerate((600, 400)))
    moved = [(0.1 * rows + np.array([1000, *[0] * 11])).astype(np.float32) for rows in (x, queries)]
    theirs = KNeighborsClassifier(5, algorithm="brute").fit(moved[0].astype(np.float64), y)
    assert Knn(**ASKED).score(moved[0], y, moved[1], truth)["value"] == theirs.score(moved[1].astype(np.float64), truth)
    x[0] = queries[0] = 0
    theirs = KNeighborsClassifier(5, algorithm="brute", metric="cosine").fit(x, y)
    assert Knn(cosine=True, **ASKED).score(x, y, queries, truth)["value"] == pytest.approx(
        theirs.score(queries, truth), abs=1 / 400
    )


@pytest.mark.parametrize("kind", [LinearProbe, Knn])
def test_a_score_says_which_examples_are_right(kind: Any) -> None:
    (x, y), (queries, truth) = clouds(600), clouds(400, seed=1)
    score = kind(**ASKED).score(x, y, queries, truth)
    theirs = KNeighborsClassifier(5).fit(x, y).predict(queries) == truth
    assert score["value"] == score["correct"].mean() and (kind is LinearProbe or (score["correct"] == theirs).all())
    sums = Each(cast(Any, None), np.arange(400), {"correct": score["correct"]}, share_right)
    low, high = sums.interval()
    exact = binomtest(int(score["correct"].sum()), 400).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.006)
    queries[0] = np.nan
    score = kind(**ASKED).score(x, y, queries, truth)
    assert np.isnan(score["value"]) and np.isnan(score["correct"]).all()


# ---- Retrieval -----------------------------------------------------------------------------------------------------


def test_ranks_in_chunks_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 50, 6))
    similarity = a @ b.T
    wanted = [(similarity[i] >= similarity[i, i]).sum() - 1 for i in range(50)]
    np.testing.assert_array_equal(ranks(a, b), wanted)
    monkeypatch.setattr("unimodal.evaluation.retrieval.CHUNK", 7)
    monkeypatch.setattr("unimodal.evaluation.retrieval.KEYS", 20)
    np.testing.assert_array_equal(ranks(a, b), wanted)


def test_pairs_that_say_the_same_are_no_rivals() -> None:
    embeddings = np.eye(3)[[0, 0, 1, 2]]  # the first two are equal, and say the same
    assert recall(embeddings, embeddings)["recall@1"] == 0.5
    assert recall(embeddings, embeddings, same=np.array([7, 7, 8, 9]))["recall@1"] == 1.0
    tally = Pairs(1)
    codes = np.asarray(row_codes(jnp.asarray([[7, 1, 0], [7, 1, 0], [7, 2, 0], [1, 7, 0]])))
    assert len(set(codes.tolist())) == 3
    tally.add({"first": embeddings, "second": embeddings, "same": codes, "index": np.arange(4)})
    assert tally.score()["value"] == 1.0


@pytest.mark.parametrize("sizes", [[1] * 30, [10, 10, 10], [20, 6, 1, 1, 1, 1], [2] * 15])
def test_chance_is_what_random_embeddings_reach(sizes: list[int]) -> None:
    """Equal texts have equal embeddings, whatever a model has learned."""
    same, rng = np.repeat(np.arange(len(sizes)), sizes), np.random.default_rng(0)
    found = []
    for _ in range(400):
        texts = rng.standard_normal((len(sizes), 4))[same]
        found.append(recall(rng.standard_normal((30, 4)), texts / np.linalg.norm(texts, axis=1)[:, None], (5,), same))
    mean = np.mean([one["recall@5"] for one in found])
    error = np.std([one["recall@5"] for one in found]) / 20
    assert chance_recall(30, 5, same) == pytest.approx(mean, abs=4 * error)
    assert chance_recall(30, 5) == 5 / 30


def test_nan_embeddings_find_nothing() -> None:
    sick = np.full((4, 3), np.nan)
    assert np.isnan(recall(sick, np.eye(4)[:, :3])["recall@1"])
    half = np.eye(4)
    half[2] = np.nan
    assert np.isnan(recall(half, np.eye(4))["recall@5"])


# ---- Classification ------------------------------------------------------------------------------------------------


def test_accuracy_by_hand() -> None:
    logits = jnp.asarray([[3.0, 1, 0], [0, 2, 1], [0, 1, 2], [0, 1, 2]])
    rows = {name: np.asarray(value) for name, value in guesses(logits, jnp.asarray([0, 0, 2, 1])).items()}
    np.testing.assert_array_equal(rows["correct"], [1, 0, 1, 0])
    np.testing.assert_array_equal(rows["best"][1], [1, 2, 0])
    tally = ByClass(3)
    tally.add(rows)
    assert tally.score() == {"value": 0.5, "balanced_accuracy": pytest.approx((1 / 2 + 0 + 1) / 3)}


def test_classes_that_are_as_likely_are_put_in_an_order_by_lot() -> None:
    """So what says the same of every class has the accuracy of chance, not the share of the first."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 50)
    logits = rng.integers(0, 3, (50, 4)).astype(np.float32)  # many are equal
    for k in (1, 2):
        orders = [np.argsort(-(logits + 1e-3 * rng.random(logits.shape)), axis=1)[:, :k] for _ in range(4000)]
        wanted = np.mean([(order == labels[:, None]).any(axis=1) for order in orders], axis=0)
        found = np.asarray(among_the_likeliest(jnp.asarray(logits), jnp.asarray(labels), k))
        np.testing.assert_allclose(found, wanted, atol=0.03)
    assert guesses(jnp.zeros((3, 4)), jnp.asarray([0, 1, 3]))["correct"].tolist() == [0.25, 0.25, 0.25]
    assert guesses(jnp.asarray([[0.0, 1.0]]), jnp.asarray([-1]))["correct"].tolist() == [0]
    assert guesses(jnp.zeros((1, 1)), jnp.asarray([0]))["correct"].tolist() == [1]


@pytest.mark.parametrize(("kind", "changes"), [*((k, {}) for k in tiny.KINDS), ("bert", dict(next_sentence=True))])
def test_sums_make_the_value_and_nan_weights_score_nan(kind: str, changes: dict[str, Any]) -> None:
    """The numbers of examples add up to the value. A model that is all NaN has none: not the share of class 0, and no
    recall of 1."""
    experiment = tiny.build(tiny.plain(kind, **{f"tasks__{kind}__{name}": value for name, value in changes.items()}))
    model = experiment.program.model(experiment.program.init())
    measured = experiment.evaluations[kind].measure(model, experiment.reader, limit=1)
    assert measured.each is not None
    sums = {name: values.astype(np.float64).sum() for name, values in measured.each.columns.items()}
    value = experiment.evaluations[kind].value_of({**sums, "examples": np.float64(len(measured.each.index))})
    assert value == pytest.approx(measured.score["value"], rel=1e-6, nan_ok=True)
    low, high = measured.each.interval()
    assert low <= value <= high or np.isnan(value)
    model = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x, model)
    score = experiment.evaluations[kind].measure(model, experiment.reader, limit=1).score
    assert np.isnan(score["value"]), score
    # Beside the value: what other models would reach, and what collapses; but nothing that is praise.
    known = {
        "chance",
        "common_codes",
        "mean_picture",
        "one_colour",
        "mean_patch",
        "collapsed",
        "code_perplexity",
        "codes_used",
    }
    assert not {name: number for name, number in score.items() if name not in known and number > 0}


# ---- What a config attaches ----------------------------------------------------------------------------------------


def pictures(folder: Path, classes: int = 4, each: int = 6) -> str:
    """A folder of pictures in one colour for each class, in class folders of both splits."""
    for split in ("train", "validation"):
        for k in range(classes):
            place = folder / split / f"class{k}"
            place.mkdir(parents=True)
            for i in range(each):
                colour = np.full((16, 16, 3), [60 * k, 255 - 60 * k, 20 * i], np.uint8)
                Image.fromarray(colour).save(place / f"{i}.png")
    return f"folder:{folder}"


def test_a_limited_evaluation_sees_every_class(tmp_path: Path) -> None:
    """The first examples of a class folder are all of one class: a limit must not stop there."""
    experiment = tiny.build(tiny.plain("vit", tasks__vit__source=pictures(tmp_path, each=16)))
    model = experiment.program.model(experiment.program.init())
    evaluation = experiment.evaluations["vit"]
    rows = experiment.reader.rows(evaluation.predict, model, evaluation.inputs(model).dataset("validation"), 8, limit=2)
    labels = np.concatenate([row["label"] for row in rows])
    assert len(labels) == 16 and set(labels) == {0, 1, 2, 3}


def test_probe_and_neighbours_of_any_source(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    config = tiny.plain("vit", evaluations__probe=dict(kind="linear_probe", source=source, batch_size=8))
    config["evaluations"]["near"] = dict(kind="knn", source=source, k=3, layer=1, batch_size=8)
    config["evaluations"]["other"] = dict(kind="task", task="vit", images=dict(flip=0.0))
    experiment = tiny.build(config)
    model = experiment.program.model(experiment.program.init())
    assert list(experiment.evaluations) == ["vit", "probe", "near", "other"]
    for name in ("probe", "near"):
        evaluation = experiment.evaluations[name]
        measured = evaluation.measure(model, experiment.reader)
        assert measured.score["value"] == 1.0  # one colour for each class
        assert evaluation.baseline({"value": 0.1}) == (0.25, "majority class")
        assert "correct" not in measured.score and measured.each.interval() == (1.0, 1.0)
        assert len(measured.each.ids()) == 24


def test_a_run_opens_and_decodes_each_split_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run reads what has changed since."""
    source, read, checked = pictures(tmp_path), [], []
    config = tiny.plain("vit", tasks__vit__source=source, tasks__vit__batch_size=8)
    config["evaluations"] = {"near": dict(kind="knn", source=source, k=1, batch_size=8)}
    real, check = images.open_picture, Labels.check
    monkeypatch.setattr(images, "open_picture", lambda *a, **k: read.append(k["name"]) or real(*a, **k))
    monkeypatch.setattr(Labels, "check", lambda self, of, *a: checked.append(of) or check(self, of, *a))
    experiment = tiny.build(config)
    model = experiment.program.model(experiment.program.init())
    for _ in range(2):
        for evaluation in experiment.evaluations.values():
            evaluation.measure(model, experiment.reader)
        for task in experiment.tasks:
            experiment.train_batches(task)
    names = {f"{split}/class{k}/{i}.png" for split in ("train", "validation") for k in range(4) for i in range(6)}
    assert set(read) == names
    assert all(read.count(name) == 2 for name in names if name.startswith("validation"))  # of task and neighbours
    assert len(checked) == 2
    for path in tmp_path.glob("validation/*/*.png"):
        Image.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(path)
    again = tiny.build(config)
    batch = again.evaluations["vit"].measure(model, again.reader).shown.batch  # pyright: ignore[reportOptionalMemberAccess]
    np.testing.assert_allclose(batch["image"], 7 / 127.5 - 1, atol=1e-6)


def test_evaluations_of_the_same_features_share_them(tmp_path: Path) -> None:
    """And only these: not of another layer, not after weights have changed, in place or not, and not if they are many."""
    config = tiny.plain("vit")
    asked = dict(source=pictures(tmp_path), batch_size=8)
    config["evaluations"] = {
        "probe": dict(kind="linear_probe", **asked),
        "near": dict(kind="knn", k=3, **asked),
        "deep": dict(kind="knn", k=3, layer=1, **asked),
    }
    experiment = tiny.build(config)
    model, reader, made = experiment.program.model(experiment.program.init()), experiment.reader, []
    real = reader.rows
    reader.rows = lambda *a, **k: made.append(1) or real(*a, **k)

    def scored(*names: str) -> tuple[list[dict[str, float]], int]:
        made.clear()
        scores = [dict(experiment.evaluations[name].measure(model, reader).score) for name in names]
        return scores, len(made)

    (_, near), count = scored("probe", "near")
    assert count == 2  # a training split and one for validation
    assert scored("deep")[1] == 2
    assert scored("near", "probe")[1] == 0
    table = model.tokenizers["image"].projection.kernel
    table.set_value(table.get_value() * jnp.nan)
    (after,), count = scored("near")
    assert count == 2 and near["value"] == 1.0 and np.isnan(after["value"])
    alone = experiment.evaluations["near"].measure(model, MeshReader(experiment.mesh))
    assert np.isnan(alone.score["value"])


def test_features_beyond_what_is_kept_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal.evaluation.run.MOST_KEPT", 100)
    reader, model = MeshReader(jax.make_mesh((1,), ("data",))), {}
    sizes: list[int] = []

    def make(size: int) -> tuple[np.ndarray, ...]:
        sizes.append(size)
        return (np.zeros(size, np.uint8),)

    for name, size in (("a", 60), ("b", 50), ("c", 40), ("a", 60), ("b", 50), ("c", 40)):
        assert len(reader.once(name, cast(Any, model), lambda size=size: make(size))[0]) == size
    assert sizes == [60, 50, 40, 50]


def test_raw_pixels_are_a_baseline_that_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.plain(
        "vit", evaluations__near=dict(kind="knn", source=pictures(tmp_path), k=1, batch_size=8, raw=True)
    )
    experiment = tiny.build(config)
    model, evaluation = experiment.program.model(experiment.program.init()), experiment.evaluations["near"]
    score = evaluation.measure(model, experiment.reader).score
    assert score["raw_pixels"] == 1.0  # one colour for each class
    assert evaluation.baseline({"value": 0.1, "raw_pixels": 0.7}) == (0.7, "raw pixels")
    monkeypatch.setattr("unimodal.evaluation.features.pixels", None)
    assert evaluation.measure(model, experiment.reader).score == score
    monkeypatch.undo()
    texts = tiny.plain("gpt", evaluations__near=dict(kind="knn", source="embedded:emoji", tokenizer="text", raw=True))
    texts["evaluations"]["near"]["texts"] = dict(column="name", length=16)
    experiment = tiny.build(texts)
    model, evaluation = experiment.program.model(experiment.program.init()), experiment.evaluations["near"]
    with pytest.raises(UsageError, match="these examples have none"):
        evaluation.measure(model, experiment.reader, limit=1)


def test_pixels_of_another_size_are_scored_anew() -> None:
    class Sized(Knn):
        def _scored(self, embed: Any, model: Any, reader: Any, limit: int | None) -> tuple[dict[str, Any], np.ndarray]:
            return {"value": model.tokenizers["image"].config.image_size[0]}, np.arange(0)

    evaluation, reader = Sized(raw=True, **ASKED), cast(Any, None)
    for side in (16, 32):
        model: Any = SimpleNamespace(tokenizers={"image": SimpleNamespace(config=image.Config((side, side), 8))})
        assert evaluation.measure(model, reader).score["raw_pixels"] == side


def test_a_run_scores_what_is_attached(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures")
    (code, _, err), (again, _, said) = tiny.launches(
        [
            [
                "train",
                "--config=configs/vit.py:size=tiny",
                f"--workdir={tmp_path / 'run'}",
                f"--config.tasks.vit.source={source}",
                "--config.tasks.vit.batch_size=8",
                "--config.steps=2",
                "--config.evaluations.near.kind=knn",
                f"--config.evaluations.near.source={source}",
                "--config.evaluations.near.k=3",
            ],
            ["train", "--config=configs/vit.py:size=tiny", "--dry_run", "--config.tasks.vit.images.flipp=1"],
        ],
        _made(tmp_path / "scratch"),
        devices=1,
    )
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tasks"]["vit"]["baseline"] == 0.25
    assert results["tasks"]["near"]["metric"] == "accuracy" and results["tasks"]["near"]["value"] == 1.0
    assert results["tasks"]["near"]["baseline"] == 1.0  # colours this far apart need no training
    assert again == 2 and "flipp" in said and "flip" in said and said.count("\n") == 1


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(kind="knnn", source="embedded:emoji"), r"no evaluation of kind 'knnn'; did you mean knn\?"),
        (dict(kind="knn"), r"evaluations\.new\.source is missing"),
        (dict(kind="knn", source="embedded:emoji", kk=3), r"unknown config field evaluations\.new\.kk"),
        (dict(kind="knn", source="embedded:emoji", pooling="max"), r"new\.pooling must be one of mean, first, last"),
        (dict(kind="knn", source="embedded:emoji", tokenizer="picture"), r"new\.tokenizer='picture' is not among"),
        (dict(kind="task", task="vitt"), r"evaluations\.new\.task='vitt' is none of the tasks; did you mean vit\?"),
        (
            dict(kind="task", task="vit", images=dict(flipp=0.1)),
            r"unknown config field evaluations\.new\.images\.flipp; did you mean flip\?",
        ),
    ],
)
def test_wrong_evaluations_are_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        tiny.build(tiny.plain("vit", evaluations__new=fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(kind="knn", source="embedded:book"), "has no column for a class: none of label, .*; it has text, title"),
        (dict(kind="knn", source="embedded:emoji", labels=dict(column="kind")), "no column 'kind' for a class; it has"),
        (dict(kind="knn", source="embedded:emoji", k=0, batch_size=64), "new.k must be 1 … 1105"),
    ],
)
def test_data_that_does_not_suit_is_one_line(fields: dict[str, Any], says: str) -> None:
    experiment = tiny.build(tiny.plain("vit", evaluations__new=fields))
    model = experiment.program.model(experiment.program.init())
    with pytest.raises(UsageError, match=says):
        experiment.evaluations["new"].measure(model, experiment.reader)


@pytest.mark.parametrize("there", [dict(), dict(evaluations=dict()), dict(evaluations=dict(new=dict(kind="task")))])
def test_a_command_line_attaches_an_evaluation(there: dict[str, Any]) -> None:
    from ml_collections import ConfigDict

    from unimodal.command.recipe import as_plain, change

    config = ConfigDict(there).lock()  # as recipes are
    for field, text in (("kind", "knn"), ("source", "folder:photos"), ("k", "3"), ("labels.column", "species")):
        change(config, f"evaluations.new.{field}", text)
    new = dict(kind="knn", source="folder:photos", k=3, labels=dict(column="species"))
    assert as_plain(config) == dict(evaluations=dict(new=new))


def test_a_field_of_a_value_is_one_line() -> None:
    from ml_collections import ConfigDict

    from unimodal.command.recipe import change

    with pytest.raises(UsageError, match=r"evaluations\.new\.kind is a value"):
        change(ConfigDict(dict(evaluations=dict(new=dict(kind="knn")))), "evaluations.new.kind.k", "3")


def test_probes_that_cannot_be_scored_are_refused_before_training() -> None:
    for fields in (dict(penalties=()), dict(penalties=(0.1, -1.0)), dict(steps=0)):
        with pytest.raises(UsageError, match="evaluations.features: penalties must be one number or more"):
            LinearProbe(source="embedded:emoji", **fields)  # type: ignore[arg-type]
    rows = len(Labels().known("embedded:emoji", "train"))
    Knn(source="embedded:emoji", k=rows).check()
    for k in (0, rows + 1):
        with pytest.raises(UsageError, match=rf"features.k must be 1 … {rows} \(the training rows\), but is {k}"):
            Knn(source="embedded:emoji", k=k).check()


def test_what_chance_finds_for_certain_is_all() -> None:
    for same in ([0, 0, 0, 0], [0, 0, 1], [0, 1, 1, 2, 2]):
        assert chance_recall(len(same), 5, np.array(same)) == 1.0
