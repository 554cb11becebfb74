"""The one entry point.

    python launch.py train --config=configs/NAME.py[:argument] --workdir=DIR [--config.any.field=value]
    python launch.py eval  --config=configs/NAME.py[:argument] --workdir=DIR
    python launch.py doctor [--config=…] [--workdir=DIR]                    is every host fit for a run?
    python launch.py pod   --platform=local|tpu-vm|gke|slurm|sky --config=… --workdir=DIR [--dry_run]   docs/pods
    python launch.py plan  --config=configs/NAME.py[:argument] --topology=v5p:8x8x8 [--mesh=auto] [--json=FILE]

Reads a config, builds Task objects, hands them to the loop, then evaluates and writes results.json and report.html.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from unimodal import hosts
from unimodal.chips import peak_flops
from unimodal.configuration import nearest, typed
from unimodal.errors import UsageError
from unimodal.experiment import Experiment, MeshConfig, build, describe
from unimodal.results import finish
from unimodal.storage import folder, require_backend
from unimodal.training.checkpoint import Checkpoints, claim_workdir, has_checkpoint
from unimodal.training.loop import train
from unimodal.training.meters import Cost
from unimodal.training.optimizer import OptimizerConfig

COMMANDS = ("train", "eval", "plan", "doctor", "pod")
NO_WORKDIR = ("plan", "doctor")
TASKS = Path(__file__).parent / "tasks"

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py, or configs/NAME.py:argument")
WORKDIR = flags.DEFINE_string("workdir", None, "where checkpoints, metrics and results go: a folder, or gs://BUCKET/…")
FAKE_DATA = flags.DEFINE_bool("fake_data", False, "train on random batches of the right shapes; evaluate nothing")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print what would run, and stop")
STEP = flags.DEFINE_integer("step", None, "eval: the checkpoint's step (default: the latest)")
TOPOLOGY = flags.DEFINE_string("topology", None, "plan: what to compile for, as v5p:8x8x8, cpu:8 or gpu")
MESH = flags.DEFINE_string("mesh", None, "plan: auto tries the meshes that divide the topology and the model")
JSON = flags.DEFINE_string("json", None, "plan: where to write the figures")

# Fields that do not change what is learned: a workdir may be resumed with others.
MAY_DIFFER = (
    "mesh",
    "log_every",
    "eval_every",
    "eval_limit",
    "checkpoint_every",
    "keep_checkpoints",
    "stop_after",
    "profile",
)
# What holds for fields of the optimizer in a workdir from before they were there.
DEFAULTS = json.loads(json.dumps({"optimizer": dataclasses.asdict(OptimizerConfig())}))


def main(arguments: list[str]) -> int:
    """Exit codes: 0 done, 2 something to mend first, 75 stopped with a checkpoint, 76 another process was lost."""
    logging.set_verbosity(logging.WARNING)
    try:
        if arguments[1:2] == ["pod"]:
            return run_pod(arguments)
        command, config, workdir = parse(arguments)
        require_backend(workdir)
        commands = {"train": run_train, "eval": run_eval, "plan": run_plan, "doctor": run_doctor}
        with hosts.as_one(initialise_processes(config, workdir)) as lifeline:
            if lifeline is not None and command in ("train", "eval") and not DRY_RUN.value:
                hosts.check_shared(lifeline, workdir, say)
            code = commands[command](config, workdir, lifeline)
    except (UsageError, hosts.LostError) as error:
        print(f"error: {error}", file=sys.stderr)
        return hosts.EXIT_USAGE if isinstance(error, UsageError) else hosts.EXIT_LOST
    return code


def run_train(config: ConfigDict, workdir: epath.Path, lifeline: hosts.Lifeline | None) -> int:
    plain, fake_data = as_plain(config), FAKE_DATA.value
    experiment = build(plain, task_class, fake_data=fake_data)
    if experiment.init_from is not None and not has_checkpoint(workdir):  # else the run goes on with its own
        say(experiment.start.report())
    if DRY_RUN.value:
        say(describe(experiment))
        return 0
    batches = {task.name: experiment.train_batches(task) for task in experiment.tasks}
    evaluators = {} if fake_data else {task.name: experiment.evaluator(task) for task in experiment.tasks}
    claim_workdir(workdir, {**plain, "fake_data": fake_data}, may_differ=MAY_DIFFER, defaults=DEFAULTS)

    def evaluate(model: Any, step: int) -> dict[str, dict[str, float]]:
        return {name: e.score(model, limit=experiment.eval_limit) for name, e in evaluators.items()}

    began = time.monotonic()
    state, fingerprint, done = train(
        experiment.program,
        experiment.tasks,
        batches,
        experiment.loop,
        workdir,
        tokens={task.name: task.tokens(experiment.model) for task in experiment.tasks},
        evaluate=evaluate if evaluators else None,
        together=lifeline,
        cost=cost(experiment),
    )
    if not done:
        say(f"stopped after step {int(state.step)}; run the same command to go on")
        asked = experiment.loop.stop_after
        return 0 if asked is not None and int(state.step) >= asked else hosts.EXIT_STOPPED
    if evaluators:
        facts = {"training took": f"{time.monotonic() - began:.0f} s"}
        finish(experiment, evaluators, state, fingerprint, workdir, config_text=str(config), facts=facts, say=say)
    return 0


def cost(experiment: Experiment) -> Cost:
    """What the meters make MFU of; nothing where no peak of the chip is known."""
    peak = peak_flops(experiment.mesh.devices.flat[0].device_kind)
    if peak is None:
        return Cost()
    from unimodal.plan.model_flops import model_flops  # traces every task once more

    return Cost({task.name: model_flops(experiment, [task.name]) for task in experiment.tasks}, peak)


def run_eval(config: ConfigDict, workdir: epath.Path, _lifeline: hosts.Lifeline | None) -> int:
    plain = as_plain(config)
    experiment = build(plain, task_class)
    if not (workdir / "config.json").exists():
        raise UsageError(f"{workdir} is not a workdir: it has no config.json; train first")
    claim_workdir(workdir, {**plain, "fake_data": False}, may_differ=MAY_DIFFER, defaults=DEFAULTS)
    evaluators = {task.name: experiment.evaluator(task) for task in experiment.tasks}
    checkpoints = Checkpoints(workdir)
    state, _, fingerprint = checkpoints.restore(experiment.program.abstract_state(), STEP.value)
    checkpoints.close()
    finish(experiment, evaluators, state, fingerprint, workdir, config_text=str(config), facts={}, say=say)
    return 0


def run_doctor(config: ConfigDict, workdir: epath.Path, lifeline: hosts.Lifeline | None) -> int:
    from unimodal.hosts.doctor import examine

    examine(lifeline, Path(__file__).parent, as_plain(config), workdir if WORKDIR.value else None, say)
    return 0


def run_plan(config: ConfigDict, _workdir: epath.Path, _lifeline: hosts.Lifeline | None) -> int:
    from unimodal import plan  # only here: it may choose JAX's platform, and nobody else needs it

    path = None if JSON.value is None else Path(JSON.value)
    plan.run_plan(as_plain(config), task_class, topology=TOPOLOGY.value, mesh=MESH.value, json_path=path, say=say)
    return 0


def run_pod(arguments: list[str]) -> int:
    """Hand a run over to a platform's own tool."""
    from unimodal.plan.meshes import check_mesh
    from unimodal.pods.command import launch_pod

    def check(command: str, given: list[str], devices: int) -> None:
        config = as_plain(parse([arguments[0], command, *given])[1])
        if config:  # on a device of this machine: nothing is made
            single = build({**config, "mesh": dict(data=1)}, task_class)
            check_mesh(single, vars(typed(MeshConfig, config.get("mesh", {}), "mesh")), devices)

    return launch_pod(arguments[2:], check, Path(__file__).parent)


