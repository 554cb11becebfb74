"""Runs in a ledger: what goes in comes out, what a commit did to each task is told, and a run commits itself."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import used

import launch
from unimodal.command.ledger import run_ledger
from unimodal.data import open_source, write_array_record
from unimodal.errors import UsageError
from unimodal.evaluation.bootstrap import drawn_values, interval
from unimodal.history import runs, words
from unimodal.history.effects import Effect, effect, effects
from unimodal.history.graph import lanes
from unimodal.history.measure import Measurement, Measuring
from unimodal.history.page import Step, write_page
from unimodal.history.search import best_scale, bisect, lead
from unimodal.history.weights import of_checkpoint, of_state
from unimodal.ledger import Commit, Draft, Ledger, changes, compare
from unimodal.ledger.start import pinned, start_from_ledger
from unimodal.training.checkpoint import Checkpoints, named

SMALL = dict(
    tokenizers=dict(image=dict(image_size=(8, 8), patch=4)),
    backbones=dict(shared=dict(width=16, depth=1, heads=2)),
    steps=4,
    log_every=2,
)


RECIPE = f"""
from ml_collections import ConfigDict
from configs import common


def get_config():
    config = common.base()
    for name, fields in {SMALL!r}.items():
        config[name] = ConfigDict(fields) if isinstance(fields, dict) else fields
    config.tasks.vit = dict(batch_size=8)
    return config
"""


def config(**changes: Any) -> dict[str, Any]:
    return {**tiny.plain("vit"), **SMALL, **changes}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a classifier with an average, as it begins."""
    folder = tmp_path_factory.mktemp("runs") / "vit"
    used.workdir(folder, config(ema=0.9))
    return folder


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger")


def shaken(
    commit: Commit, seed: int, size: float, *names: str, message: str = "shaken", branch: str = "main"
) -> Commit:
    """Commit the weights with noise on the tensors in whose names one of `names` is found."""
    rng, ledger, tensors = np.random.default_rng(seed), commit.ledger, commit.manifest.tensors
    with ledger.writing():
        fresh = ledger.add(
            (n, commit.read(n) + rng.normal(size=e.shape).astype(np.float32) * np.float32(size), e.axes)
            for n, e in tensors.items()
            if any(part in n for part in names)
        )
        manifest = dataclasses.replace(commit.manifest, tensors={**tensors, **fresh})
        files = {path: text for path, text in commit.draft.files.items() if not path.startswith("scores")}
        return ledger.record(Draft(manifest, files), message, branch)


# --- in and out ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_in_and_comes_out(ledger: Ledger, workdir: Path, tmp_path: Path) -> None:
    made = runs.commit(ledger, str(workdir), "begun", "main")
    assert made.manifest.step == 0 and made.manifest.data["vit"]["source"] == "embedded:emoji"
    kernel = made.manifest.tensors["parameters.tokenizers.image.projection.kernel"]
    assert kernel.axes == ("patch", "embed") and kernel.spelt == "float32[48, 16]"
    assert not [name for name in made.manifest.tensors if name.startswith("optimizer")]
    back = runs.checkout(made, str(tmp_path / "back"))
    experiment = tiny.build(json.loads((back / "config.json").read_text()))
    there, here = (of_checkpoint(experiment, path, 0) for path in (workdir, back))
    assert there.keys() == here.keys() == made.manifest.tensors.keys()
    for name in there:
        np.testing.assert_array_equal(there[name], here[name])
    with Checkpoints(back) as checkpoints:  # with moments, so that it can be trained and evaluated
        checkpoints.restore(experiment.program.abstract_state())
    with pytest.raises(UsageError, match="these very weights already"):
        runs.commit(ledger, str(workdir), "again", "main")
    with pytest.raises(UsageError, match="is not empty; give a new folder"):
        runs.checkout(made, str(back))


def test_the_learning_rate_of_a_checkout_goes_on_from_its_step(ledger: Ledger, workdir: Path, tmp_path: Path) -> None:
    made = runs.commit(ledger, str(workdir), "begun", "main")
    with ledger.writing():  # as if it had been trained for three steps
        later = ledger.record(Draft(dataclasses.replace(made.manifest, step=3), made.draft.files), "later", "main")
    back = runs.checkout(later, str(tmp_path / "back"))
    experiment = tiny.build(json.loads((back / "config.json").read_text()))
    with Checkpoints(back) as checkpoints:
        state, _, _ = checkpoints.restore(experiment.program.abstract_state())
    assert int(state.step) == 3
    assert int(state.optimizer.step) == 3  # from which the schedule is read


