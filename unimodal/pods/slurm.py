"""Slurm: a batch script, given to sbatch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from unimodal.errors import UsageError
from unimodal.hosts.peer import EXIT_STOPPED
from unimodal.pods.cloud import Cloud
from unimodal.pods.description import Pod, gpus
from unimodal.pods.environment import environment
from unimodal.pods.tools import Step, must
from unimodal.pods.volume import volume

REASONS = (
    (r"invalid partition", "the cluster has no such partition: sinfo lists those there are"),
    (r"invalid account|account/partition", "the account may not use this partition: check --account"),
    (r"qos|limit|quota", "a limit of the cluster does not allow this"),
    (r"node configuration is not available|invalid generic resource", "no node has these GPUs: check --accelerator"),
    (r"unable to contact|connection (refused|timed out)", "the Slurm controller does not answer"),
)


def script(pod: Pod, program: Sequence[str]) -> str:
    """The batch script. One process per GPU, as JAX expects of Slurm."""
    kind, count = gpus(pod.accelerator)
    volume(pod)
    options = [
        f"--job-name={pod.name}",
        f"--nodes={pod.processes}",
        f"--ntasks-per-node={count}",
        f"--gpus-per-node={kind.lower()}:{count}",
        f"--time={pod.time}",
        f"--output={pod.name}-%j.log",
        "--open-mode=append",  # a requeued job goes on in the same log
        "--requeue",
        "--signal=TERM@120",  # to the processes, two minutes before the time is up: they write a checkpoint
        *([f"--partition={pod.partition}"] if pod.partition else []),
        *([f"--account={pod.account}"] if pod.account else []),
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), ""]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment("gpu").items()]
    lines += [
        "export JAX_COORDINATOR_PORT=$((20000 + 2 * (SLURM_JOB_ID % 10000)))  # and the guard on the next",
        *([pod.setup] if pod.setup else []),
        "# When one process stops with a checkpoint, the others are still writing theirs: they are not to be killed.",
        f"srun --kill-on-bad-exit=0 {shlex.join(program)}",
        "code=$?",
        f"if [ $code -ne 0 ] && [ $code -ge {EXIT_STOPPED} ] && [ ${{SLURM_RESTART_COUNT:-0}} -lt {pod.restarts} ]; then",
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        "exit $code",
        "",
    ]
    return "\n".join(lines)


def _submit(pod: Pod, program: Sequence[str]) -> Step:
    return Step(("sbatch", "--parsable"), stdin=script(pod, program))


def _refuse_taken(pod: Pod) -> None:
    queue = Step(("squeue", "--me", "--noheader", f"--name={pod.name}", "--format=%i"))
    if there := must(queue, REASONS).split():
        raise UsageError(
            f"the name is in use: job {there[0]} of yours is called {pod.name}; choose another --name, or --action=delete"
        )


def _logs(pod: Pod) -> Step:
    return Step(("bash", "-c", f"tail -n 100 -F {pod.name}-*.log"))


def _cancel(pod: Pod) -> Step:
    return Step(("scancel", "--me", f"--name={pod.name}"))


def _number(said: str) -> str:
    # With --parsable, sbatch writes NUMBER or NUMBER;CLUSTER.
    return f"job {said.strip().split(';')[0]}"


CLOUD = Cloud(_submit, _logs, _cancel, "cancel", REASONS, _refuse_taken, _number)
