"""The end of a run: every task evaluated in full against its baseline, results.json, report.html, and the table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from etils import epath

from unimodal.continual.matrix import matrix_of
from unimodal.data.sources import open_source
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation, Reader, Result, Shown, result
from unimodal.evaluation.samples import AttentionMap
from unimodal.experiment import Experiment
from unimodal.report import Report
from unimodal.scores import FILE
from unimodal.sharding import parameter_count, parameter_table
from unimodal.storage import write_whole
from unimodal.training.metrics import curves, finite_only, read_metrics
from unimodal.training.progress import results_table
from unimodal.training.step import Program, TrainState

# The files that a run writes at its end.
RESULTS = (FILE, "report.html")


def finish(
    experiment: Experiment,
    state: TrainState,
    fingerprint: str,
    workdir: epath.Path,
    *,
    config_text: str,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Evaluate in full against the baselines, then write results.json and report.html and print the table."""
    step = int(state.step)
    evaluated = _evaluated(experiment, state, workdir, say)
    compared = experiment.affinity and len(experiment.tasks) > 1 and not experiment.fake_data
    affinity = experiment.task_affinity(state) if compared else None
    if jax.process_index() != 0:
        return
    rows = {name: result.as_dict() for name, result in evaluated.results.items()}
    summary: dict[str, Any] = {"tasks": rows, "step": step, "fingerprint": fingerprint}
    if affinity is not None:
        summary["affinity"] = affinity
    scored = curves(logged := read_metrics(workdir), "validation/value")
    forgetting = None if experiment.sequence is None else matrix_of(experiment.sequence, scored, rows)
    if forgetting is not None:
        summary["continual"] = {**forgetting, "memory_bytes": experiment.memory_bytes}
    write_whole(workdir / FILE, json.dumps(finite_only(summary), indent=2, allow_nan=False))
    table = parameter_table(experiment.model, experiment.mesh)
    total = parameter_count(table)
    samples = evaluated.samples
    Report(
        title=workdir.name,
        subtitle=f"{', '.join(rows)} in {total:,} parameters",
        run={"steps": step, **facts, **_run_facts(experiment, fingerprint)},
        results=rows,
        curves=curves(logged),
        eval_curves=scored,
        affinity=affinity,
        forgetting=forgetting,
        samples={n: [s for s in found if not isinstance(s, AttentionMap)] for n, found in samples.items()},
        commands=evaluated.commands,
        attention=[s for found in samples.values() for s in found if isinstance(s, AttentionMap)],
        parameters=table,
        total_parameters=total,
        config_text=config_text,
    ).write(workdir / "report.html")
    results_table(rows)
    say(f"wrote {workdir / FILE} and {workdir / 'report.html'}")


@dataclass
class _Evaluated:
    """What the evaluations of a run gave, by name."""

    results: dict[str, Result] = field(default_factory=dict)
    samples: dict[str, list[Any]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)  # those that ask the samples again


def _evaluated(
    experiment: Experiment, state: TrainState, workdir: epath.Path, say: Callable[[str], None]
) -> _Evaluated:
    """Evaluate the untrained model, then the trained one."""
    program, reader, found = experiment.program, experiment.reader, _Evaluated()
    if int(state.step) == 0:  # what was not trained is compared with random weights
        program = replace(program, start=None)
    untrained = _score_untrained(program, experiment.evaluations, reader, say)
    model = program.model(state)
    for name, evaluation in experiment.evaluations.items():
        measured = evaluation.measure(model, reader)
        found.results[name] = result(evaluation, measured.score, untrained[name])
        shown = measured.shown if jax.process_count() == 1 else None
        found.samples[name] = [] if shown is None else list(evaluation.samples(model, shown))
        if found.samples[name] and (command := command_of(experiment, name, shown, workdir)):
            found.commands[name] = command
    return found


def _run_facts(experiment: Experiment, fingerprint: str) -> dict[str, str]:
    """Facts for the head of the report."""
    program = experiment.program
    facts = {"devices": str(experiment.mesh.devices.flat[0].device_kind), "fingerprint": fingerprint}
    if program.ema and program.evaluate_ema:
        facts["evaluated"] = f"the average, ema={program.ema:g}"
    return facts


def command_of(experiment: Experiment, name: str, shown: Shown | None, workdir: epath.Path) -> str | None:
    """The command that answers the records of a task's samples again. None where its examples are not a source's records,
    such as windows of documents and stretches of recordings, or where the task says nothing of what it can be asked."""
    task: Any = next((task for task in experiment.tasks if task.name == name), None)
    if shown is None or not hasattr(task, "answers") or not hasattr(task, "source"):
        return None
    records = open_source(task.source, "validation")
    if len(records) != len(task.inputs(experiment.model).dataset("validation")):
        return None
    inputs = " ".join(shlex.quote(f"{task.source}#{int(i)}") for i in shown.index)
    return f"unimodal predict {shlex.quote(str(workdir))} {inputs} --task={shlex.quote(name)}"


def _score_untrained(
    program: Program, evaluations: Mapping[str, Evaluation], reader: Reader, say: Callable[[str], None]
) -> dict[str, Mapping[str, float]]:
    """Score each evaluation before the first step; with random weights if what training started from is gone since."""
    try:
        model = program.first_model()
    except UsageError as error:
        say(f"{error}; so 'untrained' is of random weights")
        model = replace(program, start=None).first_model()
    return {name: evaluation.measure(model, reader).score for name, evaluation in evaluations.items()}
