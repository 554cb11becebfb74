"""`load(path)`: a model by its path, with what it needs to be used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from unimodal.answers import Answer, Asked, offered
from unimodal.configuration import nearest
from unimodal.errors import UsageError
from unimodal.experiment import Experiment, build
from unimodal.interop.load import resolve
from unimodal.kept import with_encoders, with_learned
from unimodal.model import Model
from unimodal.places import places_of
from unimodal.settings import MeshConfig
from unimodal.sharding import MESH_AXES, make_mesh, path_name
from unimodal.storage import folder, is_remote, require_backend
from unimodal.training import earlier
from unimodal.training.checkpoint import Checkpoints, named, spelt
from unimodal.training.ema import with_ema
from unimodal.use.answering import Asking, Askings, answered
from unimodal.use.inputs import as_entries
from unimodal.use.published import published_task


@dataclass(frozen=True)
class Loaded:
    """A model and its tasks. `model` is called by nobody but the tasks; `config` is that of the run, or config.json."""

    path: str  # where it came from
    model: Any  # a `Model`, or `Pretrained` for a published checkpoint
    config: Mapping[str, Any]  # as nested plain values
    tasks: Mapping[str, Any]  # by name
    mesh: Mesh  # where its parameters lie
    step: int | None = None  # of the checkpoint; None for a published one
    experiment: Experiment | None = field(default=None, repr=False)  # for a workdir
    averaged: bool = False  # whether the weights are the average that the run kept
    _askings: Askings = field(default_factory=Askings, repr=False, compare=False)

    def task(self, name: str) -> str:
        """The name of a task. Raises UsageError, with the nearest that there is."""
        if name not in self.tasks:
            raise UsageError(f"{self.path} has no task {name!r}; {nearest(name, list(self.tasks))}")
        return name

    def made_by(self, task: str | None) -> dict[str, Any]:
        """What an index says of the model and the task that made its vectors."""
        return {"model": str(Path(self.path).absolute()), "task": task, "step": self.step, "average": self.averaged}

    def answers(self, task: str, asked: Asked = Asked()) -> Sequence[Answer]:
        """List what the task can be asked. Raises UsageError for a task without answers that reads no pictures."""
        found = offered(self.tasks[task], self.model, asked)
        if not found:
            raise UsageError(f"the task {task!r} has no method `answers`, so nothing can be asked of it")
        return found

    def asking(
        self, asked: Asked, task: str | None = None, *, gives: str | None = None, batch_size: int = 32
    ) -> Asking:
        """A question to the model; asked again, it is not compiled again. Raises UsageError for one without an answer."""
        return self._askings.of(self, asked, task, gives, batch_size)

    def predict(
        self, inputs: Any, *, task: str | None = None, batch_size: int = 32, **asked: Any
    ) -> list[dict[str, Any]]:
        """One answer for each input, in order; an input that cannot be read has an `error` in its place.

        inputs: a path, a text, a record, a picture (an array or Pillow's) or several of these. asked: see `Asked`. Raises
        UsageError where the task cannot be told.
        """
        asking = self.asking(Asked(**asked), task, batch_size=batch_size)
        return list(answered(asking, as_entries(inputs)))

    def embed(self, inputs: Any, *, task: str | None = None, batch_size: int = 32) -> np.ndarray:
        """Embeddings of unit length, float32 [inputs,size]. Raises UsageError for an input that cannot be read."""
        asking = self.asking(Asked(), task, gives="embedding", batch_size=batch_size)
        rows = list(answered(asking, as_entries(inputs)))
        if bad := [row for row in rows if "error" in row]:
            raise UsageError(f"{bad[0]['id']}: {bad[0]['error']}")
        return np.asarray([row["embedding"] for row in rows], np.float32)


def load(
    path: epath.PathLike,
    *,
    step: int | None = None,
    ema: bool | None = None,
    mesh: Mesh | Mapping[str, int] | None = None,
    dtype: str | None = None,
) -> Loaded:
    """The model in a workdir of ours, a Hugging Face directory, or of a hub name.

    step: of the checkpoint (None: the latest). ema: take the average of the parameters that the run kept (None: if its
    evaluations did). mesh: a mesh, or its axes, as dict(data=2, tensor=4); None: one device. dtype: of the computation, as
    bfloat16. Raises UsageError for a path that is neither, a workdir without a checkpoint, an average that is not there, and weights that are not finite.
    """
    where = folder(path)
    require_backend(where)
    placed = mesh if isinstance(mesh, Mesh) else _mesh(mesh or {})
    if is_remote(where) or _has_tasks(where):
        return _with_numbers(_of_workdir(where, step, ema, placed, dtype))
    if step is not None or ema:
        raise UsageError(f"{path} is no workdir of a run, so it has neither steps nor an average of its parameters")
    return _with_numbers(_published(Path(str(path)), placed, dtype))


def _mesh(axes: Mapping[str, int]) -> Mesh:
    for axis in axes:
        if axis not in MESH_AXES:
            raise UsageError(f"mesh has no axis {axis!r}; {nearest(axis, MESH_AXES)}")
    return make_mesh(**{**vars(MeshConfig(data=1)), **axes})


def _with_numbers(loaded: Loaded) -> Loaded:
    """Raises UsageError for a weight that is not finite: ids and pictures that are drawn from such a model look like any others."""
    for where, leaf in jax.tree_util.tree_leaves_with_path(loaded.model):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
            raise UsageError(
                f"{loaded.path}: {path_name(where)} has values that are not finite, so nothing can be asked"
            )
    return loaded


def _published(path: Path, mesh: Mesh, dtype: str | None) -> Loaded:
    directory = resolve(path)
    if directory.is_dir() and not (directory / "config.json").exists():
        raise UsageError(f"{path} is neither a workdir nor a checkpoint: it has no config.json")
    model, name, task, config = published_task(directory, None if mesh.size == 1 else mesh, dtype)
    return Loaded(str(path), model, config, {name: task}, mesh)


def _has_tasks(where: epath.Path) -> bool:
    """True if the config.json there is one of ours."""
    try:
        return "tasks" in json.loads((where / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _of_workdir(where: epath.Path, step: int | None, ema: bool | None, mesh: Mesh, dtype: str | None) -> Loaded:
    config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    config = with_encoders(where, with_learned(where, config))
    there = Checkpoints(where, create=False).steps() if (where / "checkpoints").is_dir() else []
    if not there:
        raise UsageError(f"{where} has no checkpoint: train there first, or wait for the first one")
    if step is not None and step not in there:
        raise UsageError(f"{where} has no checkpoint of step {step}, only of {', '.join(map(str, there))}")
    if ema and not config.get("ema"):
        raise UsageError(f"{where} kept no average of its parameters (ema=0 there); leave out ema")
    plain = {**config, "init_from": None, "init_skip": None, "init_ema": False, "mesh": _sizes(mesh)}
    if dtype is not None:
        plain["backbones"] = {name: {**one, "dtype": dtype} for name, one in plain["backbones"].items()}
    places = places_of(None)
    places.open()
    experiment = build(plain, places.task_class)
    kept = bool(config.get("ema"))
    averaged = kept and (experiment.evaluate_ema is not False if ema is None else ema)
    step = there[-1] if step is None else step
    model = weights(experiment, where, step, averaged)
    tasks = {task.name: task for task in experiment.tasks}
    return Loaded(str(where), model, config, tasks, experiment.mesh, step, experiment, averaged)


def weights(experiment: Experiment, where: epath.PathLike, step: int, averaged: bool) -> Model:
    """The model at a step, without the optimizer's state: parameters, variables and what tasks keep."""
    program = dataclasses.replace(experiment.program, evaluate_ema=averaged)
    abstract = program.abstract_state()
    with Checkpoints(where, create=False) as checkpoints:
        shapes = checkpoints.shapes(step)
        # Schedule-free training keeps its average among the optimizer's moments; earlier runs named theirs otherwise.
        whole = experiment.optimizer.name == "schedule_free" or earlier.names_then(named(abstract), shapes) is not None
        if whole:
            return program.model(checkpoints.restore(abstract, step)[0])
        parts = ("parameters", "variables", "kept", *(("ema",) if averaged else ()))
        trees = {part: getattr(abstract, part) for part in parts}
        wanted = {name: leaf for part, tree in trees.items() for name, leaf in _leaves(part, tree).items()}
        _check(wanted, shapes, where)
        found = checkpoints.read(step, wanted)
    made = {
        part: jax.tree.unflatten(jax.tree.structure(tree), [found[name] for name in _leaves(part, tree)])
        for part, tree in trees.items()
    }
    parameters = with_ema(made["ema"], made["parameters"]) if averaged else made["parameters"]
    return nnx.merge(program.structure(), parameters, made["variables"], made["kept"])


def _leaves(part: str, tree: Any) -> dict[str, Any]:
    return {f"{part}.{path_name(path)}": leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _check(wanted: Mapping[str, Any], shapes: Mapping[str, str], where: epath.PathLike) -> None:
    for name, ours in spelt(wanted).items():
        if ours != (theirs := shapes.get(name, "not there")):
            raise UsageError(f"the checkpoint in {where} does not fit its config.json: {name} is {theirs}, not {ours}")


def _sizes(mesh: Mesh) -> dict[str, int]:
    return {str(axis): int(size) for axis, size in mesh.shape.items()}
