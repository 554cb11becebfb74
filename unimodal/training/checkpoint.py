"""Checkpoints: arrays, data iterators and config together, through Orbax, each with a fingerprint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from unimodal.errors import StorageError, UsageError
from unimodal.sharding import path_name
from unimodal.storage import absolute, identity, is_remote, one_line, same_place, writing
from unimodal.training import earlier, layouts
from unimodal.training.aside import move_aside
from unimodal.training.facts import facts_of, fault
from unimodal.training.fingerprint import leaf_hashes
from unimodal.training.keep import Keep, Policy
from unimodal.training.quiet import quiet_store
from unimodal.training.step import TrainState


class DamagedError(UsageError):
    """A checkpoint is not what was saved. The message names it, and an older one that is whole if there is one."""


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous: the next `save` or `close` waits for the last.

    keep: which of them stay when another is written. writes: for the one run that trains there; what a killed save has
    left is then removed. Used as a context manager, it waits for the last save however the block ends.
    """

    def __init__(self, workdir: epath.PathLike, *, keep: Keep | None = None, create: bool = True, writes: bool = False):
        self.workdir, self._policy, self._closed = workdir, Policy(keep or Keep()), False
        self._options: dict[str, Any] = dict(
            create=create, cleanup_tmp_directories=writes, preservation_policy=self._policy
        )
        self._open()
        if self._policy.keep.best is not None:
            for step in self.steps():
                with contextlib.suppress(UsageError):  # a damaged one has no score
                    if (score := self._facts(step).get("score")) is not None:
                        self._policy.scores[step] = float(score)

    def _open(self) -> None:
        quiet_store()
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True, **self._options)
        self._manager = ocp.CheckpointManager(absolute(self.workdir) / "checkpoints", options=options)
        self._place = identity(self._manager.directory)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, iterators: Mapping[str, Any], score: float | None = None) -> str:
        """Write the state after `state.step` steps and the iterators' states; returns the state's fingerprint.

        score: what the best checkpoint is told by. Raises StorageError if this one, or the last, cannot be written.
        """
        arrays, step = named(state), int(state.step)
        # Hash on the devices: only one number of each array comes to the host.
        hashes = {name: int(value) for name, value in jax.device_get(leaf_hashes(arrays)).items()}
        facts = facts_of(hashes, spelt(arrays), iterators, score)
        if score is not None:
            self._policy.scores[step] = score
        arguments = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave(facts))
        with self._writing():
            self._manager.save(step, args=arguments, force=True)
        return facts["fingerprint"]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            what = f"checkpoints in {self.workdir}"
            with writing(what), same_place(what, self._manager.directory, self._place):
                yield
        except StorageError as error:
            self._closed = True  # what is left of the store cannot be closed in good order
            whole = []
            with contextlib.suppress(Exception):
                whole = saved_steps(self.workdir)
            last = f"the last whole one is of step {whole[-1]}" if whole else "there is no whole one"
            raise StorageError(f"{error}; {last}: mend this, and run the same command to go on") from error

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any], str]:
        """The state at `step` (None: the latest) in the shapes and shardings of `abstract`, iterators, fingerprint.

        Any mesh restores onto any mesh. Raises UsageError if there is no checkpoint, if its arrays are not those of
        the model, or if their bits are not those that were saved.
        """
        step = self._known(step)
        try:
            return self._restore(abstract, step)
        # Look for an older one that is whole, so that the error says which step to go on from.
        except DamagedError as error:
            older = self._whole_before(abstract, step)
            more = (
                "no older one is whole" if older is None else f"that of step {older} is whole: --step={older} takes it"
            )
            raise DamagedError(f"{error}; {more}") from error

    def set_aside(self, step: int) -> list[epath.Path]:
        """Move the checkpoints after `step` out of the way, so that a run can go on from it; returns where they are now."""
        later = [each for each in self.steps() if each > step]
        # Close the store first, as it keeps a list of steps of its own.
        self._manager.close()
        moved = move_aside(absolute(self.workdir), later)
        self._open()
        return moved

    def _known(self, step: int | None) -> int:
        """The step, or the latest. Raises UsageError if there is no checkpoint of it."""
        there = self.steps()
        if not there:
            raise UsageError(f"no checkpoint in {self._manager.directory}; train first")
        if step is not None and step not in there:
            raise UsageError(
                f"no checkpoint of step {step} in {self._manager.directory}, only of {', '.join(map(str, there))}"
            )
        return there[-1] if step is None else step

    def _whole_before(self, abstract: TrainState, step: int) -> int | None:
        """The newest checkpoint before `step` that restores."""
        for older in reversed([each for each in self.steps() if each < step]):
            with contextlib.suppress(UsageError):
                self._restore(abstract, older)
                return older
        return None

    def verify(self, state: TrainState) -> None:
        """Wait until the state is written, and read it back. Raises StorageError if it is not what was saved."""
        step = int(state.step)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        with self._writing():
            self._manager.wait_until_finished()
        try:
            self.restore(abstract, step)
        except DamagedError as error:
            raise StorageError(f"{self.workdir} does not keep what is written there: {error}") from error

    def _restore(self, abstract: TrainState, step: int) -> tuple[TrainState, dict[str, Any], str]:
        facts = self._facts(step)
        wanted = named(abstract)
        # Read checkpoints from before arrays had their names of today by the names of then.
        if then := earlier.names_then(wanted, facts["shapes"]):
            _check_names(set(then.values()), set(facts["hashes"]), step, spare="optimizer.")
            same = {name: shape for name, shape in spelt(wanted).items() if then[name] == name}
            _check_shapes(same, facts["shapes"], step)
            read = earlier.to_read(wanted, then, facts["shapes"])
            found = earlier.as_now(wanted, then, self.read(step, read))
        else:
            there = layouts.held(facts["shapes"], wanted)
            _check_names(set(wanted), set(there), step)
            _check_shapes(spelt(wanted), {name: each.shape for name, each in there.items()}, step)
            if all(each.as_it_is for each in there.values()):
                found = self._read(step, "arrays", ocp.args.StandardRestore(wanted))
                _check_hashes(found, facts["hashes"], step)
            else:
                found = self._read_some(step, wanted, facts)
        _check_step(found, step)
        structure = jax.tree.structure(abstract)
        state = jax.tree.unflatten(structure, [found[name] for name in wanted])
        return state, facts["iterators"], facts["fingerprint"]

    def shapes(self, step: int) -> dict[str, str]:
        """Name the arrays in the checkpoint of `step`, each with its type and shape as "float32[3, 4]". Reads no arrays."""
        return self._facts(step)["shapes"]

    def fingerprint(self, step: int) -> str:
        """The fingerprint of the state in the checkpoint of `step`."""
        return self._facts(step)["fingerprint"]

    def iterators(self, step: int) -> dict[str, Any]:
        """The states of the tasks' data iterators in the checkpoint of `step`."""
        return self._facts(step)["iterators"]

    def read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Some of the arrays by name, in the shapes and shardings of `wanted`. Raises UsageError as `restore` does.

        Layers may be stacked there and unrolled in `wanted`, or the other way round.
        """
        return self._read_some(step, wanted, self._facts(step))

    def _read_some(self, step: int, wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, jax.Array]:
        there = layouts.held(facts["shapes"], wanted)
        raw = layouts.to_read(wanted, there, facts["shapes"])
        places = {name: ocp.ArrayRestoreArgs(sharding=leaf.sharding) for name, leaf in raw.items()}
        found = self._read(step, "arrays", ocp.args.PyTreeRestore(raw, restore_args=places, partial_restore=True))
        _check_hashes(found, facts["hashes"], step)
        _check_step(found, step)
        return layouts.made(wanted, there, found)

    def _facts(self, step: int) -> dict[str, Any]:
        facts = self._read(step, "facts", ocp.args.JsonRestore())
        if (reason := fault(facts)) is not None:
            raise DamagedError(f"checkpoint {step} is damaged: {reason}")
        return facts

    def _read(self, step: int, item: str, arguments: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: arguments}))[item]
        except Exception as error:  # the store raises what it likes, down to a bare Exception
            reason = " ".join(str(error).split())[:200]
            raise DamagedError(
                f"checkpoint {step} cannot be read: its {item} are missing or damaged ({reason})"
            ) from error

    def close(self) -> None:
        """Wait for the last save; closing twice is harmless. Raises StorageError if it cannot be written."""
        if self._closed:
            return
        with self._writing():
            self._manager.wait_until_finished()
        self._closed = True
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            self.close()
        elif isinstance(error, Exception):  # not Ctrl-C, which ends at once
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self.close()


def named(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, in the tree's own order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """The steps that have a checkpoint. Writes nothing. Raises UsageError for a bucket that does not answer."""
    try:
        names = [path.name for path in (epath.Path(workdir) / "checkpoints").glob("*")]
    except Exception as error:
        if isinstance(error, FileNotFoundError):  # no such bucket: claim_workdir says so where it matters
            return []
        if not is_remote(workdir):
            raise
        raise UsageError(f"cannot read workdir {workdir}: {one_line(error)}") from error
    return sorted(int(name) for name in names if name.isdigit())


def spelt(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Type and shape of arrays, or of what stands for them, as "float32[3, 4]" by name."""
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _check_hashes(found: Mapping[str, jax.Array], hashes: Mapping[str, int], step: int) -> None:
    seen = jax.device_get(leaf_hashes(found))
    damaged = sorted(name for name, value in seen.items() if int(value) != hashes[name])
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise DamagedError(f"checkpoint {step} is damaged: {damaged[0]}{more} does not match its fingerprint")


