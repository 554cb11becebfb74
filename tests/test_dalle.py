"""Text to picture: who sees whom, the weights of the two losses, drawing, guidance and completion, and a frozen codebook."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import result
from unimodal.objectives import as_scalars


@functools.cache
def small() -> tuple[Any, Any, dict[str, jax.Array]]:
    """Task, model and a batch. The codebook's scores are spread, so that pictures have different codes."""
    experiment = tiny.build(tiny.plain("dalle", tasks__dalle__unconditional=0.0))
    task, model = experiment.tasks[0], experiment.program.model(experiment.program.init())
    rng = np.random.default_rng(0)
    ids = np.where(np.arange(16)[None] < rng.integers(3, 12, (4, 1)), rng.integers(8, 264, (4, 16)), 0)
    image = rng.random((4, 16, 16, 3), np.float32)
    return task, model, {"ids": jnp.asarray(ids, jnp.int32), "image": jnp.asarray(image)}


@functools.cache
def logits() -> Any:
    task, *_ = small()
    return jax.jit(lambda model, ids, codes: task.logits(model, ids, codes))


def test_who_sees_whom() -> None:
    _, model, batch = small()
    codes = jnp.asarray(np.random.default_rng(1).integers(0, 16, (4, 16)), jnp.int32)
    words, places = logits()(model, batch["ids"], codes)
    assert words.shape == (4, 16, 264) and places.shape == (4, 16, 16)
    other_words, other_places = logits()(model, batch["ids"], codes.at[:, 5].add(1))
    np.testing.assert_array_equal(words, other_words)  # the caption does not see the picture
    np.testing.assert_array_equal(places[:, :6], other_places[:, :6])  # nor a code those after it
    assert (np.abs(places[:, 6:] - other_places[:, 6:]).max(axis=-1) > 0).all()
    changed = batch["ids"].at[:, 0].set(9)
    assert (np.abs(places - logits()(model, changed, codes)[1]).max(axis=-1) > 0).all()  # every code sees the caption


def test_padding_of_a_vocabulary_is_no_piece_of_it() -> None:
    """Codes see padding, which has no id in a vocabulary: it is not read as the last piece, and trains no piece."""
    _, model, batch = small()
    codes = jnp.asarray(np.random.default_rng(1).integers(0, 16, (4, 16)), jnp.int32)
    padded = batch["ids"] == 0
    ids = jnp.where(padded, -1, jnp.minimum(batch["ids"], 262))  # the last piece is 263
    read = lambda m, ids: logits()(m, ids, codes)[1]  # noqa: E731
    assert (np.abs(read(model, ids) - read(model, jnp.where(padded, 263, ids))).max(axis=-1) > 0).all()
    table = jax.grad(lambda m: jnp.square(read(m, ids)).sum())(model).tokenizers["text"].table.table.get_value()
    assert not table[263].any() and table[int(ids[0, 0])].any()


def test_the_loss_is_an_eighth_text_and_seven_eighths_picture() -> None:
    """A slow reading by numpy, token by token."""
    task, model, batch = small()
    codes = np.asarray(model.tokenizers["codes"].codes(batch["image"]))
    words, places = (
        np.asarray(jax.nn.log_softmax(x), np.float64) for x in logits()(model, batch["ids"], jnp.asarray(codes))
    )
    said = []
    for row, ids in enumerate(np.asarray(batch["ids"])):
        length = int((ids != 0).sum())
        said += [-words[row, t, ids[t] if t < length else 0] for t in range(length + 1)]
    seen = [-places[row, p, codes[row, p]] for row in range(4) for p in range(16)]
    loss, metrics = jax.jit(lambda m: as_scalars(*task.loss(m, batch, key=jax.random.key(0), step=jnp.int32(0))))(model)
    assert float(loss) == pytest.approx(np.mean(said) / 8 + 7 / 8 * np.mean(seen), rel=1e-5)
    assert float(metrics["image_nats"]) == pytest.approx(np.mean(seen), rel=1e-5)


