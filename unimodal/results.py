"""The end of a run: every task evaluated in full against its baseline, results.json, report.html, and the table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from etils import epath

from unimodal.answers import HOLE, Answer, offered
from unimodal.continual.matrix import matrix_of
from unimodal.data.sources import open_source
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation, Reader, Result, Shown, result
from unimodal.evaluation.samples import AttentionMap, FilledText, TextSample
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
        found.results[name] = result(evaluation, measured, untrained[name])
        shown = measured.shown if jax.process_count() == 1 else None
        found.samples[name] = [] if shown is None else list(evaluation.samples(model, shown))
        if shown is not None and (command := command_of(experiment, name, shown, found.samples[name], workdir)):
            found.commands[name] = command
    return found


def _run_facts(experiment: Experiment, fingerprint: str) -> dict[str, str]:
    """Facts for the head of the report."""
    program = experiment.program
    facts = {"devices": str(experiment.mesh.devices.flat[0].device_kind), "fingerprint": fingerprint}
    if program.ema and program.evaluate_ema:
        facts["evaluated"] = f"the average, ema={program.ema:g}"
    return facts


def command_of(
    experiment: Experiment, name: str, shown: Shown, samples: Sequence[Any], workdir: epath.PathLike
) -> str | None:
    """The command that asks the samples of an evaluation again: by their records, or by their texts where examples are
    windows of documents. None where there is neither, as of stretches of recordings, or nothing that the task can be asked.

    An evaluation that a config attaches has the field `task`, a task or its name, and may say by `again` how it asks.
    """
    attached: Any = experiment.evaluations.get(name)
    of = getattr(attached, "task", None)
    owns = lambda task: name in task.evaluations() or of is not None and of in (task, task.name)  # noqa: E731
    task: Any = next(filter(owns, experiment.tasks), None)
    if not samples or task is None or not (answers := offered(task, experiment.model)):
        return None
    asked = _again(samples, answers)
    if asked is None and hasattr(attached, "again"):
        asked = attached.again(shown)
    elif asked is None and name in task.evaluations() and hasattr(task, "source"):
        records = open_source(task.source, "validation")
        if len(records) == len(experiment.reader.examples(task.inputs, experiment.model, "validation")):
            asked = [f"{task.source}#{int(i)}" for i in shown.index]
    if asked is None:
        return None
    return shlex.join(["unimodal", "predict", str(workdir), *asked, f"--task={task.name}"])


def _again(samples: Sequence[Any], answers: Sequence[Answer]) -> list[str] | None:
    """The texts of samples, as `predict` takes them, with its flags. None for samples that are no texts alone."""
    gives = {answer.gives for answer in answers}
    # A prompt that begins with a dash, as speech in books does, would be taken for a flag.
    written = [
        sample
        for sample in samples
        if isinstance(sample, TextSample) and sample.again and not sample.prompt.startswith("-")
    ]
    if written and "continuation" in gives:
        return [*(sample.prompt for sample in written), *(f"--{name}={value:g}" for name, value in written[0].again)]
    gaps = [sample for sample in samples if isinstance(sample, FilledText) and sample.spans]
    return [sample.with_gaps(HOLE) for sample in gaps] if gaps and "masked words" in gives else None


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
