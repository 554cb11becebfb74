"""A run goes on with what fits of a checkpoint of another config, when asked, and says what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from unimodal.errors import UsageError
from unimodal.training.adapt import adapted, fit
from unimodal.training.checkpoint import Checkpoints, named
from unimodal.training.optimizer import averaged


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of step 7 of a task, in which every number is another than at the beginning, and its arrays."""
    experiment = tiny.build(tiny.plain("vit", ema=0.9))
    with jax.set_mesh(experiment.mesh):
        state = experiment.program.init()
    places = dict(enumerate(jax.tree.leaves(state)))
    changed = [(x + 7).astype(x.dtype) for x in places.values()]
    state = jax.tree.unflatten(jax.tree.structure(state), changed)
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, {"vit": {"at": 3}})
    return workdir, jax.device_get(named(state))


def go_on(saved: tuple[Path, dict[str, Any]], *tasks: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    experiment = tiny.build(tiny.plain(*tasks, **changes))
    with jax.set_mesh(experiment.mesh):
        state, iterators = adapted(experiment.program, saved[0], 7)
    assert iterators == {"vit": {"at": 3}}
    with Checkpoints(saved[0], create=False) as checkpoints:
        told = fit(7, experiment.program.abstract_state(), checkpoints.shapes(7))
    found = jax.device_get(named(state))
    assert all(np.array_equal(found[name], saved[1][name]) for name in told.taken)
    assert not set(told.taken) & set(told.fresh) and set(told.taken) | set(told.fresh) == set(found)
    return told, found


def test_a_task_is_added(saved: tuple[Path, dict[str, Any]]) -> None:
    told, found = go_on(saved, "vit", "bert", ema=0.9)
    assert int(found["step"]) == 7
    assert not [name for name in told.fresh if "shared" in name and not name.startswith("ema.")]
    # The average is of all parameters or of none, and begins with those that were taken.
    kernel = "backbones.shared.final_norm.scale"
    assert int(found["ema.count"]) == 0
    np.testing.assert_array_equal(found[f"ema.values.{kernel}"], saved[1][f"parameters.{kernel}"])


def test_a_head_of_other_classes_begins_afresh_with_its_moments(saved: tuple[Path, dict[str, Any]]) -> None:
    told, found = go_on(saved, "vit", ema=0.9, tasks__vit__labels__classes=[f"c{i}" for i in range(5)])
    fresh = {name for name in told.fresh if not name.startswith("ema.")}
    assert fresh and all("heads.vit.classify.linear" in name for name in fresh)
    assert int(found["optimizer.inner.heads.vit.classify.linear.bias.0.count"]) == 0
    assert "afresh: 2 arrays" in told.report() and "left behind: 2 arrays" in told.report()


def test_another_optimizer_counts_from_the_beginning(saved: tuple[Path, dict[str, Any]]) -> None:
    """Lion's moment is called as one of Adam's, but a mean of other things: with Adam's other numbers it is no state."""
    told, found = go_on(saved, "vit", ema=0.9, optimizer__name="lion")
    moments = [name for name in told.fresh if name.startswith("optimizer.inner.")]
    assert moments and not [name for name in told.taken if name.startswith("optimizer.inner.")]
    assert all(not np.any(found[name]) for name in moments)


@pytest.mark.parametrize("name", ["adamw", "schedule_free"])
def test_from_a_schedule_free_optimizer_the_average_goes_on(name: str, tmp_path: Path) -> None:
    """Where its state does not go on, the run does with what was evaluated, whether layers are stacked there or here."""
    options: dict[str, Any] = dict(
        optimizer=dict(name="schedule_free", learning_rate=0.1), backbones__shared__scan=True
    )
    experiment = tiny.build(tiny.plain("vit", **options))
    with jax.set_mesh(experiment.mesh):
        state = experiment.program.init()
    moved = jax.tree.map(lambda x: x + jnp.ones_like(x), state.optimizer)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(replace(state, optimizer=moved), {})
    options |= dict(optimizer__name=name, backbones__shared__scan=False)
    after = tiny.build(tiny.plain("vit", **options))
    with jax.set_mesh(after.mesh):
        found = named(adapted(after.program, tmp_path, 0)[0].parameters)
    wanted = named(state.parameters if name == "schedule_free" else averaged(moved, state.parameters))
    stacks = [part for part in wanted if ".layers." in part]
    assert stacks
    for part in stacks:
        for layer, value in enumerate(wanted.pop(part)):
            wanted[part.replace(".layers.", f".layers.{layer}.")] = value
    assert found.keys() == wanted.keys()
    for part, value in found.items():
        np.testing.assert_allclose(value, wanted[part], rtol=1e-6, err_msg=part)
    with Checkpoints(tmp_path, create=False) as checkpoints:
        told = fit(0, after.program.abstract_state(), checkpoints.shapes(0)).report()
    assert (f"(of {len(found)} parameters the average" in told) == (name == "adamw")


def test_nothing_that_fits_is_one_line(saved: tuple[Path, dict[str, Any]]) -> None:
    experiment = tiny.build(tiny.plain("vit"))
    with pytest.raises(UsageError, match="nothing of checkpoint 7 fits"):
        fit(7, experiment.program.abstract_state(), {"parameters.other": "float32[3]"})
