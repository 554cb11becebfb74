"""Holds what `launch.py pod` generates against what others know of it.

    pip install kubeflow-trainer-api && python benchmarks/manifests.py     models generated from JobSet's and Kubernetes' schemas
    pip install skypilot             && python benchmarks/manifests.py     SkyPilot's own loader

Each half runs where its package is installed: they are large, and pin what others want otherwise, so neither is among our dependencies.
Fails at the first thing that is refused, changed or lost.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from unimodal.pods import gke, sky
from unimodal.pods.description import Pod, split_flags
from unimodal.pods.tools import to_yaml

PROGRAM = ("python", "launch.py", "train", "--config=configs/demo.py", "--workdir=/runs/demo")
IMAGE = "--image=registry.example/unimodal:1"
JOB_SETS = (
    ("--platform=gke", "--topology=v5e:4x4", IMAGE, "--volume=claim:/runs"),
    ("--platform=gke", "--topology=v5p:4x4x8", "--slices=4", "--spot", IMAGE, "--volume=gs://bucket:/runs"),
    ("--platform=gke", "--accelerator=nvidia-h100-80gb:8", "--processes=4", IMAGE, "--volume=gs://bucket:/runs"),
    ("--platform=gke", "--topology=v6e:2x4", IMAGE, "--setup=mount server:/runs /runs"),
)
TASKS = (
    ("--platform=sky", "--accelerator=H100:8", "--processes=2", "--setup=mount server:/runs /runs"),
    ("--platform=sky", "--topology=v6e:4x4", "--spot", "--zone=us-east5-b", "--setup=mount server:/runs /runs"),
)


def differences(given: Any, read: Any, where: str = "") -> list[str]:
    """What is not the same in `read`, which may have defaults beside it."""
    if isinstance(given, dict) and isinstance(read, dict):
        lost = [f"{where}.{key} is lost" for key in given if key not in read]
        return lost + [d for key in given if key in read for d in differences(given[key], read[key], f"{where}.{key}")]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        pairs = enumerate(zip(given, read, strict=True))
        return [d for number, (a, b) in pairs for d in differences(a, b, f"{where}[{number}]")]
    return [] if given == read else [f"{where} is {read!r} instead of {given!r}"]


def check_job_sets() -> None:
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    for flags in JOB_SETS:
        manifest = gke.manifest(split_flags(flags)[0], PROGRAM)
        found = differences(manifest, JobsetV1alpha2JobSet.from_dict(manifest).to_dict())
        print(f"JobSet {' '.join(flags[1:])}: {'; '.join(found) or 'ok'}")
        if found:
            raise SystemExit(1)


def check_tasks() -> None:
    import sky as skypilot

    with tempfile.TemporaryDirectory() as folder:
        for flags in TASKS:
            pod: Pod = split_flags(flags)[0]
            path = Path(folder) / "task.yaml"
            path.write_text(to_yaml(sky.task(pod, PROGRAM)), encoding="utf-8")
            task = skypilot.Task.from_yaml(str(path))
            print(f"SkyPilot {' '.join(flags[1:])}: {task.num_nodes} × {', '.join(map(str, task.resources))}")


if __name__ == "__main__":
    for package, check in (("kubeflow_trainer_api", check_job_sets), ("sky", check_tasks)):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed")
        else:
            check()
