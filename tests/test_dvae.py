"""The discrete VAE: its formulas by numpy and scipy, its two ways to choose codes, and codes that die and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import tiny
from flax import nnx

from unimodal.errors import UsageError
from unimodal.model import Model
from unimodal.objectives import cosine_between, logit_laplace, relaxed_codes, uniform_divergence
from unimodal.state import RunningCodebook
from unimodal.tokenizers import codebook
from unimodal.training.optimizer import OptimizerConfig, apply_updates, averaged, make_optimizer

RNG = np.random.default_rng(0)


def test_logit_laplace_is_the_density_of_a_sigmoid_of_laplace() -> None:
    """By scipy's Laplace density and the change of variables, in value and gradient; and it integrates to one."""
    x, centre = RNG.uniform(0.1, 0.9, 20), RNG.normal(size=20)
    log_scale = RNG.normal(scale=0.5, size=20)

    def wanted(x: Any, centre: Any, log_scale: Any) -> Any:
        density = scipy.stats.laplace.logpdf(np.log(x / (1 - x)), loc=centre, scale=np.exp(log_scale))
        return -(density - np.log(x * (1 - x)))

    np.testing.assert_allclose(
        logit_laplace(*map(jnp.float32, (x, centre, log_scale))), wanted(x, centre, log_scale), rtol=1e-5
    )
    total, _ = scipy.integrate.quad(lambda v: np.exp(-wanted(v, 0.3, np.log(0.4))), 0, 1)
    assert total == pytest.approx(1, abs=1e-6)
    slopes = jax.grad(lambda m, s: logit_laplace(jnp.float32(x), m, s).sum(), argnums=(0, 1))(
        jnp.float32(centre), jnp.float32(log_scale)
    )
    for slope, argument in zip(slopes, (1, 2), strict=True):
        up, down = ([x, centre, log_scale] for _ in range(2))
        up[argument], down[argument] = up[argument] + 1e-5, down[argument] - 1e-5
        np.testing.assert_allclose(slope, (wanted(*up) - wanted(*down)) / 2e-5, rtol=1e-3, atol=1e-4)


def test_divergence_by_scipy_and_at_its_ends() -> None:
    scores = RNG.normal(size=(5, 7)).astype(np.float32)
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        uniform_divergence(jnp.asarray(scores)), scipy.stats.entropy(chances, np.full((5, 7), 1 / 7), axis=1), rtol=1e-5
    )
    assert uniform_divergence(jnp.zeros(7)) == pytest.approx(0, abs=1e-6)
    assert uniform_divergence(50.0 * jnp.eye(7)[0]) == pytest.approx(np.log(7))


def test_relaxed_codes_are_drawn_by_their_chances_and_sharpen() -> None:
    scores = jnp.broadcast_to(jnp.log(jnp.asarray([0.5, 0.3, 0.2])), (20_000, 3))
    weights = relaxed_codes(scores, jax.random.key(0), 0.05)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    counts = np.bincount(np.asarray(weights.argmax(axis=-1)), minlength=3) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.015)
    assert weights.max(axis=-1).mean() > 0.95 > relaxed_codes(scores, jax.random.key(0), 5.0).max()


def test_schedules() -> None:
    at = [float(cosine_between(1.0, 1 / 16, jnp.int32(step), 100)) for step in (0, 50, 100, 900)]
    assert at == pytest.approx([1, (1 + 1 / 16) / 2, 1 / 16, 1 / 16])