def test_what_is_drawn_is_what_the_logits_say() -> None:
    """Drawing the likeliest with a cache agrees with one pass over the drawn codes; guidance is u + s·(c - u)."""
    task, model, batch = small()
    tokenizer, seen = model.tokenizers["codes"], []
    real = type(tokenizer).pixels

    def drawn(given: Any = None, **options: Any) -> np.ndarray:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(tokenizer), "pixels", lambda self, codes: (seen.append(codes), real(self, codes))[1])
            pictures = task.draw(model, batch["ids"], jax.random.key(0), given, **options)
        assert pictures.shape == (4, 16, 16, 3) and pictures.min() >= 0 and pictures.max() <= 1
        return np.asarray(seen.pop())

    guided = jnp.asarray(drawn(temperature=0.0, guidance=3.0))
    c, u = (np.asarray(logits()(model, ids, guided)[1]) for ids in (batch["ids"], jnp.zeros_like(batch["ids"])))
    np.testing.assert_array_equal(guided, (u + 3.0 * (c - u)).argmax(axis=-1))
    given = jnp.asarray(np.random.default_rng(2).integers(0, 16, (4, 6)), jnp.int32)
    completed = drawn(given, temperature=0.0, guidance=None)
    np.testing.assert_array_equal(completed[:, :6], given)
    wanted = np.asarray(logits()(model, batch["ids"], jnp.asarray(completed))[1].argmax(axis=-1))
    np.testing.assert_array_equal(completed[:, 6:], wanted[:, 6:])


def test_common_codes_are_counted_once_for_each_codebook() -> None:
    task, model, batch = small()
    evaluation: Any = task.evaluations()["dalle"]
    asked = []

    class Stub:
        def examples(self, inputs: Any, model: Any, split: str) -> Any:
            return inputs(model).dataset(split)

        def rows(self, predict: Any, model: Any, *_: Any) -> Any:
            asked.append({name: np.asarray(x) for name, x in predict(model, batch).items()})
            return iter(asked[-1:])

    for count in (1, 2):
        common = [evaluation._common(model, Stub(), None) for _ in range(2)]
        assert len(asked) == count
        wanted = (np.eye(16)[asked[-1]["codes"]].sum(axis=0) + 1 / 16) / 5
        for found in common:
            np.testing.assert_allclose(found, wanted, rtol=1e-12)
        model = nnx.clone(model)
        bias = model.tokenizers["codes"].encoder.last.bias
        bias.set_value(bias.get_value().at[3].add(0.5))


def test_a_prior_after_its_codebook(tmp_path: Path) -> None:
    """The whole way: a codebook is trained, taken over, and stays as it is; one that does not match is refused by its field."""
    codebook = tiny.plain("dvae", steps=2)
    first = tiny.train(codebook, tmp_path / "dvae")
    (tmp_path / "dvae" / "config.json").write_text(json.dumps(codebook))
    frozen = [f"tokenizers.codes.{part}" for part in ("encoder", "decoder", "vectors")]
    config = tiny.plain("dalle", steps=25, init_from=str(tmp_path / "dvae"), optimizer__freeze=frozen)
    run = tiny.train(config, tmp_path / "dalle")
    before, after = (r.experiment.program.model(r.state).tokenizers["codes"] for r in (first, run))
    for part in ("encoder", "decoder", "vectors"):
        jax.tree.map(np.testing.assert_array_equal, *(jax.tree.leaves(getattr(m, part)) for m in (before, after)))
    losses = list(run.losses("dalle").values())
    assert np.mean(losses[-5:]) < np.mean(losses[:3])
    model, evaluation = run.experiment.program.model(run.state), run.experiment.evaluations["dalle"]
    measured = evaluation.measure(model, run.experiment.reader, limit=2)
    assert measured.score["value"] < np.log2(16) and measured.score["common_codes"] <= np.log2(16) + 0.5
    # The untrained model may have had another codebook.
    found = result(evaluation, measured, {"value": 4.0, "common_codes": 0.1})
    assert (
        found.baseline == measured.score["common_codes"] and found.baseline_is == "how common codes are at each place"
    )
    samples = evaluation.samples(model, measured.shown)
    assert len(samples) == 12
    for drawn, completed in zip(samples[::2], samples[1::2], strict=True):
        names = [[name for name, _ in row.pictures] for row in (drawn, completed)]
        assert names == [["true"] + ["drawn"] * 4, ["true"] + ["completed"] * 4]
        caption = drawn.note.removesuffix(": drawn from the caption")
        assert caption and completed.note == f"{caption}: completed from the upper half"
        np.testing.assert_array_equal(drawn.pictures[0][1], completed.pictures[0][1])
    assert len({row.note for row in samples}) == 12
    for field, value in (("vocabulary", 32), ("blocks", 2), ("quantiser", "vq")):
        other = tiny.plain("dalle", init_from=str(tmp_path / "dvae"), **{f"tokenizers__codes__{field}": value})
        with pytest.raises(UsageError, match=rf"tokenizers\.codes\.{field} is .*{value}.*, but .* in .*dvae"):
            tiny.build(other).start  # noqa: B018