def test_vocabularies_of_a_workdir_come_along(ledger: Ledger, workdir: Path, tmp_path: Path) -> None:
    own = shutil.copytree(workdir, tmp_path / "own")
    (own / "encoders" / "0").mkdir(parents=True)
    (own / "encoders" / "0" / "vocab.txt").write_text("a\nb\n")
    digest = hashlib.sha256(b"a\nb\n").hexdigest()
    index = {"/gone/vocab.txt": {"file": "0/vocab.txt", "sha256": {"vocab.txt": digest}}}
    (own / "encoders" / "index.json").write_text(json.dumps(index))
    made = runs.commit(ledger, str(own), "with a vocabulary", "main")
    back = runs.checkout(made, str(tmp_path / "back"))
    assert (back / "encoders" / "0" / "vocab.txt").read_text() == "a\nb\n"
    (own / "encoders" / "0" / "vocab.txt").write_text("b\n")
    with pytest.raises(UsageError, match="is missing or was changed"):
        runs.commit(ledger, str(own), "with another", "main")


def test_parameters_of_an_optimizer_with_an_average_are_that_average() -> None:
    experiment = tiny.build(config(optimizer=dict(name="schedule_free", learning_rate=0.1)))
    state = experiment.program.init()
    moved = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.floating) else x, state.optimizer)
    state = dataclasses.replace(state, optimizer=moved)
    seen = named(jax.tree.leaves(experiment.program.model(state), is_leaf=lambda _: True)[0])
    for name, array in of_state(state).items():
        if name.startswith("parameters."):
            np.testing.assert_array_equal(array, seen[name.removeprefix("parameters.")])


def test_a_published_checkpoint_goes_in_and_comes_out(ledger: Ledger, tmp_path: Path) -> None:
    source = Path(__file__).parent / "reference" / "interop" / "vit_classifier"
    made = runs.commit(ledger, str(source), "published", "main")
    assert made.manifest.source == "huggingface"
    back = runs.checkout(made, str(tmp_path / "back"))
    from safetensors.numpy import load_file

    a, b = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    assert (back / "config.json").read_text() == (source / "config.json").read_text()
    with pytest.raises(UsageError, match="published checkpoint without tasks"):
        Measuring(ledger).of_commit(made)
    with pytest.raises(UsageError, match="is a published checkpoint: `ledger checkout`"):
        start_from_ledger(f"ledger:{ledger.path}@main", {})


def test_what_is_no_run_is_refused(ledger: Ledger, workdir: Path, tmp_path: Path) -> None:
    for path, options, message in (
        (tmp_path, {}, "neither a workdir with checkpoints nor"),
        (workdir, dict(step=7), "no checkpoint of step 7, only of 0"),
        (tmp_path, dict(step=7), "is no workdir with checkpoints, so it has no step 7"),
    ):
        with pytest.raises(UsageError, match=message):
            runs.commit(ledger, str(path), "m", "main", **options)
    with pytest.raises(UsageError, match="needs a message"):
        runs.commit(ledger, str(workdir), "", "main")
    assert ledger.heads() == {} and ledger.store.listed() == ({}, [])


# --- a run that commits itself, and one that starts from a commit ---------------------------------------------------------


def test_a_run_commits_itself_and_another_starts_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, path, recipe = tmp_path / "first", tmp_path / "ledger", tmp_path / "small.py"
    recipe.write_text(RECIPE)
    given = ["--config.steps=4", "--config.log_every=2", "--config.mesh.data=1", "--fake_data"]
    given += ["--config.optimizer.name=sgd"]  # compiled in a moment
    own = [f"--config.ledger={path}", "--config.commit_every=2", f"--config={recipe}"]
    assert launch.main(["launch.py", "train", f"--workdir={first}", *own, *given]) == 0
    ledger = Ledger(path)
    commits = ledger.history(["main"])
    assert [commit.manifest.step for commit in commits] == [4, 2]
    assert commits[0].manifest.data["vit"]["position"]["next_index"] == 4
    config = json.loads((first / "config.json").read_text())
    saved = of_checkpoint(tiny.build(config), first, 4)
    for name, array in saved.items():
        np.testing.assert_array_equal(commits[0].read(name), array)
    # The same command finds everything done, and commits nothing twice.
    assert launch.main(["launch.py", "train", f"--workdir={first}", *own, *given]) == 0
    assert len(ledger.history()) == 2

    second = tmp_path / "second"
    start = f"--config.init_from=ledger:{path}@main~1"
    assert launch.main(["launch.py", "train", f"--workdir={second}", own[-1], *given, start]) == 0
    assert f"commit {commits[1].short} (first after step 2)" in capfd.readouterr().out
    kept = json.loads((second / "config.json").read_text())["init_from"]
    assert kept == f"ledger:{path}@main~1={commits[1].id}"
    # main moves on, but the run goes on as the one that it was.
    shaken(commits[0], 0, 0.1, "classify")
    assert launch.main(["launch.py", "train", f"--workdir={second}", own[-1], *given, start]) == 0


