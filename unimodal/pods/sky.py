"""SkyPilot: a task file, given to sky, on whichever cloud it finds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from unimodal.errors import UsageError
from unimodal.hosts.peer import EXIT_LOST, EXIT_STOPPED
from unimodal.pods.cloud import Cloud
from unimodal.pods.description import Pod, chosen, gpus, tpu_slice
from unimodal.pods.environment import PYTHON, environment
from unimodal.pods.tools import Step, explain, run, to_yaml
from unimodal.pods.volume import check_workdir, in_bucket, volume

REASONS = (
    (r"no cloud (access|is enabled)|sky check|credentials", "no cloud is set up: run sky check"),
    (r"already exists|is already in use|name .* taken", "the name is in use: choose another --name"),
    (r"quota", "the cloud's quota does not allow this"),
    (r"failed to provision|resourcesunavailable|no launchable resource", "no cloud has these machines at the moment"),
)


def task(pod: Pod, program: Sequence[str]) -> dict[str, Any]:
    """The task as SkyPilot's YAML has it."""
    platform = chosen(pod)
    check_workdir(pod, program, "the machines' own disks, which go with them")
    if pod.slices > 1:
        raise UsageError("SkyPilot does not tell TPU slices of each other: for --slices use tpu-vm or gke")
    shared = volume(pod)
    resources: dict[str, Any] = {"use_spot": pod.spot}
    if pod.zone:
        resources["infra"] = f"gcp/*/{pod.zone}" if platform == "tpu" else f"*/*/{pod.zone}"
    if platform == "tpu":
        resources["accelerators"] = f"tpu-{tpu_slice(pod.topology).accelerator_type}"
        joining = ["export UNIMODAL_JOIN=1"]
    else:
        kind, count = gpus(pod.accelerator)
        resources["accelerators"] = f"{kind}:{count}"
        joining = [
            'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n1):8476"',
            "export JAX_NUM_PROCESSES=$SKYPILOT_NUM_NODES JAX_PROCESS_ID=$SKYPILOT_NODE_RANK",
        ]
    if pod.image:
        resources["image_id"] = f"docker:{pod.image}"
    if pod.spot:
        resources["job_recovery"] = {
            "max_restarts_on_errors": 0,
            "recover_on_exit_codes": [EXIT_STOPPED, EXIT_LOST],
        }
    extra = ("tpu" if platform == "tpu" else "cuda") + (",gs" if in_bucket(program) else "")
    setup = [
        "pip install --quiet uv",
        f"uv venv --quiet --allow-existing --python {PYTHON} .venv",
        f"uv pip install --quiet --python .venv/bin/python -e '.[{extra}]' -c constraints.txt",
        *([pod.setup] if pod.setup else []),
    ]
    words = [".venv/bin/python" if word == "python" else word for word in program]
    return {
        "name": pod.name,
        "num_nodes": 1 if platform == "tpu" else pod.processes,  # SkyPilot counts a TPU slice as one
        "workdir": ".",
        **({"file_mounts": {shared.path: {"source": shared.source, "mode": "MOUNT"}}} if shared else {}),
        "resources": resources,
        "envs": environment(platform),
        "setup": "\n".join(setup) + "\n",
        "run": "\n".join([*joining, f"exec {shlex.join(words)}"]) + "\n",  # exec: SIGTERM reaches Python
    }


def _launch(pod: Pod, program: Sequence[str]) -> Step:
    file = f"{pod.name}.sky.yaml"
    text = to_yaml(task(pod, program))
    words = ("sky", "jobs", "launch", "--yes", "--detach-run", f"--name={pod.name}", file)
    if not pod.spot:
        words = ("sky", "launch", "--yes", "--detach-run", f"--cluster={pod.name}", file)
    return Step(words, files=((file, text),))


def _present(pod: Pod) -> Step:
    return Step(("sky", "jobs", "queue", "--skip-finished") if pod.spot else ("sky", "status", pod.name))


def _refuse_taken(pod: Pod) -> None:
    # Sky itself would run the task beside what is there.
    there = run(_present(pod))
    if there.code and "not found" not in there.output + there.errors:
        raise UsageError(explain(_present(pod), there, REASONS))
    if any(pod.name in line.split() for line in there.output.splitlines() if "not found" not in line):
        raise UsageError(f"the name is in use: sky has a {pod.name}; choose another --name, or --action=delete first")


def _logs(pod: Pod) -> Step:
    return Step(("sky", "jobs", "logs", f"--name={pod.name}") if pod.spot else ("sky", "logs", pod.name))


def _delete(pod: Pod) -> Step:
    words = ("sky", "jobs", "cancel", "--yes", f"--name={pod.name}") if pod.spot else ("sky", "down", "--yes", pod.name)
    return Step(words)


CLOUD = Cloud(_launch, _logs, _delete, "end", REASONS, _refuse_taken)
