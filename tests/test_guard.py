"""Numbers that are not finite change nothing, are told, and end a run that has nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from unimodal.errors import DivergedError
from unimodal.layers import Linear
from unimodal.sharding import make_mesh, path_name
from unimodal.training.checkpoint import Checkpoints
from unimodal.training.diagnosis import diagnosis
from unimodal.training.loop import LoopConfig, train
from unimodal.training.spikes import LEAST, begin_spikes, judge_spikes
from unimodal.training.step import Program
from unimodal.training.work import Work

ROWS = 4


class Toy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = Linear((3,), (2,), ("embed", "mlp"), rngs=rngs)
        self.second = Linear((2,), (1,), ("mlp", "hidden"), rngs=rngs)
        self.seen = nnx.BatchStat(jnp.zeros((), jnp.float32))


def loss(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
    model.seen.set_value(model.seen.get_value() + batch["x"].sum())
    y = model.second(model.first(batch["x"]))
    # √ at 0 is finite itself, but not its slope.
    steep = jnp.sqrt(jnp.abs(model.second.kernel.get_value() * batch["zero"].min())).sum()
    return jnp.square(y - 1).mean() + steep, {}


class Stream:
    """Ones but for what `bad` puts in at some steps (counted from 0): NaN in one number, or the flag for a steep slope."""

    def __init__(self, bad: dict[int, str], ids: bool = False):
        self.at, self.bad, self.ids = 0, bad, ids

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, Any]:
        rng = np.random.default_rng(self.at)
        batch: dict[str, Any] = {"x": rng.normal(size=(ROWS, 3)).astype(np.float32), "zero": np.ones(ROWS, np.float32)}
        kind = self.bad.get(self.at)
        if kind == "loss":
            batch["x"][1, 2] = np.nan
        if kind == "gradient":
            batch["zero"][:] = 0
        if self.ids:
            batch["id"] = [f"{self.at}/{row}" for row in range(ROWS)]
        self.at += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"at": self.at}

    def set_state(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def program(accumulate: int = 1, **mesh: int) -> Program:
    sizes: Any = mesh or dict(data=1)
    place = make_mesh(**sizes)
    return Program(lambda key: Toy(nnx.Rngs(key)), optax.sgd(0.1, momentum=0.9), place, seed=0, accumulate=accumulate)


def run(workdir: Path, bad: dict[str, dict[int, str]], steps: int, made: Program | None = None, **more: Any) -> Any:
    tasks: Any = [SimpleNamespace(name=name, batch_size=ROWS, weight=1.0, loss=loss) for name in bad]
    ids = more.pop("ids", False)
    batches: Any = {name: Stream(at, ids) for name, at in bad.items()}
    config = LoopConfig(steps=steps, **{"log_every": 1, **more})
    return train(made or program(), Work(tasks, batches, dict.fromkeys(bad, 1)), config, workdir)


def host(state: Any) -> list[np.ndarray]:
    """Everything but the step."""
    return jax.tree.leaves(jax.device_get((state.parameters, state.variables, state.optimizer)))


def same(one: Any, other: Any) -> bool:
    return all((a == b).all() for a, b in zip(host(one), host(other), strict=True))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize(("accumulate", "mesh"), [(1, {}), (2, {}), (2, dict(data=2)), (1, dict(data=2, fsdp=2))])
def test_a_bad_step_changes_nothing_but_the_count(kind: str, accumulate: int, mesh: dict[str, int]) -> None:
    from unimodal.sharding import from_local_rows

    made = program(accumulate, **mesh)
    step, state, stream = made.step({"toy": (loss, 1.0)}), made.init(), Stream({1: kind})
    with jax.set_mesh(made.mesh):
        for number in range(3):
            before = jax.device_get(state)
            state, metrics = step(state, {"toy": from_local_rows(next(stream), made.mesh, accumulate)})
            bad = int(metrics["toy"]["bad"])
            assert same(before, state) == (number == 1) and int(state.step) == number + 1
            assert all(np.isfinite(leaf).all() for leaf in host(state))
            if number != 1:
                assert bad == 0
            elif kind == "loss":
                assert bad == 1 and math.isnan(metrics["toy"]["loss"])
            else:
                assert made.parameter_names()[bad - 2] == "second.kernel" and math.isfinite(metrics["toy"]["loss"])


def test_in_a_sum_the_task_at_fault_is_named() -> None:
    made = program()
    step, state = made.step({"good": (loss, 1.0), "sick": (loss, 1.0)}), made.init()
    good, sick = Stream({}), Stream({0: "loss"})
    with jax.set_mesh(made.mesh):
        before = jax.device_get(state)
        state, metrics = step(state, {"good": next(good), "sick": next(sick)})
    assert (int(metrics["good"]["bad"]), int(metrics["sick"]["bad"])) == (0, 1)
    assert same(before, state)


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_run_goes_on_and_tells(at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _, done = run(tmp_path, {"toy": {at: "loss"}}, 8, log_every=4, ids=True)
    assert done and int(state.step) == 8 and all(np.isfinite(leaf).all() for leaf in host(state))
    ids = ", ".join(f"{at}/{row}" for row in range(ROWS))
    line = f"step {at + 1} changed nothing: toy: the loss is not finite, of examples {ids} (1 in a row)"
    assert line in capsys.readouterr().out.splitlines()
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({4, 8, at + 1})
    (bad,) = [row for row in rows if "update_skipped" in row]
    assert bad["step"] == at + 1 and bad["loss"] is None and "loss" in bad["nonfinite"]
    assert all("bad" not in row for row in rows)


def test_what_is_bad_throughout_ends_at_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"toy": {step: "gradient" for step in (1, *range(5, 100))}}
    options: Any = dict(checkpoint_every=1, keep_checkpoints=1, max_bad_steps=3)
    with pytest.raises(DivergedError) as ended:
        run(tmp_path, bad, 100, **options)
    assert str(ended.value).startswith(
        "3 steps in a row had numbers that are not finite, the last of them step 8 (toy: the gradient is not finite, that "
        "of second.kernel first); the last checkpoint is as it was before them"
    )
    assert "\n" not in str(ended.value)
    assert capsys.readouterr().out.count("changed nothing") == 4
    # Steps 1, 3, 4 and 5 were good; of their checkpoints one is kept, and no later one has taken its place.
    good, mark, _ = run(tmp_path / "good", bad, 5, **options)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 5
    state, _, found = checkpoints.restore(program().abstract_state())
    checkpoints.close()
    assert found == mark and same(good, state)
    with pytest.raises(DivergedError, match="the last of them step 8"):  # the same again, for the same reason
        run(tmp_path, bad, 100, **options)
    state, _, done = run(tmp_path, {"toy": {}}, 8, **options)
    assert done and not same(good, state)


def test_alternating_tasks_and_a_break_keep_the_numbers(tmp_path: Path) -> None:
    bad: Any = {"a": {2: "loss"}, "b": {}}
    whole = run(tmp_path / "whole", bad, 9, log_every=3, schedule="alternate")
    run(tmp_path / "parts", bad, 9, log_every=3, schedule="alternate", stop_after=5)
    rest = run(tmp_path / "parts", bad, 9, log_every=3, schedule="alternate")
    assert whole[1] == rest[1] and same(whole[0], rest[0])
    read = lambda name: [  # noqa: E731
        {k: v for k, v in json.loads(row).items() if k != "input_wait_seconds"}
        for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    ]
    assert read("whole") == read("parts")


def test_launch_says_one_line_and_its_own_exit_code(tmp_path: Path) -> None:
    fields = ["--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup=0", "--config.optimizer.clip=0"]
    line = ["train", "--config=tests/tiny.py:gpt", f"--workdir={tmp_path / 'run'}", "--fake_data", *fields]
    ((code, out, err),) = tiny.launches([[*line, "--config.max_bad_steps=2"]], tmp_path, devices=1)
    assert code == 3, err
    assert "step 2 changed nothing: gpt: " in out
    assert "Traceback" not in err and err.count("error: 2 steps in a row had numbers that are not finite") == 1


# --- spikes ---------------------------------------------------------------------------------------------------------


def test_spikes_by_hand() -> None:
    """A leap is told, the mean takes it in only as far as the limit, and a level that stays is no spike for long."""
    rng = np.random.default_rng(0)
    losses = 5 + 0.1 * rng.standard_normal(400)
    losses[90] = 50.0
    losses[[60, 61]] = np.nan, np.inf
    losses[200:] += 2.0
    step = jax.jit(lambda spikes, loss: judge_spikes(spikes, {"a": loss}, jnp.float32(1.0), 6.0))
    spikes, told = begin_spikes(["a", "b"]), []
    for number, loss in enumerate(losses):
        spikes, found = step(spikes, jnp.float32(loss))
        if bool(found["a"]):
            told.append(number)
    assert int(spikes["a"].count) == 398 and int(spikes["b"].count) == 0
    late = [number for number in told if number >= 200]
    assert told == [90, *late] and late[:5] == [200, 201, 202, 203, 204] and late[-1] < 230
    # Of 200 steps at the new level each counts 1/128: 1 - e^-1.56 of the way.
    assert float(spikes["a"].mean[0]) == pytest.approx(5 + 2 * (1 - math.exp(-200 / 128)), abs=0.15)
    early = begin_spikes(["a"])
    for number in range(LEAST):
        early, found = step(early, jnp.float32(50.0 if number == LEAST - 1 else 5.0))
        assert not bool(found["a"])  # before so many there is no telling


def test_a_spike_is_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Leaping(Stream):
        def __next__(self) -> dict[str, Any]:
            batch = super().__next__()
            if self.at - 1 in (40, 41, 44):
                batch["x"] *= 1e4
            return batch

    made = Program(
        lambda key: Toy(nnx.Rngs(key)), optax.sgd(1e-3), make_mesh(data=1), seed=0, skip_spikes=6.0, tasks=("toy",)
    )
    tasks: Any = [SimpleNamespace(name="toy", batch_size=ROWS, weight=1.0, loss=loss)]
    config = LoopConfig(steps=50, log_every=50, max_bad_steps=2, stop_after=41)

    def go(config: LoopConfig) -> Any:
        work = Work(tasks, {"toy": Leaping({}, True)}, {"toy": 1})  # type: ignore[dict-item]
        return train(made, work, config, tmp_path)

    first, _, _ = go(config)
    state, _, done = go(dataclasses.replace(config, stop_after=None))
    assert done and int(state.step) == 50 and all(np.isfinite(leaf).all() for leaf in host(state))
    out = capsys.readouterr().out
    for step in (41, 42, 45):
        ids = ", ".join(f"{step - 1}/{row}" for row in range(ROWS))
        line = (
            f"step {step} changed nothing: toy: the loss or the gradient leapt far above what it was, of examples {ids}"
        )
        assert line in out.splitlines()
    assert out.count("changed nothing") == 3
    assert int(first.spikes["toy"].count) == 41 and int(state.spikes["toy"].count) == 50


# --- what it was ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", [True, False])
def test_the_first_module_at_fault_is_named(scan: bool) -> None:
    experiment = tiny.build(tiny.plain("vit", backbones__shared__scan=scan, backbones__shared__remat="full"))
    program, (task,) = experiment.program, experiment.tasks
    batch = {k: v for k, v in next(experiment.train_batches(task)).items() if k != "id"}
    with jax.set_mesh(program.mesh):
        state = program.init()
        assert diagnosis(program, state, {"vit": task.loss}, {"vit": batch}) is None

        def spoil(path: Any, leaf: Any) -> Any:
            name = path_name(path)
            if scan and name == "backbones.shared.layers.mlp.up.kernel":
                return leaf.at[1, 0, 0].set(jnp.nan)
            return leaf.at[0, 0].set(jnp.nan) if name == "backbones.shared.layers.1.mlp.up.kernel" else leaf

        sick = dataclasses.replace(state, parameters=jax.tree_util.tree_map_with_path(spoil, state.parameters))
        found = diagnosis(program, sick, {"vit": task.loss}, {"vit": batch})
        assert found == "in vit the first that is not finite is what backbones.shared.layers.1.mlp.up gives"
        fed = {**batch, "image": np.where(np.arange(16)[:, None, None] == 3, np.nan, batch["image"])}
        found = diagnosis(program, state, {"vit": task.loss}, {"vit": fed})
        assert found == "what vit is fed with as 'image' is not finite"
        objective = lambda *args, **more: (task.loss(*args, **more)[0] / 0.0, {})  # noqa: E731
        found = diagnosis(program, state, {"vit": objective}, {"vit": batch})
        assert found == "all that the modules give vit is finite, and its objective is not"