def test_starting_from_a_commit(ledger: Ledger, workdir: Path) -> None:
    made = runs.commit(ledger, str(workdir), "begun", "main")
    experiment = tiny.build(config(init_from=f"ledger:{ledger.path}@main", ema=0.9, seed=1))
    state = experiment.program.init()
    for name, array in of_state(state).items():
        if name.startswith("parameters."):
            np.testing.assert_array_equal(array, made.read(name))
    slips: dict[str, dict[str, Any]] = {
        "classify.linear.bias is float32[2] in the model": dict(
            tasks=dict(vit=dict(batch_size=8, labels=dict(classes=("a", "b"))))
        ),
        "has no branch, tag or commit 'mian'; did you mean main?": dict(init_from=f"ledger:{ledger.path}@mian"),
        "is no ledger": dict(init_from=f"ledger:{workdir}@main"),
        "should be ledger:PATH@REF": dict(init_from=f"ledger:{ledger.path}"),
    }
    for message, changed in slips.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            assert tiny.build(config(**{"init_from": f"ledger:{ledger.path}@main", **changed})).start
    with pytest.raises(UsageError, match="commit_every=3 needs a ledger"):
        tiny.build(config(commit_every=3))
    address = f"ledger:{ledger.path}@main"
    assert pinned({"init_from": address}, None)["init_from"] == f"{address}={made.id}"
    assert pinned({"init_from": address}, {"init_from": f"{address}={'0' * 40}"})["init_from"].endswith("0" * 40)
    assert pinned({"init_from": "runs/a"}, None) == {"init_from": "runs/a"}


# --- effects ------------------------------------------------------------------------------------------------------------


def answers(values: Any, ids: Any = None) -> Measurement:
    values = np.asarray(values, np.float64)
    names = tuple(map(str, range(len(values)))) if ids is None else tuple(ids)
    return Measurement("accuracy", float(values.mean()), True, names, {"correct": values})


def accuracy(sums: Mapping[str, Any]) -> float:
    return float(sums["correct"] / sums["examples"])


def test_the_interval_is_that_of_a_paired_bootstrap() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    before = rng.random(300) < 0.6
    after = np.where(rng.random(300) < 0.15, ~before, before)
    found = effect("x", answers(before), answers(after), accuracy)
    theirs = bootstrap(
        (after.astype(float) - before,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == (pytest.approx(theirs.low, abs=0.005), pytest.approx(theirs.high, abs=0.005))
    # Unpaired, the interval would be three times as wide.
    assert found.high - found.low < 0.1


def test_groups_of_many_examples_have_the_interval_of_examples() -> None:
    """Beyond so many examples, groups are drawn: for a share of 0.3 of 40,000, about 1.96 standard errors each way."""
    right = np.random.default_rng(0).random(40_000) < 0.3
    low, high = interval(drawn_values([{"correct": right}], accuracy)[:, 0])
    error = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    assert (low, high) == pytest.approx((right.mean() - error, right.mean() + error), abs=0.1 * error)


def test_examples_are_paired_by_their_ids() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(50), rng.random(50)
    order = rng.permutation(50)
    one = effect("x", answers(before), answers(after), accuracy)
    other = effect("x", answers(before), answers(after[order], map(str, order)), accuracy)
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    none = effect("x", answers(before), answers(after, [f"b{i}" for i in range(50)]), accuracy)
    assert np.isnan(none.low) and none.verdict == "unclear" and none.examples == 0
    assert words.interval(none) == "none: 0 of 100 examples are shared"


def test_a_change_is_of_the_examples_that_both_were_asked() -> None:
    """Validation grew by hard examples: 20 more of the old ones are right, though the whole value is lower."""
    before = (np.random.default_rng(0).random(400) < 0.6).astype(float)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:20]] = 1
    grown = np.concatenate([after, np.zeros(60)])
    assert grown.mean() < before.mean()
    for old, new, verdict in ((before, grown, "gained"), (grown, before, "lost")):
        found = effect("x", answers(old), answers(new), accuracy)
        assert (found.before, found.after) == (pytest.approx(old[:400].mean()), pytest.approx(new[:400].mean()))
        assert found.verdict == verdict and abs(found.change) == pytest.approx(0.05)
        assert "(400 of 460 examples)" in words.interval(found)