# ---- how a command line becomes all that ---------------------------------------------------------------------------


def task_class(kind: str) -> type[Any]:
    """The class of a task kind: tasks/x_y.py holds XY. Raises UsageError for a kind that has no file."""
    known = sorted(path.stem for path in TASKS.glob("*.py") if path.stem != "__init__")
    if kind not in known:
        raise UsageError(f"there is no task {kind!r} in tasks/; {nearest(kind, known)}")
    return getattr(importlib.import_module(f"tasks.{kind}"), "".join(part.capitalize() for part in kind.split("_")))


def as_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dictionaries of JSON values."""
    return json.loads(config.to_json_best_effort())


def say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def initialise_processes(config: ConfigDict, workdir: epath.Path) -> hosts.Lifeline | None:
    """Join the other processes, where the environment says that there are any."""
    simulated = jax.config.values["jax_num_cpu_devices"]
    if simulated > (os.cpu_count() or 1):
        # XLA runs them on a thread per core, where each may block in a collective. With fewer threads than that it can
        # stop for ever, so tell it of more cores.
        os.environ.setdefault("NPROC", str(4 * simulated))
    return hosts.join(Path(__file__).parent, as_plain(config), str(workdir))


def parse(arguments: list[str]) -> tuple[str, ConfigDict, epath.Path]:
    """Command, config and workdir from the command line. Raises UsageError."""
    usage = f"usage: python launch.py {'|'.join(COMMANDS)} --config=configs/NAME.py --workdir=DIR"
    if len(arguments) < 2 or arguments[1].startswith("-"):
        raise UsageError(usage)
    command = arguments[1]
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}; {nearest(command, COMMANDS)}")
    config, extra = read_flags([arguments[0], *arguments[2:]])
    if extra:
        raise UsageError(f"unexpected argument {extra[0]!r}; {usage}")
    given: Any = flags.FLAGS["config"]
    file = given.config_filename.split(":")[0] if given.present else ""
    if file and not Path(file).is_file():
        raise UsageError(f"there is no config file {file}; {usage}")
    if config is None and command == "doctor":
        config = ConfigDict()
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config must name a file with get_config(); {usage}")
    if WORKDIR.value is None and not DRY_RUN.value and command not in NO_WORKDIR:
        raise UsageError(f"--workdir is missing; {usage}")
    return command, config, folder(WORKDIR.value or ".")


def read_flags(arguments: list[str]) -> tuple[Any, list[str]]:
    """What --config comes to with its fields changed, and the words that are no flags. Raises UsageError."""
    try:
        extra = flags.FLAGS(arguments)[1:]
        return CONFIG.value, extra
    except (AttributeError, KeyError) as error:  # ml_collections' way to say that a recipe has no such field
        name, hint = re.search(r"\w+", str(error)), re.search(r"Did you mean [^?]*\?", str(error))
        why = hint[0] if hint else "the recipe does not have it"
        raise UsageError(f"unknown config field {name[0] if name else error}: {why}") from error
    except (flags.Error, ValueError, ImportError, OSError, SyntaxError) as error:
        # A recipe that raised comes with its whole traceback: its last line says why.
        raise UsageError(" ".join(str(error).strip().rsplit("Error: ", 1)[-1].split())) from error
    except Exception as error:  # whatever else a recipe may raise: where, and what
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(f"{place.filename}, line {place.lineno}: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv))
