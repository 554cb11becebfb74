"""Commands that take a config: a recipe becomes an Experiment, which is trained, evaluated, planned or given to a pod."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from unimodal import hosts
from unimodal.brought import with_brought
from unimodal.chips import peak_flops
from unimodal.command.committing import committer
from unimodal.command.compiled import require_private_cache
from unimodal.command.data import run_data
from unimodal.command.going_on import check_order, prepare_to_adapt, rescheduled
from unimodal.command.process import started_again
from unimodal.command.recipe import as_plain, change, config_of_workdir, load_recipe
from unimodal.command.stopping import stoppable
from unimodal.command.words import USE, Words, parse, usage
from unimodal.configuration import nearest, typed
from unimodal.data.skipped import FILE, LEDGER
from unimodal.errors import StorageError, UsageError
from unimodal.experiment import Experiment, build, describe
from unimodal.kept import check_encoders, keep_encoders, keep_learned, with_encoders
from unimodal.ledger.start import pinned
from unimodal.places import ALONG, Places, find_recipe, places_of
from unimodal.results import RESULTS, finish
from unimodal.settings import MeshConfig, read_settings
from unimodal.storage import folder, is_remote, lost, one_line, require_backend
from unimodal.training.alone import alone
from unimodal.training.checkpoint import Checkpoints, saved_steps
from unimodal.training.loop import train
from unimodal.training.meters import Cost
from unimodal.training.work import Resumption, Validation, Work
from unimodal.training.workdir import claim_workdir, differences

# Fields that do not change what is learned, as patterns: a run may go on with others. Steps may grow.
MAY_DIFFER = (
    "mesh",
    "steps",
    "log_every",
    "eval_every",
    "eval_limit",
    "evaluate_ema",
    "affinity",
    "checkpoint_every",
    "commit_every",
    "ledger",
    "ledger_branch",
    "keep_checkpoints",
    "verify_checkpoints",
    "keep_every",
    "keep_best",
    "stop_after",
    "max_bad_steps",
    "compare_replicas_every",
    "profile",
    "example_losses_every",
    "workers",
    "decoded_cache",
    # how it is computed
    "backbones.*.attention",
    "backbones.*.remat",
    "backbones.*.scan",
    "tasks.*.chunk",
    # what evaluation alone reads
    "evaluations",
    "tasks.*.evaluations",
    "tasks.*.beam",
    "tasks.*.perplexity_floor",
)


@dataclass(frozen=True)
class Order:
    """A command line with what it names: the config, the workdir, and where tasks are looked up."""

    words: Words  # as they were parsed
    config: ConfigDict  # with the fields that the words change
    workdir: epath.Path  # the current folder where none is named
    places: Places  # where tasks are looked up

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The config as it is kept in the workdir: with what comes along from the weights it starts from."""
        plain = as_plain(self.config)
        if not plain:
            return plain
        # Note in the config that data was made up, so that nobody evaluates such a run by mistake.
        plain["fake_data"] = bool(self.words.fake_data or plain.get("fake_data"))
        goes_on = self.words.workdir is not None and (self.workdir / "config.json").is_file()
        there = as_plain(config_of_workdir(self.workdir)) if goes_on else None
        return with_brought(pinned(plain, there), self.places.task_class, there)

    def meaning(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """A config with every field that there is, so that two that mean the same are equal."""
        return read_settings(plain, self.places.task_class).as_plain()

    def build(self, **changes: Any) -> Experiment:
        plain = self.plain if self.words.workdir is None else with_encoders(self.workdir, self.plain)
        return build({**plain, **changes}, self.places.task_class)


def run(arguments: Sequence[str], program: str) -> int:
    """Run a command line without the program's name; returns the exit code. Raises UsageError."""
    logging.set_verbosity(logging.WARNING)
    if arguments[:1] == ["data"]:
        with mendable():
            return run_data(arguments[1:], program)
    if arguments[:1] == ["ledger"]:
        from unimodal.command.ledger import run_ledger  # only here: training need not wait for it

        with mendable():
            return run_ledger(arguments[1:], program)
    if arguments[:1] == ["pod"]:
        return run_pod(arguments, program)
    if arguments and arguments[0] in USE:
        from unimodal.command.use import run_use  # only here: training need not wait for it

        with mendable():
            return run_use(parse(arguments, program), program)
    order = read(arguments, program)
    require_backend(order.workdir)
    require_private_cache()
    commands = {"train": run_train, "eval": run_eval, "plan": run_plan, "doctor": run_doctor}
    try:
        with hosts.as_one(initialise_processes(order)) as lifeline, mendable():
            if lifeline is not None and order.words.command in ("train", "eval") and not order.words.dry_run:
                hosts.check_shared(lifeline, order.workdir, say)
            with stoppable("before it was under way") if order.words.command == "train" else contextlib.nullcontext():
                return commands[order.words.command](order, lifeline)
    except hosts.LostError as error:
        print(f"error: {error}", file=sys.stderr)
        return hosts.EXIT_LOST


def read(arguments: Sequence[str], program: str) -> Order:
    """Find what a command line names, and change its fields. Raises UsageError."""
    words = parse(arguments, program)
    workdir = folder(words.workdir or ".")
    recipe = None
    if words.config is not None:
        recipe, argument = find_recipe(words.config)
        places = places_of(recipe)
        places.open()
        config = load_recipe(recipe, argument)
    else:
        places = places_of(None)
        if words.command in ("train", "eval") and words.workdir is not None:
            config = config_of_workdir(workdir)
        elif words.command == "doctor":
            config = ConfigDict()
        else:
            raise UsageError(f"--config is missing; {usage(program)}")
    for field, text in words.changes:
        change(config, field, text)
    if words.workdir is None and not words.dry_run and words.command in ("train", "eval"):
        raise UsageError(f"--workdir is missing; {usage(program)}")
    return Order(words, config, workdir, places)


def run_train(order: Order, lifeline: hosts.Lifeline | None) -> int:
    workdir = order.workdir
    check_encoders(workdir, order.plain)
    experiment = order.build()
    saved = saved_steps(workdir)
    if (first := order.words.step) is not None:
        if first not in saved:
            raise UsageError(
                f"--step={first}: {workdir} has checkpoints of steps {', '.join(map(str, saved)) or 'none'}"
            )
        saved = [step for step in saved if step <= first]
    if experiment.init_from is not None and not saved:  # else the run goes on with its own
        say(experiment.start.report())
    if order.words.dry_run:
        say(describe(experiment))
        return 0
    if saved and max(saved) > experiment.loop.steps:
        raise UsageError(
            f"{workdir} has been trained for {max(saved)} steps, more than steps={experiment.loop.steps}: "
            f"give at least as many, or another workdir"
        )
    # Check before training that results can be written: after days it would be too late.
    check_results(workdir)
    with alone(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        return train_and_evaluate(order, experiment, saved, lifeline)


def train_and_evaluate(
    order: Order, experiment: Experiment, saved: Sequence[int], lifeline: hosts.Lifeline | None
) -> int:
    """The run itself, in a workdir that is ours alone; `saved`: the steps of the checkpoints that it may go on from."""
    plain, workdir = order.plain, order.workdir
    adapt = bool(order.words.adapt and saved)
    may_differ = ("*",) if adapt else MAY_DIFFER
    # Before anything is added to its files.
    found = differences(workdir, plain, may_differ=may_differ, meaning=order.meaning)
    if saved and not adapt and "steps" in found:
        check_order(experiment, max(saved), found["steps"][0])
    if line := started_again():
        say(line)
    list_skipped(workdir)
    tasks, schedule = experiment.tasks, None
    if experiment.sequence is None:
        batches = {task.name: experiment.train_batches(task) for task in tasks}
    else:
        plan = experiment.plan()
        tasks, schedule, batches = plan.tasks, plan.schedule, plan.batches
        if kept := experiment.memory_bytes:
            say(
                f"remembers {sum(kept.values()):,} bytes of examples: {', '.join(f'{n} {b:,}' for n, b in kept.items())}"
            )
    evaluations = {} if experiment.fake_data else experiment.checked_evaluations()
    best = experiment.loop.keep_best
    if best is not None and best not in evaluations:
        raise UsageError(f"keep_best={best!r} is no evaluation of this run; {nearest(best, list(evaluations))}")
    experiment.loop.check_best()
    if adapt:
        say(prepare_to_adapt(experiment, workdir, max(saved)))
    changed = claim_workdir(workdir, plain, may_differ=may_differ, renew=True, meaning=order.meaning)
    if jax.process_index() == 0:
        keep_encoders(workdir, plain)
        if not experiment.fake_data:
            keep_learned(workdir, experiment.tasks)
    # Where a task reads its data in another way, a place in them means nothing.
    anew = {task.name for task in experiment.tasks if any(field.startswith(f"tasks.{task.name}.") for field in changed)}
    if "seed" in changed:  # the order of all data follows from it
        anew |= {task.name for task in experiment.tasks}
    if "steps" in changed and saved:
        say(rescheduled(experiment, max(saved), *changed["steps"]))
    directions = {name: each.higher_is_better for name, each in evaluations.items()}
    began = time.monotonic()
    state, fingerprint, done = train(
        experiment.program,
        Work(tasks, batches, experiment.tokens, cost(experiment), schedule),
        experiment.loop,
        workdir,
        validation=Validation(experiment.scores if evaluations else None, directions),
        resumption=Resumption(order.words.step, anew if adapt else None),
        together=lifeline,
        commit=committer(experiment, str(workdir), plain, say),
    )
    if not done:
        say(f"stopped after step {int(state.step)}; run the same command to go on")
        asked = experiment.loop.stop_after
        return 0 if asked is not None and int(state.step) >= asked else hosts.EXIT_STOPPED
    if not evaluations:
        return 0
    # Nothing but time is lost if it ends here: the same command restores the last checkpoint, and evaluates that.
    with stoppable("in the final evaluation"):
        facts = {"training took": f"{time.monotonic() - began:.0f} s"}
        finish(experiment, state, fingerprint, workdir, config_text=str(ConfigDict(order.plain)), facts=facts, say=say)
    if line := LEDGER.report():
        say(line)
    return 0


def list_skipped(workdir: epath.Path) -> None:
    """Begin the run's list of records that cannot be used. Only folders have one: nothing can be added to a bucket's files."""
    number = jax.process_index()
    LEDGER.clear()
    if not is_remote(workdir):
        LEDGER.list_in(Path(workdir) / (FILE if number == 0 else f"{number}-{FILE}"))


def cost(experiment: Experiment) -> Cost:
    """The cost that MFU is computed from; empty where no peak of the chip is known."""
    peak = peak_flops(experiment.mesh.devices.flat[0].device_kind)
    if peak is None:
        return Cost()
    from unimodal.plan.model_flops import model_flops  # traces every task once more

    return Cost({task.name: model_flops(experiment, [task.name]) for task in experiment.tasks}, peak)


def run_eval(order: Order, _lifeline: hosts.Lifeline | None) -> int:
    workdir = order.workdir
    experiment = order.build()
    if not (workdir / "config.json").exists():
        return eval_untrained(order, experiment)
    if experiment.fake_data:
        raise UsageError(f"{workdir} was trained on random batches: there is nothing to evaluate it on")
    claim_workdir(workdir, order.plain, may_differ=MAY_DIFFER, meaning=order.meaning)
    check_results(workdir)
    with Checkpoints(workdir) as checkpoints:
        state, _, fingerprint = checkpoints.restore(experiment.program.abstract_state(), order.words.step)
    with stoppable("in the evaluation"):
        finish(experiment, state, fingerprint, workdir, config_text=str(ConfigDict(order.plain)), facts={}, say=say)
    return 0


def eval_untrained(order: Order, experiment: Experiment) -> int:
    """Evaluate what `init_from` names as it is: nothing is trained, and the workdir holds the results alone."""
    workdir = order.workdir
    if experiment.init_from is None:
        raise UsageError(f"{workdir} is not a workdir: it has no config.json; train first, or give init_from")
    say(experiment.start.report())
    check_results(workdir)
    if not is_remote(workdir):  # a bucket has no folders
        workdir.mkdir(parents=True, exist_ok=True)
    state = experiment.program.init()
    facts = {"weights": f"of {experiment.init_from}, not trained here"}
    finish(experiment, state, "", workdir, config_text=str(ConfigDict(order.plain)), facts=facts, say=say)
    return 0


def run_doctor(order: Order, lifeline: hosts.Lifeline | None) -> int:
    from unimodal.hosts.doctor import examine

    workdir = order.workdir if order.words.workdir else None
    examine(lifeline, ALONG, as_plain(order.config), workdir, say, own=order.places.own)
    return 0


def run_plan(order: Order, _lifeline: hosts.Lifeline | None) -> int:
    from unimodal import plan  # only here: it may choose JAX's platform, and nobody else needs it

    words = order.words
    path = None if words.json is None else Path(words.json)
    if path is not None and path.is_dir():
        raise UsageError(f"--json={path} is a folder; give a file")
    task_class, plain = order.places.task_class, as_plain(order.config)
    plan.run_plan(plain, task_class, topology=words.topology, mesh=words.mesh, json_path=path, say=say)
    return 0


def run_pod(arguments: Sequence[str], program: str) -> int:
    """Hand a run over to a platform's own tool."""
    from unimodal.plan.meshes import check_mesh
    from unimodal.pods.command import launch_pod

    def check(command: str, given: list[str], devices: int) -> None:
        order = read([command, *given], program)
        # Whether the run goes on is for its hosts to see: this machine may not reach the bucket.
        order = replace(order, words=replace(order.words, workdir=None))
        if order.plain:  # on a device of this machine: nothing is made
            single = order.build(mesh=dict(data=1))
            check_mesh(single, vars(typed(MeshConfig, order.plain.get("mesh", {}), "mesh")), devices)

    return launch_pod(arguments[1:], check, ALONG)


def say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def initialise_processes(order: Order) -> hosts.Lifeline | None:
    """Join the other processes, where the environment says that there are any."""
    simulated = jax.config.values["jax_num_cpu_devices"]
    if simulated > (os.cpu_count() or 1):
        # XLA runs them on a thread per core, where each may block in a collective. With fewer threads than that it can
        # stop for ever, so tell it of more cores.
        os.environ.setdefault("NPROC", str(4 * simulated))
    return hosts.join(ALONG, as_plain(order.config), str(order.workdir), own=order.places.own)


def check_results(workdir: epath.Path) -> None:
    """Raises UsageError if a folder stands where the run is to write a file: now, and not when it is trained."""
    for name in () if is_remote(workdir) else RESULTS:
        if (workdir / name).is_dir():
            raise UsageError(f"cannot write {workdir / name}: it is a folder; move it away, or choose another workdir")


@contextlib.contextmanager
def mendable() -> Iterator[None]:
    """Turn what the operating system refuses (a full or read-only disk, a folder for a file) into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        if lost(error):
            where = "" if error.filename is None else f"{error.filename}: "
            raise StorageError(f"{where}{one_line(error)}; mend this, and run the same command to go on") from error
        if error.errno is None or error.filename is None:
            raise
        raise UsageError(f"{error.filename}: {one_line(error)}") from error