def test_two_metrics_are_not_compared() -> None:
    right = np.random.default_rng(0).random(100)
    before, after = answers(right), dataclasses.replace(answers(right / 2), metric="recall@1")
    found = effect("x", before, after, accuracy)
    assert found.verdict == "incomparable" and np.isnan(found.change) and np.isnan(found.gain)
    (_, line) = words.effect_lines([found])
    assert "accuracy → recall@1" in line and "gained" not in line and "lost" not in line
    assert words.summary([found]) == "incomparable: x"
    other = dataclasses.replace(before, higher_is_better=False)
    assert effect("x", before, other, accuracy).metric == "accuracy ↑ → accuracy ↓"


@pytest.mark.parametrize(
    ("before", "after", "low", "high", "verdict"),
    [
        (0.1, 0.5, 0.3, 0.5, "gained"),
        (0.5, 0.1, -0.5, -0.3, "lost"),
        (0.5, 0.4, -0.3, 0.1, "unclear"),
        (0.5, 0.5, 0.0, 0.0, "same"),
        (0.5, 0.5, -0.1, 0.1, "unclear"),
        (0.5, float("nan"), float("nan"), float("nan"), "lost"),
    ],
)
def test_verdicts(before: float, after: float, low: float, high: float, verdict: str) -> None:
    assert Effect("x", "m", True, before, after, low, high, 9).verdict == verdict
    if verdict in ("gained", "lost") and after == after:
        other = {"gained": "lost", "lost": "gained"}[verdict]
        assert Effect("x", "m", False, before, after, low, high, 9).verdict == other


@pytest.fixture(scope="module")
def story(workdir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, Measuring, list[Commit]]:
    """Five commits: the head is moved slightly, then ruined, then moved slightly again."""
    ledger = Ledger.create(tmp_path_factory.mktemp("story") / "ledger")
    commits = [runs.commit(ledger, str(workdir), "begun", "main")]
    for seed, size in enumerate((1e-4, 30.0, 1e-4, 1e-4)):
        commits.append(shaken(commits[-1], seed, size, "classify.linear.kernel", message=f"commit {seed}"))
    return ledger, Measuring(ledger), commits


def test_effects_agree_with_the_evaluation_itself(story: tuple[Ledger, Measuring, list[Commit]]) -> None:
    _, measuring, commits = story
    (found,) = effects(measuring, commits[0], commits[2])
    from unimodal.history.weights import model_of

    for commit, value in ((commits[0], found.before), (commits[2], found.after)):
        experiment = measuring.experiment(commit.draft, "")
        model = model_of(experiment, commit.manifest.tensors, commit.ledger.store, "")
        score = experiment.evaluations["vit"].measure(model, experiment.reader).score
        assert score["value"] == value
    assert found.examples == 152 and found.low <= found.change <= found.high
    # It is asked once: another reader finds it beside the ledger, and a damaged answer is asked for again.
    again = Measuring(commits[0].ledger)
    assert again.known(commits[0])["vit"].value == found.before
    for path in (commits[0].ledger.path / "measured").iterdir():
        path.write_text(path.read_text()[:-40])
    assert again.known(commits[0]) == {}
    assert again.of_commit(commits[0])["vit"].value == found.before


