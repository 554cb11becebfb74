"""Numbers that are not finite change nothing, are told, and end a run that has nothing else."""

from __future__ import annotations

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
from unimodal.sharding import make_mesh
from unimodal.training.checkpoint import Checkpoints
from unimodal.training.loop import LoopConfig, train
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
