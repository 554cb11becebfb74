"""Runs into a ledger, and commits out of it: workdirs of ours, and published checkpoints."""

from __future__ import annotations

import atexit
import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from unimodal.errors import UsageError
from unimodal.experiment import Experiment, build
from unimodal.history.weights import axes_of, filled, of_checkpoint, of_state, to_host
from unimodal.interop.files import open_source, small_files, write_file
from unimodal.kept import ENCODERS, learned, with_encoders
from unimodal.kept import FILE as FROM_DATA
from unimodal.ledger import Commit, Draft, Ledger, Manifest
from unimodal.ledger.ledger import branch_ref
from unimodal.ledger.locks import held
from unimodal.ledger.manifest import DTYPES
from unimodal.places import places_of
from unimodal.scores import read_scores
from unimodal.storage import folder, is_remote
from unimodal.training.checkpoint import Checkpoints
from unimodal.training.step import TrainState
from unimodal.training.workdir_start import is_workdir

CONFIG = "config.json"


def experiment_of(files: Mapping[str, bytes], what: str) -> Experiment:
    """The experiment of a commit's config on one device. Raises UsageError for a commit that is no run's."""
    if CONFIG not in files or "tasks" not in json.loads(files[CONFIG]):
        raise UsageError(f"{what} is a published checkpoint without tasks: nothing is known that it could be asked")
    config = json.loads(files[CONFIG])
    for place, value in json.loads(files.get(FROM_DATA, b"{}")).items():
        *groups, last = place.split(".")
        inner = config
        for name in groups:
            inner = inner.setdefault(name, {})
        inner[last] = value
    config = with_encoders(_unpacked(files), config) if _vocabularies(files) else config
    places = places_of(None)
    places.open()
    plain = {**config, "init_from": None, "init_skip": None, "init_ema": False, "ledger": None, "commit_every": 0}
    return build({**plain, "mesh": {"data": 1}}, places.task_class)


def _vocabularies(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The copies of vocabularies that a workdir keeps, by path."""
    return {path: content for path, content in files.items() if path.startswith(f"{ENCODERS}/")}


def _unpacked(files: Mapping[str, bytes]) -> Path:
    """A folder with them, for readers that know files only; it goes when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="unimodal-ledger-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _write(_vocabularies(files), folder)
    return folder


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def small(workdir: epath.Path) -> dict[str, bytes]:
    """The copies of vocabularies in a workdir, as a commit holds them."""
    index = [*(workdir / ENCODERS).glob("*"), *(workdir / ENCODERS).glob("*/*")]
    found = [path for path in index if path.is_file()]
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in found}


# --- in ---------------------------------------------------------------------------------------------------------------


def commit(
    ledger: Ledger,
    path: str,
    message: str,
    branch: str,
    *,
    step: int | None = None,
    finish: Callable[[Draft], Draft] = lambda draft: draft,
) -> Commit:
    """Commit a checkpoint of a workdir (None: the latest), or a published checkpoint's directory. Raises UsageError.

    finish: adds to the draft before it is committed, such as scores.
    """
    if not message.strip():
        raise UsageError("a commit needs a message: -m 'what changed, and why'")
    branch_ref(ledger.git, branch)
    where = folder(path)
    with ledger.writing():
        if is_workdir(where):
            draft = of_workdir(ledger, where, step)
        elif step is not None:
            raise UsageError(f"{path} is no workdir with checkpoints, so it has no step {step}")
        elif is_remote(where) or not (Path(where) / CONFIG).is_file():
            raise UsageError(f"{path} is neither a workdir with checkpoints nor a checkpoint's directory")
        else:
            draft = of_published(ledger, Path(where))
        head = ledger.heads().get(branch)
        if head is not None and same(ledger.commit(head), draft):
            raise UsageError(f"{branch} has these very weights already: commit {head[:10]}")
        return ledger.record(finish(draft), message, branch)


def same(commit: Commit, draft: Draft) -> bool:
    """Whether a commit has the same weights and the same config."""
    there = commit.draft
    configs = [files.get(CONFIG) for files in (there.files, draft.files)]
    return there.manifest.tensors == draft.manifest.tensors and configs[0] == configs[1]


def of_workdir(ledger: Ledger, workdir: epath.Path, step: int | None) -> Draft:
    files = {CONFIG: (workdir / CONFIG).read_bytes(), **small(workdir)}
    if (workdir / FROM_DATA).exists():
        files[FROM_DATA] = (workdir / FROM_DATA).read_bytes()
    experiment = experiment_of(files, str(workdir))
    with Checkpoints(workdir, create=False) as checkpoints:
        there = checkpoints.steps()
        if not there or (step is not None and step not in there):
            known = f"only of {', '.join(map(str, there))}" if there else "nor any other"
            raise UsageError(f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}, {known}")
        step = there[-1] if step is None else step
        positions = checkpoints.iterators(step)
        fingerprint = checkpoints.fingerprint(step)
    arrays = of_checkpoint(experiment, workdir, step)
    tensors = ledger.add(to_host(arrays, axes_of(experiment)))
    made = {"commit": str(workdir), "fingerprint": fingerprint}
    scores = _results(workdir, step, fingerprint)
    return Draft(Manifest(tensors, "run", step, data_of(experiment, positions), made), {**files, **scores})