def _check_step(found: Mapping[str, jax.Array], step: int) -> None:
    if "step" in found and int(found["step"]) != step:
        raise DamagedError(f"checkpoint {step} is damaged: what lies there is that of step {int(found['step'])}")


def _check_shapes(wanted: Mapping[str, str], found: Mapping[str, str], step: int) -> None:
    for name, shape in wanted.items():
        if shape != found[name]:
            raise UsageError(
                f"checkpoint {step} does not fit the model: {name} is {shape} in the model, {found[name]} in the checkpoint"
            )


def _check_names(wanted: set[str], found: set[str], step: int, spare: str | None = None) -> None:
    """spare: how the names of arrays begin that the checkpoint may have although nothing wants them."""
    if "ema.count" in wanted - found:
        raise UsageError(f"checkpoint {step} has no average of the parameters: its run kept none; leave ema at 0")
    if "ema.count" in found - wanted:
        raise UsageError(f"checkpoint {step} has an average of the parameters; give the ema of its run")
    if spare is not None:
        found = {name for name in found if name in wanted or not name.startswith(spare)}
    for missing, where, other in ((wanted - found, "checkpoint", "model"), (found - wanted, "model", "checkpoint")):
        if missing:
            raise UsageError(
                f"checkpoint {step} does not fit the model: {sorted(missing)[0]} and {len(missing) - 1} more are in the "
                f"{other} but not in the {where}"
            )