def test_bisect_finds_the_commit(story: tuple[Ledger, Measuring, list[Commit]]) -> None:
    ledger, measuring, commits = story
    values = [measuring.of_commit(commit)["vit"].value for commit in commits]
    sign = 1 if values[0] > values[2] else -1  # of random weights either may be the better
    good, bad = (commits[0], commits[-1]) if sign > 0 else (commits[-1], commits[0])
    if sign > 0:
        found = bisect(measuring, good.id, bad.id, "vit")
        assert found.commit.id == commits[2].id and found.asked <= 5
        assert [e.name for e in found.effects] == ["vit"]
    with pytest.raises(UsageError, match="nothing broke between them|does not come from"):
        bisect(measuring, commits[-1].id, commits[-1].id, "vit")
    with pytest.raises(UsageError, match="has no evaluation 'vitt'; did you mean vit?"):
        bisect(measuring, good.id, bad.id, "vitt")
    with pytest.raises(UsageError, match="does not come from"):
        bisect(measuring, commits[-1].id, commits[0].id, "vit")


@pytest.mark.parametrize("higher", [True, False])
def test_bisect_finds_where_a_value_became_nan(ledger: Ledger, higher: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.5, 0.1, 0.4, np.nan, np.nan]
    commits = [
        SimpleNamespace(id=str(i), short=str(i), subject="", parents=[str(i - 1)] if i else []) for i in range(5)
    ]
    measured = lambda commit, only: {"vit": Measurement("accuracy", values[int(commit.id)], higher)}  # noqa: E731
    measuring: Any = SimpleNamespace(ledger=SimpleNamespace(commit=lambda ref: commits[int(ref)]), of_commit=measured)
    monkeypatch.setattr("unimodal.history.search.effects", lambda *_: [])
    assert bisect(measuring, "0", "4", "vit").commit.id == "3"
    assert bisect(measuring, "0", "4", "vit", 0.45 if higher else 0.6).asked == 4
    with pytest.raises(UsageError, match="nothing broke between them"):
        bisect(measuring, "3", "4", "vit")


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
def test_no_commit_is_scaled_by_what_is_no_number(ledger: Ledger, scale: str) -> None:
    for command in ("cherry-pick", "merge"):
        with pytest.raises(UsageError, match=f"--scale must be a number, but is '{scale}'"):
            run_ledger([command, str(ledger.path), "main", f"--scale={scale}"], "unimodal")


def test_a_scale_is_not_searched_without_evaluations() -> None:
    commit: Any = SimpleNamespace(draft=None, short="a")
    with pytest.raises(UsageError, match="no evaluation by which a scale could be searched"):
        best_scale(SimpleNamespace(names=lambda *_: []), [commit], None, changes.Merging(), [0.5])  # pyright: ignore[reportArgumentType]