def data_of(experiment: Experiment, positions: Mapping[str, Any]) -> dict[str, Any]:
    """Task → its source, and how far it has been read."""
    tasks: Any = experiment.tasks
    return {t.name: {"source": getattr(t, "source", None), "position": positions.get(t.name)} for t in tasks}


def _results(workdir: epath.Path, step: int, fingerprint: str) -> dict[str, bytes]:
    """The scores of results.json, if they are of this very checkpoint."""
    found = read_scores(workdir)
    if found is None or (found.step, found.fingerprint) != (step, fingerprint):
        return {}
    kept = ("metric", "value", "higher_is_better")
    return {
        f"scores/{name}.json": json.dumps({n: getattr(row, n) for n in kept}, indent=1).encode() + b"\n"
        for name, row in found.by_name.items()
        if math.isfinite(row.value)
    }


def of_published(ledger: Ledger, directory: Path) -> Draft:
    source = open_source(directory)
    tensors = ledger.add((name, tensor.read(), ()) for name, tensor in source.tensors.items())
    files = {CONFIG: source.config_text.encode()}
    files |= {f"files/{path.as_posix()}": (directory / path).read_bytes() for path in small_files(directory)}
    files.pop(f"files/{CONFIG}", None)
    files.pop("files/model.safetensors.index.json", None)  # it is written as one file again
    return Draft(Manifest(tensors, "huggingface", None, {}, {"commit": str(directory)}), files)


@dataclasses.dataclass(frozen=True)
class Committer:
    """Commits the weights of a run that trains, from the devices themselves."""

    ledger: Ledger
    branch: str
    workdir: str
    experiment: Experiment
    config: Mapping[str, Any]
    say: Callable[[str], None] = lambda _: None  # told of each commit

    def __call__(self, state: TrainState, positions: Mapping[str, Any]) -> Commit | None:
        """Commit the state; None where the branch has it already, as after a run that was killed and goes on.

        Every process must call it. Process 0 writes.
        """
        step, arrays = int(state.step), to_host(of_state(state), axes_of(self.experiment))
        if jax.process_index() != 0:
            for _ in arrays:
                pass
            return None
        made_by = {"commit": self.workdir}
        files = {
            CONFIG: json.dumps(self.config, indent=2).encode(),
            FROM_DATA: json.dumps(learned(self.experiment.tasks), indent=2, sort_keys=True).encode(),
            **small(folder(self.workdir)),
        }
        with held(self.ledger.path, alone=False):
            tensors = self.ledger.add(arrays)
            draft = Draft(Manifest(tensors, "run", step, data_of(self.experiment, positions), made_by), files)
            if self._there(step, draft):
                return None
            made = self.ledger.record(draft, f"{Path(self.workdir).name} after step {step}", self.branch)
        self.say(f"committed {made.short} to {self.branch} of {self.ledger.path} after step {step}")
        return made

    def _there(self, step: int, draft: Draft) -> bool:
        for commit in self.ledger.history([f"refs/heads/{self.branch}"]) if self.branch in self.ledger.heads() else []:
            manifest = commit.manifest
            if manifest.made.get("commit") != self.workdir:
                return False
            if manifest.step == step:
                return manifest.tensors == draft.manifest.tensors
        return False


# --- out --------------------------------------------------------------------------------------------------------------


def checkout(commit: Commit, target: str) -> Path:
    """Write a commit as a workdir, or as a checkpoint's directory, into a new or empty folder. Raises UsageError."""
    path = Path(target).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is not empty; give a new folder")
    files, manifest = commit.draft.files, commit.manifest
    what = f"commit {commit.short}"
    if manifest.source == "run":
        _to_workdir(commit, files, path, what)
        return path
    path.mkdir(parents=True, exist_ok=True)
    _write({name.removeprefix("files/"): content for name, content in files.items()}, path)
    shapes = {name: (entry.shape, DTYPES[entry.dtype]) for name, entry in manifest.tensors.items()}
    write_file(path / "model.safetensors", shapes, (commit.read(name) for name in manifest.tensors))
    return path


def _to_workdir(commit: Commit, files: Mapping[str, bytes], path: Path, what: str) -> None:
    experiment = experiment_of(files, what)
    manifest, store, program = commit.manifest, commit.ledger.store, experiment.program
    abstract = program.abstract_state()
    parts = {
        part: filled(getattr(abstract, part), f"{part}.", manifest.tensors, store, what)
        for part in ("parameters", "variables", "kept")
    }
    if abstract.ema is not None:
        parts["ema"] = filled(abstract.ema, "ema.", manifest.tensors, store, what)
    # Moments begin anew, as after init_from; what they hold of the parameters is these. The learning rate goes on from the
    # step of the run.
    begun = dataclasses.replace(program, start=lambda _: parts["parameters"]).init()
    step = jnp.asarray(manifest.step or 0, jnp.int32)
    state = dataclasses.replace(begun, step=step, optimizer=begun.optimizer._replace(step=step), **parts)
    path.mkdir(parents=True, exist_ok=True)
    with Checkpoints(path) as checkpoints:
        positions = {name: said["position"] for name, said in manifest.data.items() if said.get("position")}
        checkpoints.save(state, positions)
    _write({name: content for name, content in files.items() if not name.startswith("scores/")}, path)