@pytest.mark.parametrize("quantiser", codebook.QUANTISERS)
def test_pictures_come_back(quantiser: str, tmp_path: Path) -> None:
    codes = dict(
        kind="codebook",
        image_size=(16, 16),
        vocabulary=32,
        hidden=16,
        groups=2,
        blocks=1,
        code_size=16,
        quantiser=quantiser,
    )
    options = dict(temperature_steps=150, divergence=0.3, divergence_steps=1)
    steps = 200 if quantiser == "gumbel" else 60
    config = tiny.plain(
        "dvae", steps=steps, log_every=20, tokenizers=dict(codes=codes), tasks__dvae=dict(batch_size=16, **options)
    )
    config["optimizer"]["learning_rate"] = 2e-3 if quantiser == "gumbel" else 3e-3
    del config["backbones"]  # there is none
    run = tiny.train(config, tmp_path / "run")
    model, evaluation = run.experiment.program.model(run.state), run.experiment.evaluations["dvae"]
    measured = evaluation.measure(model, run.experiment.reader, limit=4)
    baseline, what = evaluation.baseline(measured.score)
    assert what == "the mean picture" and measured.score["value"] < baseline
    assert 2 < measured.score["code_perplexity"] <= 32 and measured.score["codes_used"] > 0.1
    sample = evaluation.samples(model, measured.shown)[0]
    assert [(what, x.shape) for what, x in sample.pictures] == [
        ("the picture", (16, 16, 3)),
        ("from its codes", (16, 16, 3)),
    ]
    # What the decoder is given are the codes alone.
    tokenizer, image = model.tokenizers["codes"], jnp.asarray(measured.shown.batch["image"])
    ids = tokenizer.codes(image)
    assert ids.shape == (len(image), 64) and ids.dtype == jnp.int32
    np.testing.assert_array_equal(np.round(255 * tokenizer.pixels(ids)).astype(np.uint8), measured.shown.rows["shown"])
    with pytest.raises(UsageError, match="codes have embeddings only beside a backbone"):
        tokenizer(image)


def with_codes(table: np.ndarray) -> Model:
    """A model of one codebook of running means."""
    shape = dict(zip(("vocabulary", "code_size"), table.shape, strict=True))
    config = codebook.Config(image_size=(2, 2), hidden=4, groups=1, blocks=1, quantiser="vq", **shape)
    model = Model({"codes": codebook.Tokenizer(config, 0, rngs=nnx.Rngs(0))}, {})
    model.tokenizers["codes"].vectors.set_value(jnp.asarray(table))
    return model


def begun_with(table: np.ndarray, **options: float) -> tuple[Model, RunningCodebook]:
    """As a run begins that starts from another one's codes: they take the place of those that were drawn."""
    model = with_codes(RNG.normal(size=table.shape).astype(np.float32))
    state = RunningCodebook(model, "codes", **options)
    model.tokenizers["codes"].vectors.set_value(jnp.asarray(table))
    state.begin(model)
    return model, state


def test_a_codebook_of_running_means() -> None:
    """Three steps by hand, as van den Oord 2017 counts (A.1, N and m), from codes that were all as common: means of what is
    nearest, and a code that nothing is near to begins again."""
    table = np.array([[0.0, 0], [4, 0], [90, 90]], np.float32)
    model, state = begun_with(table, decay=0.5, revive=0.2)
    count, total = np.full(3, 12 / 3), 12 / 3 * table
    for step in range(3):
        rows = (RNG.normal(size=(4, 3, 2)) + RNG.choice([0, 4], (4, 3, 1)) * [1, 0]).astype(np.float32)
        flat = rows.reshape(-1, 2)
        nearest = np.square(flat[:, None] - table[None]).sum(axis=2).argmin(axis=1)
        np.testing.assert_array_equal(model.tokenizers["codes"].nearest(jnp.asarray(flat)), nearest)
        count = 0.5 * count + 0.5 * np.bincount(nearest, minlength=3)
        total = 0.5 * total + 0.5 * np.stack([flat[nearest == k].sum(axis=0) for k in range(3)])
        state.advance(model, jnp.asarray(rows), jnp.int32(step), 10)
        found = np.asarray(model.tokenizers["codes"].vectors.get_value())
        dead = count < 0.2 * 12 / 3
        np.testing.assert_allclose(found[~dead], (total / count[:, None])[~dead], rtol=1e-5)
        for code in found[dead]:
            assert np.abs(flat - code).sum(axis=1).min() < 1e-5
        if dead.any():
            break
        table = found
    assert list(dead) == [False, False, True]