def test_the_scale_of_a_merge_is_searched_on_half_of_validation(
    workdir: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    # An untrained model says the same of every class, and so has chance's accuracy in any half.
    base = shaken(runs.commit(ledger, str(workdir), "begun", "main"), 3, 0.5, "classify.linear.kernel")
    ledger.branch("other", "main")
    one = shaken(base, 1, 0.01, "classify.linear.kernel")
    other = shaken(base, 2, 0.01, "projection.kernel", branch="other")
    measuring = Measuring(ledger)
    found = best_scale(measuring, [one, other], base, changes.Merging(), [0.0, 0.5, 1.0])
    means = {one.scale: one.mean for one in found.tried}
    assert list(means) == [0.0, 0.5, 1.0] and means[found.scale] == max(means.values())
    # Every second example chooses, and the others tell what it came to.
    right = measuring.of_commit(base)["vit"].columns["correct"]
    assert found.tried[0].values["vit"] == right[::2].mean() != right[1::2].mean() and found.whole == []
    assert run_ledger(["merge", str(ledger.path), "other", "--search=0.5,1"], "unimodal") == 0
    said = capsys.readouterr().out
    assert "(76 of 152 examples)" in said and "vit: scale" in said and "chosen on every second example" in said
    old, new = (measuring.of_commit(ledger.commit(ref))["vit"].columns["correct"][1::2] for ref in ("main~1", "main"))
    (told,) = effects(measuring, ledger.commit("main~1"), ledger.commit("main"), unseen=True)
    assert (told.before, told.after, told.examples, told.asked) == (old.mean(), new.mean(), 76, 152)
    with pytest.raises(UsageError, match="fisher has no scale to search"):
        best_scale(measuring, [one, other], base, changes.Merging("fisher"), [1.0])


def test_evaluations_of_every_branch_choose_the_scale(workdir: Path, ledger: Ledger) -> None:
    """Without numbers of single examples they choose by all of validation, which is said."""
    base = runs.commit(ledger, str(workdir), "begun", "main")
    ledger.branch("other", "main")
    one = shaken(base, 1, 0.01, "classify.linear.kernel")
    other = shaken(base, 2, 0.5, "projection.kernel", branch="other")

    def asking(commit: Commit, **evaluations: Any) -> Commit:
        told = {**json.loads(commit.draft.files["config.json"]), "evaluations": evaluations}
        files = {**commit.draft.files, "config.json": json.dumps(told).encode()}
        return ledger.record(Draft(commit.manifest, files), "asks for more", "other")

    other = asking(other, rank=dict(kind="effective_rank", source="embedded:emoji"))
    measuring = Measuring(ledger)
    found = best_scale(measuring, [one, other], base, changes.Merging(), [0.0, 1.0])
    assert all(list(each.values) == ["vit", "rank"] for each in found.tried) and found.whole == ["rank"]
    assert found.tried[0].values["rank"] != found.tried[1].values["rank"]
    assert words.search_lines(1.0, ["vit", "rank"], found.whole)[1].startswith("rank: scale 1 was chosen by these very")
    # Another metric of the same name is not compared.
    accuracy_of = asking(other, rank=dict(kind="task", task="vit"))
    (_, told) = effects(measuring, other, accuracy_of)
    assert (told.name, told.metric, told.verdict) == ("rank", "effective rank → accuracy", "incomparable")
    with pytest.raises(UsageError, match=r"rank is effective rank at \w+ and accuracy at \w+, which do not compare"):
        bisect(measuring, other.id, accuracy_of.id, "rank")


@pytest.mark.parametrize(
    ("higher", "base", "alone", "values"),
    [
        (True, 0.5, (0.8, 0.7), (0.2, 0.6, 0.8, 0.9)),
        (True, -0.5, (-0.1, -0.3), (-0.4, -0.2, -0.05, 0.1)),  # a rank correlation
        (True, 0.0, (0.0, 0.0), (-0.1, 0.0, 0.2)),
        (False, 0.4, (0.0, 0.3), (0.5, 0.3, 0.1, 0.0)),  # an error rate, whose best is 0
        (False, 0.0, (0.0, 0.0), (0.5, 0.1, 0.0)),
        (False, 4.0, (3.0, 3.5), (4.5, 3.2, 3.0, 2.9)),
    ],
)
def test_a_better_merge_leads_by_more(
    higher: bool, base: float, alone: tuple[float, ...], values: tuple[float, ...]
) -> None:
    """Values from the worst to the best."""
    of = lambda value: Measurement("m", value, higher)  # noqa: E731
    leads = [lead(of(value), [of(each) for each in alone], of(base)) for value in values]
    assert all(a < b for a, b in itertools.pairwise(leads))
    best = max(alone) if higher else min(alone)
    assert lead(of(best), [of(each) for each in (*alone, float("nan"))], of(base)) == 0
    if higher and base > 0:  # the normalised accuracy of Ilharco 2023, less one
        np.testing.assert_allclose(leads, [value / best - 1 for value in values])


def test_changed_data_is_measured_anew(tmp_path: Path, ledger: Ledger) -> None:
    """Labels are corrected, then validation grows: neither what is kept nor what was committed is of the data of now."""
    emoji = open_source("embedded:emoji", "validation")
    records = [{name: emoji[i][name] for name in ("id", "image", "label")} for i in range(24)]

    def write(count: int, label: int | None) -> None:
        for split in ("train", "validation"):
            path = tmp_path / "data" / f"{split}.array_record"
            path.unlink(missing_ok=True)
            write_array_record(path, [r if label is None else {**r, "label": label} for r in records[:count]])

    (tmp_path / "data").mkdir()
    write(20, None)
    source = dict(source=f"array_record:{tmp_path / 'data'}", labels=dict(count=9))
    used.workdir(tmp_path / "run", config(tasks=dict(vit=dict(batch_size=8, **source))))
    before = runs.commit(ledger, str(tmp_path / "run"), "m", "main", finish=Measuring(ledger).scored)
    after = shaken(before, 0, 30.0, "classify.linear.kernel")
    values = [Measuring(ledger).of_commit(before)["vit"]]
    for count, label in ((20, 3), (24, 3)):
        write(count, label)
        assert Measuring(ledger).known(before) == {}
        values.append(Measuring(ledger).of_commit(before)["vit"])
        assert list(Measuring(ledger).known(before)) == ["vit"]
        (found,) = effects(Measuring(ledger), before, after)
        assert (found.examples, found.asked) == (count, count)
    assert len({one.data for one in values}) == 3 and [len(one.ids) for one in values] == [20, 20, 24]
    # Where there is no data, what was known of it stands.
    shutil.rmtree(tmp_path / "data")
    assert Measuring(ledger).known(before)["vit"].data == values[0].data  # as committed


def test_the_page_escapes_and_shows_all(story: tuple[Ledger, Measuring, list[Commit]], tmp_path: Path) -> None:
    ledger, measuring, commits = story
    nasty = shaken(commits[-1], 9, 0.01, "classify", message="<script>alert(1)</script>\n\n<b>why</b>", branch="nasty")
    found = effects(measuring, commits[-1], nasty)
    step = Step(nasty, ["<i>"], measuring.known(nasty), found, compare.changes(commits[-1], nasty))
    page = write_page(tmp_path / "page.html", "<h1>", [step, Step(commits[-1])], {"<dt>": "<dd>"}).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>why" not in page and "<i>" not in page
    assert "http" not in page.replace("http-equiv", "") and "classify.linear.kernel" in page
    assert words.interval(found[0]).split(" (")[0] in page


def test_lanes_of_a_graph() -> None:
    make = lambda name, *parents: Commit(None, name, parents, "", "", 0, "")  # noqa: E731
    commits = [make("m", "b", "x"), make("x", "a"), make("b", "a"), make("a")]
    where, lines = lanes(commits)
    assert where == [0, 1, 0, 0]
    assert {(line.row, line.lane, line.to_row, line.to_lane) for line in lines} == {
        (0, 0, 2, 0),
        (0, 0, 1, 1),
        (1, 1, 3, 0),
        (2, 0, 3, 0),
    }


# --- the command --------------------------------------------------------------------------------------------------------


def test_slips_of_the_command_are_one_line(ledger: Ledger, workdir: Path, tmp_path: Path) -> None:
    path = str(ledger.path)
    runs.commit(ledger, str(workdir), "begun", "main")
    for line, message in {
        "": "usage: unimodal ledger init|commit",
        "comit": "unknown command ledger 'comit'; did you mean commit?",
        f"commit {path}": "usage: unimodal ledger commit LEDGER WORKDIR|CHECKPOINT -m MESSAGE",
        f"commit {path} {workdir} -m": "-m needs a message",
        f"log {path} --pag=x": "ledger log has no flag --pag; did you mean --page?",
        f"log {path} --page": "--page needs a value",
        f"log {path} --limit=x": "--limit must be a whole number",
        f"diff {path} main mian": "has no branch, tag or commit 'mian'; did you mean main?",
        f"diff {path} main main --evaluate=yes": "--evaluate is true or false",
        f"merge {path} main --method=tie": "there is no merge method 'tie'; did you mean ties?",
        f"merge {path} main --scale=x": "--scale must be a number",
        f"bisect {path} --good=main": "--task is missing",
        f"verify {tmp_path}": "is no ledger",
        f"push {path} {tmp_path}": "is no ledger",
    }.items():
        with pytest.raises(UsageError) as caught:
            run_ledger(line.split(), "unimodal")
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_commands_tell_what_they_do(
    story: tuple[Ledger, Measuring, list[Commit]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, _, commits = story
    path = shutil.copytree(ledger.path, tmp_path / "ledger")

    def said(*line: str) -> str:
        assert run_ledger([*line[:1], str(path), *line[1:]], "unimodal") == 0
        return capsys.readouterr().out

    assert f"{commits[-1].short}" in said("log") and "(main) commit 3" in said("log", "main", "--limit=1")
    assert "parameters.heads.vit.classify.linear.kernel" in said("show", "main")
    text = said("diff", "main~3", "main~2", f"--page={tmp_path / 'diff.html'}")
    assert "95 % interval" in text and "classify.linear.kernel" in text and (tmp_path / "diff.html").exists()
    assert 'Revert "commit 1"' in said("revert", "main~2")
    assert said("branch", "again", "main~1") and "again" in said("branch")
    assert "all as it was written" in said("verify")
    assert said("gc").startswith("removed 0 tensor files")
    damaged = next((path / "tensors").rglob("*.safetensors"))
    damaged.write_bytes(b"")
    assert run_ledger(["verify", str(path)], "unimodal") == 2
    assert damaged.stem in capsys.readouterr().out
