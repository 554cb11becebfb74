"""Validation that is small, of one class, or lacks one: said in one line, and scored right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from unimodal.data.blocks import Labels
from unimodal.errors import UsageError
from unimodal.evaluation.run import MeshReader


def photos(root: Path, train: str, validation: str) -> str:
    """A folder with one picture for each letter, the letter its class."""
    rng = np.random.default_rng(0)
    for split, letters in (("train", train), ("validation", validation)):
        for i, letter in enumerate(letters):
            path = root / split / letter / f"{split}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return f"folder:{root}"


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [
        ("aabbab", "aaa", "all of validation is of class 'a': always answering it would be right"),
        ("aabbcc", "aab", "validation has no example of 'c': what is learned of that is not scored"),
        ("aabbab", "ab", ""),
    ],
)
def test_what_validation_cannot_show_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, train: str, validation: str, said: str
) -> None:
    uri = photos(tmp_path, train, validation)
    Labels().check(uri)
    assert [record.getMessage() for record in caplog.records] == ([f"{uri}: {said}"] if said else [])


def test_classes_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="class 'c' has examples in validation, but none to train on"):
        Labels(classes=("a", "b", "c")).check(photos(tmp_path / "unseen", "aabb", "abc"))
    with pytest.raises(UsageError, match="all examples are of class 'a'; classification needs two or more"):
        Labels().check(photos(tmp_path / "one", "aaa", "a"))


@pytest.mark.parametrize("kind", ["linear_probe", "knn"])
def test_a_probe_of_one_class_is_refused_before_training(tmp_path: Path, kind: str) -> None:
    def built(letters: str) -> Any:
        uri = photos(tmp_path / letters, letters, letters[:2])
        return tiny.build(tiny.plain("simclr", evaluations=dict(probe=dict(kind=kind, source=uri))))

    assert {"probe", "simclr"} <= set(built("ababab").checked_evaluations())  # five neighbours need as many rows
    with pytest.raises(UsageError, match="all examples are of class 'a'; classification needs two or more"):
        built("aaaa").checked_evaluations()
    kind = "effective_rank"  # which reads no classes
    assert {"probe", "simclr"} <= set(built("aaaaa").checked_evaluations())


def test_validation_smaller_than_a_batch_counts_each_once(tmp_path: Path) -> None:
    uri = photos(tmp_path, "abcabcabc", "abc")
    experiment = tiny.build(tiny.plain("vit", tasks__vit__source=uri))
    task, model = experiment.tasks[0], experiment.program.model(experiment.program.init())
    kernel = model.heads["vit"]["classify"].linear.kernel
    kernel.set_value(jax.random.normal(jax.random.key(1), kernel.get_value().shape))
    result = task.evaluations()["vit"].measure(model, MeshReader(experiment.mesh), limit=None)
    dataset = task.inputs(model).dataset("validation")
    examples = [dataset[i] for i in range(3)]
    logits = task.logits(model, jnp.stack([jnp.asarray(one["image"]) for one in examples]))
    right = np.argmax(np.asarray(logits), axis=1) == [int(one["label"]) for one in examples]
    np.testing.assert_allclose(result.score["value"], right.mean(), rtol=1e-6)
