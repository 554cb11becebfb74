"""Each strategy against its paper's formula, worked in numpy; runs that resume, and runs on another mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unimodal.continual import ContinualConfig
from unimodal.continual.anchor import NAME as ANCHOR
from unimodal.continual.config import STRATEGIES
from unimodal.continual.memory import SLOT, STORED
from unimodal.continual.outputs import answers_of
from unimodal.continual.strategies import agem, der, lwf, ogd, si
from unimodal.continual.strategy import OWNER
from unimodal.errors import UsageError
from unimodal.objectives.terms import as_scalars
from unimodal.sharding import from_local_rows
from unimodal.training.checkpoint import named
from unimodal.training.loop import train
from unimodal.training.work import Work


def config(strategy: str, **changes: Any) -> dict[str, Any]:
    """Two tasks of pictures, the second with mirror images only, three steps each."""
    fields: dict[str, Any] = dict(
        tokenizers=dict(image=dict(image_size=(8, 8), patch=4)),
        backbones=dict(shared=dict(width=16, depth=1, heads=2)),
        tasks={
            name: dict(kind="vit", batch_size=8, images=dict(flip=flip)) for name, flip in (("one", 0.0), ("two", 1.0))
        },
        schedule="sequence",
        steps=6,
        log_every=1,
        optimizer=dict(name="sgd", learning_rate=0.1, warmup=0, momentum=0.0, weight_decay=0.0),
        continual=dict(strategy=strategy, memory=16, batches=2, directions=3),
    )
    return {**tiny.plain("vit"), **fields, **changes}


def run(workdir: Path, strategy: str, **changes: Any) -> tuple[Any, Any, str]:
    """Train in this process, without evaluations: the experiment, the state and its fingerprint."""
    experiment = tiny.build(config(strategy, **changes))
    plan = experiment.plan()
    work = Work(plan.tasks, plan.batches, experiment.tokens, sequence=plan.schedule)
    state, fingerprint, _ = train(experiment.program, work, experiment.loop, workdir)
    return experiment, state, fingerprint


def first_batch(experiment: Any, place: int = 0, rows: int = 8) -> dict[str, jax.Array]:
    batch = next(experiment.train_batches(experiment.tasks[place]))
    return {name: jnp.asarray(found[:rows]) for name, found in batch.items() if name != "id"}


def logits_of(experiment: Any, state: Any, batch: Any, place: int = 0) -> np.ndarray:
    return np.asarray(experiment.tasks[place].judged(experiment.program.model(state), batch), np.float64)


# --- si: the path, against a numpy reading of Zenke 2017 ------------------------------------------------------------------


class Quadratic(nnx.Module):
    def __init__(self) -> None:
        self.theta = nnx.Param(jnp.array([0.5, -1.0, 2.0], jnp.float32))


def test_the_path_of_quadratics_is_that_walked_by_hand() -> None:
    tasks = [
        (np.array([1.0, 4.0, 0.0]), np.array([1.0, -2.0, 5.0])),
        (np.array([2.0, 0.5, 3.0]), np.array([-1.0, 3, 7])),
    ]
    strength, decay, damping, rate = 0.7, 0.5, 0.1, 0.05
    model = Quadratic()
    path = si.Path(model)
    path.begin(model)
    theta = start = np.array([0.5, -1.0, 2.0])
    importance = np.zeros(3)
    for a, c in tasks:
        gained = np.zeros(3)
        for _ in range(20):
            own = a * (theta - c)  # the gradient of ½ Σ a (θ − c)²
            whole = own + strength * importance * (theta - start)
            np.testing.assert_allclose(
                jax.grad(lambda t: strength * path.penalty(at(t)))(jnp.asarray(theta, jnp.float32)),
                whole - own,
                atol=1e-5,
            )
            after = theta - rate * whole
            gained -= own * (after - theta)  # ω = −∫ g dθ, equation 3
            before = nnx.state(at(theta), nnx.Param)
            model.theta.set_value(jnp.asarray(after, jnp.float32))
            path.walk(model, nnx.state(at(whole), nnx.Param), before, strength)
            theta = after
        np.testing.assert_allclose(path.gained["theta"].get_value(), gained, rtol=1e-4, atol=1e-6)
        path.arrive(model, decay, damping)
        importance = decay * importance + np.maximum(gained, 0) / ((theta - start) ** 2 + damping)  # equation 5
        start = theta
        np.testing.assert_allclose(path.importance["theta"].get_value(), importance, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(path.weights["theta"].get_value(), start, rtol=1e-5)
        assert not path.gained["theta"].get_value().any()
    # Of one task walked in small steps, ω is what the loss has lost.
    assert importance[2] > 0


def at(theta: Any) -> Quadratic:
    model = Quadratic()
    model.theta.set_value(jnp.asarray(theta, jnp.float32))
    return model


def test_the_path_of_a_run_is_gradient_times_step(tmp_path: Path) -> None:
    """Of plain gradient descent ω = −g·Δθ is (Δθ)² over the rate, which is the same for all weights."""
    first = tiny.build(config("si")).program.init()
    _, state, _ = run(tmp_path, "si", stop_after=1)
    before, after = (
        {n: np.asarray(x, np.float64) for n, x in named(parameters).items()}
        for parameters in (first.parameters, state.parameters)
    )
    gained = {n.split(".gained.")[1]: np.asarray(x) for n, x in named(state.kept).items() if ".gained." in n}
    squares = {name: (after[name] - before[name]) ** 2 for name in after}
    rate = sum(x.sum() for x in squares.values()) / sum(x.sum() for x in gained.values())
    assert 0 < rate <= 0.1  # less where the gradient is clipped
    for name, found in gained.items():
        np.testing.assert_allclose(
            found, squares[name] / rate, rtol=1e-2, atol=1e-4 * found.max() + 1e-12, err_msg=name
        )


# --- mas ------------------------------------------------------------------------------------------------------------------


def test_importance_of_mas_is_that_of_the_outputs(tmp_path: Path) -> None:
    experiment, state, _ = run(tmp_path, "mas", stop_after=3)
    found = {n.split(".importance.")[1]: x for n, x in named(state.kept).items() if ".importance." in n}
    batches = experiment.train_batches(experiment.tasks[0])
    outputs, others = [], []
    for _ in range(2):
        batch = {n: jnp.asarray(x) for n, x in next(batches).items() if n != "id"}
        outputs.append(logits_of(experiment, state, batch))

        def squares(parameters: Any, image: jax.Array) -> jax.Array:
            model = nnx.merge(experiment.program.structure(), parameters, state.variables, state.kept)
            return jnp.square(experiment.tasks[0].logits(model, image[None])).sum()

        others.append(jax.vmap(jax.grad(squares), (None, 0))(state.parameters, batch["image"]))
    # Of the last layer's bias the gradient of ‖F‖² is 2F, whatever is below it.
    bias = 2 * np.abs(np.concatenate(outputs)).mean(0)
    np.testing.assert_allclose(found["heads.one.classify.linear.bias"], bias, rtol=1e-4)
    for name, gradients in ((n, [named(o)[n] for o in others]) for n in found):
        wanted = np.abs(np.concatenate([np.asarray(g, np.float64) for g in gradients])).mean(0)
        np.testing.assert_allclose(found[name], wanted, rtol=2e-3, atol=1e-5)
    assert not found["heads.two.classify.linear.bias"].any()


# --- lwf --------------------------------------------------------------------------------------------------------------------


def test_the_distillation_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    new, old, temperature = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), 2.0

    def softened(logits: np.ndarray) -> np.ndarray:
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        powers = chances ** (1 / temperature)
        return powers / powers.sum(1, keepdims=True)

    wanted = -(softened(old) * np.log(softened(new))).sum(1).mean()
    assert float(lwf.distilled(jnp.asarray(new), jnp.asarray(old), temperature)) == pytest.approx(wanted, rel=1e-5)
    # Nothing pulls where the model says what its teacher says.
    slope = jax.grad(lambda x: lwf.distilled(x, jnp.asarray(old, jnp.float32), temperature))
    np.testing.assert_allclose(slope(jnp.asarray(old, jnp.float32)), 0, atol=1e-7)


def test_the_teacher_is_the_model_before_the_task(tmp_path: Path) -> None:
    experiment, ended, _ = run(tmp_path / "first", "lwf", stop_after=3)
    teacher = lambda state: {n.split(".weights.")[1]: x for n, x in named(state.kept).items() if ".weights." in n}  # noqa: E731
    for name, value in named(ended.parameters).items():
        np.testing.assert_array_equal(teacher(ended)[name], np.asarray(value, np.float32))
    _, last, _ = run(tmp_path / "whole", "lwf")
    for name, value in teacher(last).items():
        np.testing.assert_array_equal(value, teacher(ended)[name])
    batch, key = first_batch(experiment, 1), jax.random.key(0)
    plan, model = experiment.plan(), experiment.program.model(last)
    loss, metrics = as_scalars(*plan.tasks[1].loss(model, batch, key=key, step=jnp.int32(4)))
    plain, _ = as_scalars(*experiment.tasks[1].loss(model, batch, key=key, step=jnp.int32(4)))
    old, new = (logits_of(experiment, state, batch) for state in (ended, last))
    wanted = float(lwf.distilled(jnp.asarray(new), jnp.asarray(old), 2.0))
    assert float(metrics["distillation"]) == pytest.approx(wanted, rel=1e-4)
    assert float(loss) == pytest.approx(float(plain) + wanted, rel=1e-5)
    assert "distillation" not in as_scalars(*plan.tasks[0].loss(model, batch, key=key, step=jnp.int32(0)))[1]


# --- agem -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_only_what_conflicts_is_taken_away(sign: float) -> None:
    rng = np.random.default_rng(3)
    r1, r2 = rng.normal(size=7), rng.normal(size=7)
    r = r1 + r2
    g = rng.normal(size=7)
    g *= np.sign(g @ r) * sign  # along the reference, or against it
    parts = lambda x: {"a": jnp.asarray(x[:3], jnp.float32), "b": jnp.asarray(x[3:], jnp.float32)}  # noqa: E731
    found = agem.without_conflict([parts(g), parts(r1), parts(r2)])
    wanted = g if sign > 0 else g - (g @ r) / (r @ r) * r  # equation 11
    np.testing.assert_allclose(np.concatenate([found["a"], found["b"]]), wanted, rtol=1e-4, atol=1e-5)


def test_a_step_of_agem_follows_the_projected_gradient(tmp_path: Path) -> None:
    """Tasks that say the opposite of one another conflict; the compiled step is compared with gradients taken one by one."""
    experiment, state, _ = run(tmp_path, "agem", stop_after=3)
    program, task = experiment.program, experiment.tasks[0]

    def opposite(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
        loss, metrics = task.loss(model, batch, key=key, step=step)
        return -as_scalars(loss, {})[0], metrics

    batch = first_batch(experiment)
    gradient = named(program.gradient("one", task.loss)(state, batch, jax.random.key(0)))
    before = {n: np.asarray(x, np.float64) for n, x in named(state.parameters).items()}
    placed = from_local_rows({n: np.asarray(x) for n, x in batch.items()}, program.mesh)
    with jax.set_mesh(program.mesh):
        after, _ = program.step({"two": (opposite, 2.0), "one": (task.loss, 0.5)})(
            state, {"two": placed, "one": placed}
        )
    moved = {n: np.asarray(x, np.float64) - before[n] for n, x in named(after.parameters).items()}
    # g = −4r, so that nothing is left of it.
    largest = max(np.abs(np.asarray(g)).max() for g in gradient.values())
    assert largest > 1e-3
    assert max(np.abs(step).max() for step in moved.values()) < 1e-6 * largest


# --- der --------------------------------------------------------------------------------------------------------------------


def test_logits_are_kept_as_they_were_when_the_example_was_met(tmp_path: Path) -> None:
    experiment, last, _ = run(tmp_path / "whole", "der")
    kept = np.asarray(named(last.kept)[f"state.one.{der.NAME}.rows"])
    batches, seen = experiment.plan().batches["one"], 0
    for step in range(3):
        # The model before step + 1, which is that of a run that ends there.
        state = experiment.program.init() if step == 0 else run(tmp_path / str(step), "der", stop_after=step)[1]
        batch = dict(next(batches))
        slots, arrays = batch.pop(SLOT), {n: jnp.asarray(x) for n, x in batch.items() if n != "id"}
        logits = logits_of(experiment, state, arrays)
        for row, slot in enumerate(slots):
            if slot >= 0:
                seen += 1
                np.testing.assert_allclose(kept[slot], logits[row], rtol=1e-4, atol=1e-5)
    assert seen == len(kept) == 16


def test_the_loss_of_remembered_examples_is_that_of_the_paper(tmp_path: Path) -> None:
    experiment, state, _ = run(tmp_path, "der")
    plan, model = experiment.plan(), experiment.program.model(state)
    kept = np.asarray(named(state.kept)[f"state.one.{der.NAME}.rows"], np.float64)
    batches = plan.batches["one"]
    for _ in range(3):
        next(batches)
    batch = {n: jnp.asarray(x) for n, x in next(batches).items() if n != "id"}
    logits = logits_of(experiment, state, {n: batch[n] for n in ("image", "label")})
    distance = ((logits - kept[np.asarray(batch[STORED])]) ** 2).mean()
    loss = as_scalars(*plan.tasks[0].loss(model, batch, key=jax.random.key(0), step=jnp.int32(3)))[0]
    plain = as_scalars(*experiment.tasks[0].loss(model, batch, key=jax.random.key(0), step=jnp.int32(3)))[0]
    assert distance > 1e-6
    assert float(loss) == pytest.approx(float(plain) + 0.5 * distance, rel=1e-5)
    assert experiment.memory_bytes == {"one": 16 * (8 * 8 * 3 * 4 + 4 + kept.shape[1] * 4)}


def test_a_skipped_step_leaves_logits_unknown() -> None:
    rng = np.random.default_rng(0)
    state, met = der.RememberedLogits(5, 3), rng.normal(size=(3, 3)).astype(np.float32)
    rows = np.concatenate([[[0], [-1], [3]], met], axis=1).astype(np.float32)
    state.advance(None, jnp.asarray(rows), jnp.int32(0), 1)  # slots 1, 2 and 4 were in steps that were skipped
    kept = np.asarray(state.rows.get_value())
    np.testing.assert_array_equal(kept[[0, 3]], met[[0, 2]])
    assert np.isnan(kept[[1, 2, 4]]).all()
    logits, stored = rng.normal(size=(4, 3)).astype(np.float32), np.array([3, 1, 0, 4])
    distance, slope = jax.value_and_grad(der.squared_distance)(jnp.asarray(logits), state.rows.get_value()[stored])
    difference = np.stack([logits[0] - met[2], np.zeros(3), logits[2] - met[0], np.zeros(3)])
    assert float(distance) == pytest.approx((difference[[0, 2]] ** 2).mean(), rel=1e-6)
    np.testing.assert_allclose(slope, 2 * difference / 6, rtol=1e-5)
    nothing, slope = jax.value_and_grad(der.squared_distance)(jnp.asarray(logits), jnp.full((4, 3), jnp.nan))
    assert float(nothing) == 0 and not np.asarray(slope).any()


# --- ogd --------------------------------------------------------------------------------------------------------------------


def test_directions_are_orthonormal_and_answers_stay(tmp_path: Path) -> None:
    experiment, state, _ = run(tmp_path, "ogd", stop_after=3)
    rows = {n.split(".rows.")[1]: np.asarray(x, np.float64) for n, x in named(state.kept).items() if ".rows." in n}
    flat = np.concatenate([x.reshape(3, -1) for x in rows.values()], axis=1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(3), atol=1e-5)
    # They span the gradients of the true classes' logits of the first three examples.
    batch = first_batch(experiment, rows=3)

    def answers(parameters: Any) -> jax.Array:
        model = nnx.merge(experiment.program.structure(), parameters, state.variables, state.kept)
        logits = experiment.tasks[0].judged(model, batch)
        return jnp.take_along_axis(logits, batch["label"][:, None], axis=1)[:, 0]

    jacobian = named(jax.jacrev(answers)(state.parameters))
    theirs = np.concatenate([np.asarray(jacobian[n], np.float64).reshape(3, -1) for n in rows], axis=1)
    np.testing.assert_allclose(theirs @ flat.T @ flat, theirs, atol=1e-4 * np.abs(theirs).max())
    # A small step along a projected gradient does not change those logits to first order, and one along the gradient does.
    # Take it from the same task on other examples, as the second head, which begins at zero, pulls at nothing below it yet.
    batches = experiment.train_batches(experiment.tasks[0])
    next(batches)
    other = {n: jnp.asarray(x) for n, x in next(batches).items() if n != "id"}
    gradient = experiment.program.gradient("one", experiment.tasks[0].loss)(state, other, jax.random.key(0))
    projected = ogd.orthogonal(named(gradient), {n: jnp.asarray(x, jnp.float32) for n, x in rows.items()})
    changes = {}
    for name, direction in (("free", named(gradient)), ("projected", projected)):
        tangent = jax.tree.structure(state.parameters).unflatten(list(direction.values()))
        changes[name] = np.abs(jax.jvp(answers, (state.parameters,), (tangent,))[1]).max()
    assert changes["projected"] < 1e-3 * changes["free"]


def test_steps_of_ogd_are_orthogonal_to_what_is_kept(tmp_path: Path) -> None:
    _, before, _ = run(tmp_path / "three", "ogd", stop_after=3)
    _, after, _ = run(tmp_path / "six", "ogd")
    moved = np.concatenate(
        [
            (np.asarray(b, np.float64) - np.asarray(a, np.float64)).ravel()
            for a, b in zip(named(before.parameters).values(), named(after.parameters).values(), strict=True)
        ]
    )
    order = list(named(before.parameters))
    rows = {n.split(".rows.")[1]: np.asarray(x, np.float64) for n, x in named(before.kept).items() if ".rows." in n}
    flat = np.concatenate([rows[n].reshape(3, -1) for n in order], axis=1)
    assert np.linalg.norm(moved) > 0
    assert np.abs(flat @ moved).max() < 1e-3 * np.linalg.norm(moved)


# --- all of them ------------------------------------------------------------------------------------------------------------


STATEFUL = ("der", "ogd", "si")  # those that bring state of their own; the others have what is tested elsewhere


@pytest.mark.parametrize("strategy", STATEFUL)
def test_a_run_that_resumes_ends_alike(tmp_path: Path, strategy: str) -> None:
    fields: dict[str, Any] = dict(checkpoint_every=2)
    if strategy == "der":
        fields["continual"] = dict(strategy=strategy, memory=6, balanced=True)
    whole = run(tmp_path / "whole", strategy, **fields)[2]
    for stop in (2, 5, None):  # amid the first task, and amid the second
        parts = run(tmp_path / "parts", strategy, **fields, stop_after=stop)[2]
    assert parts == whole
    assert whole != run(tmp_path / "plain", "fine_tuning")[2]


@pytest.mark.parametrize("strategy", STATEFUL)
def test_a_mesh_changes_nothing(tmp_path: Path, strategy: str) -> None:
    one = run(tmp_path / "one", strategy)[1]
    many = run(tmp_path / "many", strategy, mesh=dict(data=2, fsdp=2, tensor=2))[1]
    for part in ("parameters", "kept"):
        a, b = (named(getattr(state, part)) for state in (one, many))
        for name in a:
            x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
            np.testing.assert_allclose(y, x, rtol=2e-3, atol=1e-5 + 1e-3 * np.abs(x).max(), err_msg=name)


def test_every_strategy_is_made_by_its_name() -> None:
    assert {"fine_tuning", "l2", "ewc", "si", "mas", "lwf", "replay", "der", "agem", "ogd"} <= set(STRATEGIES)
    for strategy in STRATEGIES:
        experiment = tiny.build(config(strategy))
        assert experiment.strategy.config.strategy == strategy
        assert type(experiment.strategy).__module__.endswith(f".{strategy}")
    for strategy in ("l2", "ewc", "mas", "si"):
        assert ANCHOR in tiny.build(config(strategy)).model.state[OWNER]


WORDS: dict[str, Any] = tiny.SMALL["gpt"] | dict(batch_size=8)
NAMED = {name: dict(kind="vit", batch_size=8) for name in ("one", "continual")}
BOTH = dict(text=dict(vocabulary=264, max_length=16), image=dict(image_size=(8, 8), patch=4))


@pytest.mark.parametrize(
    ("strategy", "changes", "message"),
    [
        (
            "lwf",
            dict(tasks=dict(gpt=WORDS, vit=dict(batch_size=8)), tokenizers=BOTH),
            "tasks.gpt does not",
        ),
        ("agem", dict(optimizer=dict(name="sgd", accumulate=2)), "leave optimizer.accumulate at 1"),
        ("si", dict(continual=dict(strategy="si", damping=0.0)), "continual damping must be"),
        (
            "si",
            dict(continual=dict(strategy="si", damping=float("nan"))),
            "continual damping must be above 0 and finite",
        ),
        ("ewc", dict(continual=dict(strategy="ewc", strength=float("nan"))), "continual strength must be at least 0"),
        ("der", dict(continual=dict(strategy="der", memory_share=0.1)), "takes memory and no memory_share"),
        ("replay", dict(continual=dict(strategy="replay", memory_share=1.1)), "memory_share must be from 0 to 1"),
        *(
            (
                strategy,
                dict(tasks=NAMED),
                f"tasks.continual has the name under which continual.strategy={strategy} keeps",
            )
            for strategy in ("ewc", "si", "lwf", "ogd")
        ),
    ],
)
def test_what_cannot_be_is_one_line(strategy: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny.build(config(strategy, **changes))


def test_a_memory_may_be_a_share_of_the_data() -> None:
    experiment = tiny.build(config("replay", continual=dict(strategy="replay", memory_share=0.02)))
    batches = experiment.plan().batches["one"]
    count = int(0.02 * len(experiment.tasks[0].inputs(experiment.model).dataset("train")))
    for _ in range(4):
        next(batches)
    assert 0 < count == len(batches.kept()) < 24  # of three batches of eight
    assert experiment.memory_bytes == {"one": count * (8 * 8 * 3 * 4 + 4)}


def test_a_balanced_memory_needs_classes() -> None:
    tasks = {name: WORDS | dict(kind="gpt") for name in ("one", "two")}
    changes: dict[str, Any] = dict(
        tasks=tasks, tokenizers=BOTH, continual=dict(strategy="replay", memory=8, balanced=True)
    )
    with pytest.raises(
        UsageError, match=r"continual.balanced needs examples with one class each, which tasks.one has not"
    ):
        tiny.build(config("replay", **changes)).plan()


def test_answers_are_over_the_classes_that_a_task_has() -> None:
    class Some:
        def judged(self, model: Any, batch: Any) -> jax.Array:
            return jnp.arange(8.0).reshape(2, 4)

        def own_classes(self) -> tuple[int, ...]:
            return (1, 3)

    np.testing.assert_array_equal(answers_of(Some(), None, {}), [[1, 3], [5, 7]])
    assert ContinualConfig().strategy == "fine_tuning"
