"""A picture as a word: where it stands, that nothing but its network learns, and searching with a picture and words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import used

from configs import pic2word
from unimodal.data.blocks import Texts
from unimodal.errors import UsageError

RECIPE = pic2word.get_config("size=tiny")
FROZEN = RECIPE.optimizer.freeze


def task_and_model(**changes: Any) -> tuple[Any, Any]:
    experiment = tiny.build(tiny.plain("pic2word", **changes))
    return experiment.tasks[0], experiment.program.model(experiment.program.init())


@pytest.mark.parametrize("before", ["", "a "])
def test_a_word_of_the_table_says_what_the_text_says(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network gives the row of a letter, picture and words are the text with that letter in the picture's place."""
    task, model = task_and_model(tasks__pic2word__before=before, tasks__pic2word__texts=dict(length=12))
    encoder, pad = task.texts.opened, task.texts.pad
    (letter,) = encoder.encode("x")
    row = model.tokenizers["text"].table(jnp.asarray([[letter]]))[0]
    monkeypatch.setattr(
        type(model.heads["pic2word"]["word"]), "__call__", lambda self, x: jnp.broadcast_to(row, (len(x), row.shape[1]))
    )
    phrases = [" but red", ""]
    ids = np.stack([task.texts.row(encoder, phrase) for phrase in phrases])
    found = task.said(model, jnp.zeros((2, task.size)), jnp.asarray(ids))
    whole = Texts(length=16)
    texts = np.stack([whole.row(encoder, f"{before}x{phrase}") for phrase in phrases])
    wanted = task.embed_one(model, "text", {"ids": jnp.asarray(texts)})
    assert pad == encoder.PAD
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_only_the_network_learns(tmp_path: Path) -> None:
    used.workdir(tmp_path / "clip", tiny.plain("clip"), noise=0.05)
    config = tiny.plain("pic2word", steps=3, init_from=str(tmp_path / "clip"), optimizer__freeze=FROZEN)
    config["tasks"] = {"clip": {**config["tasks"].pop("pic2word"), "kind": "pic2word", "name": "clip"}}
    experiment = tiny.build(config)
    first = experiment.program.first_model()
    state = tiny.train(config, tmp_path / "word").state
    before, after = ({p: np.asarray(x) for p, x in _leaves(m)} for m in (first, experiment.program.model(state)))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if ".word." in name}
    # The heads are the CLIP's, and so are the answers to a picture alone.
    assert not [name for name in experiment.start.fresh if ".word." not in name]


def test_the_recipe_names_the_clip() -> None:
    assert (RECIPE.tasks.clip.name, RECIPE.tasks.clip.kind) == ("clip", "pic2word")
    assert RECIPE.tasks.clip.texts.length < RECIPE.tokenizers.text.max_length


def _leaves(model: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_flatten_with_path(model)[0]]


def test_the_score_has_its_rivals() -> None:
    task, model = task_and_model()
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(3, 16, 16, 3)).astype(np.float32),
        "changed": rng.normal(size=(3, 2, 16, 16, 3)).astype(np.float32),
        "ids": np.stack([np.stack([task.texts.row(task.texts.opened, w) for w in ("red", "blue")])] * 3),
        "looks": np.arange(6).reshape(3, 2),
        "before": np.arange(6, 9),
    }
    found = jax.jit(task.predict)(model, batch)
    assert {name: x.shape for name, x in found.items()} == {
        "query": (3, 2, 16), "words": (3, 2, 16), "target": (3, 2, 16), "picture": (3, 16), "looks": (3, 2),
        "before": (3,),
    }  # fmt: skip
    alone = task.embed_one(model, "image", {"image": batch["changed"][1, :1]})
    np.testing.assert_allclose(found["target"][1, 0], alone[0], atol=1e-5)


def test_a_row_that_the_table_has_no_place_for() -> None:
    task, model = task_and_model()
    longer = replace(task, texts=Texts(length=16))
    with pytest.raises(UsageError, match="text of 17 tokens is longer than the position table, max_length=16"):
        longer.said(model, jnp.zeros((1, task.size)), jnp.zeros((1, 16), jnp.int32))