@pytest.mark.parametrize("each", [1, 20, 64])
def test_codes_of_another_run_stay(each: int) -> None:
    """However many vectors of a batch are near a code, it goes a hundredth of the way to their mean, and none begins again."""
    table = RNG.normal(size=(64, 8)).astype(np.float32)
    model, state = begun_with(table)
    rows = np.repeat(table, each, axis=0) + 0.01 * RNG.normal(size=(64 * each, 8)).astype(np.float32)
    state.advance(model, jnp.asarray(rows), jnp.int32(0), 10)
    wanted = 0.99 * table + 0.01 * rows.reshape(64, each, 8).mean(axis=1)
    np.testing.assert_allclose(model.tokenizers["codes"].vectors.get_value(), wanted, atol=1e-5)


def test_codes_as_they_were_drawn_go_where_the_vectors_are() -> None:
    """In the first step a chosen code goes most of the way to the mean of what chose it, and every other begins at a vector; in
    the second so does a vector's code that nobody chose."""
    table = np.concatenate([np.zeros((1, 2)), RNG.normal(size=(7, 2)) + 50]).astype(np.float32)
    model = with_codes(table)
    state = RunningCodebook(model, "codes", decay=0.9, revive=0.05)
    state.begin(model)
    vectors = model.tokenizers["codes"].vectors
    rows = RNG.normal(size=(40, 2)).astype(np.float32)
    state.advance(model, jnp.asarray(rows), jnp.int32(0), 10)
    # Counts are 8 for the one code that all vectors chose.
    share = 0.1 * 8 / (0.9 * 0.05 + 0.1 * 8)
    np.testing.assert_allclose(vectors.get_value()[0], share * rows.mean(axis=0), rtol=1e-5)
    for code in np.asarray(vectors.get_value()[1:]):
        assert np.abs(rows - code).sum(axis=1).min() < 1e-5
    far = rows + 90  # the nearest of all codes takes them all
    before = np.asarray(vectors.get_value())
    state.advance(model, jnp.asarray(far), jnp.int32(1), 10)
    after = np.asarray(vectors.get_value())
    nearest = np.square(far[:, None] - before[None]).sum(axis=2).argmin(axis=1)
    unchosen = [code for code in range(1, 8) if code not in nearest]
    assert len(unchosen) >= 5
    for code in unchosen:
        assert np.abs(far - after[code]).sum(axis=1).min() < 1e-4


def test_an_optimizer_leaves_codes_alone() -> None:
    """They are evaluated as their running means made them, and a schedule-free optimizer draws them back to no start."""
    parameters = {"vectors": with_codes(np.zeros((4, 2), np.float32)).tokenizers["codes"].vectors}
    optimizer = make_optimizer(OptimizerConfig(name="schedule_free", learning_rate=0.1, warmup=0), 5)
    state, still = optimizer.init(parameters), jax.tree.map(jnp.zeros_like, parameters)
    for step in range(3):
        parameters["vectors"].set_value(jnp.full((4, 2), step + 1.0))
        updates, state = optimizer.update(still, state, parameters)
        parameters = apply_updates(parameters, updates)
        for found in (parameters, averaged(state, parameters)):
            np.testing.assert_array_equal(found["vectors"].get_value(), step + 1)


def test_what_a_codebook_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"image_size \(18, 16\) is not divisible by 4"):
        codebook.Config(image_size=(18, 16), groups=3)
    with pytest.raises(UsageError, match="takes pixels as they are"):
        tiny.build(tiny.plain("dvae", tasks__dvae__images=dict(mean=(0.5,))))
    with pytest.raises(UsageError, match="must be of kind codebook"):
        tiny.build(tiny.plain("dvae", tasks__dvae__tokenizer="image"))
