"""What each platform would be told, word for word, and how its tool's answers and refusals are taken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from unimodal.errors import UsageError
from unimodal.pods import gke, local, sky, tpu_vm
from unimodal.pods.command import launch_pod
from unimodal.pods.description import Pod, split_flags, tpu_slice
from unimodal.pods.environment import PYTHON, SETTINGS, environment
from unimodal.pods.tools import Step, spell

SNAPSHOTS = tiny.ROOT / "tests" / "reference" / "pods"
RUN = ("--config=configs/demo.py", "--workdir=gs://bucket/runs/demo")
HERE = ("--config=configs/demo.py", "--workdir=runs/demo")
TPU = ("--platform=tpu-vm", "--topology=v5e:4x4", "--zone=us-west4-a", "--project=my-project", "--name=demo")
GKE = ("--platform=gke", "--topology=v5e:4x4", "--image=registry.example/unimodal:1", "--name=demo")
SLURM = ("--platform=slurm", "--accelerator=H100:8", "--processes=2", "--name=demo")
SKY = ("--platform=sky", "--accelerator=H100:8", "--processes=2", "--name=demo")
GPUS = ("--platform=gke", "--accelerator=nvidia-h100-80gb:8", "--image=u:1", "--processes=4")
SKY_TPU = ("--platform=sky", "--topology=v6e:4x4", "--spot", "--zone=us-east5-b")
MOUNTED = ("--config=configs/demo.py", "--workdir=/runs/demo")
DRY: dict[str, tuple[str, ...]] = {
    "local": ("--platform=local", "--processes=2", "--devices=2", *HERE),
    "local_gpus": ("--platform=local", "--processes=2", "--devices=0", *HERE),
    "tpu_vm": (*TPU, *RUN),
    "tpu_vm_multislice": (*TPU, "--slices=2", "--spot", "--setup=sudo mount.nfs server:/runs runs", *HERE),
    "tpu_vm_reuse": (*TPU, "--reuse", *HERE),
    "tpu_vm_logs": (*TPU, "--action=logs"),
    "tpu_vm_multislice_logs": (*TPU, "--slices=2", "--action=logs"),
    "tpu_vm_delete": (*TPU, "--action=delete"),
    "gke": (*GKE, *RUN),
    "gke_multislice": (*GKE, "--slices=4", "--spot", "--restarts=3", "--volume=runs-claim:/runs", *MOUNTED),
    "gke_gpus": (*GPUS, "--volume=gs://bucket:/runs", *MOUNTED),
    "gke_logs": (*GKE, "--action=logs"),
    "gke_delete": (*GKE, "--action=delete"),
    "slurm": (*SLURM, "--partition=gpu", "--account=vision", *HERE),
    "slurm_doctor": (*SLURM, "--command=doctor", "--time=00:10:00"),
    "slurm_logs": (*SLURM, "--action=logs"),
    "slurm_delete": (*SLURM, "--action=delete"),
    "sky": (*SKY, *RUN),
    "sky_spot_tpu": (*SKY_TPU, "--volume=gs://bucket:/runs", *MOUNTED),
    "sky_logs": (*SKY, "--action=logs"),
    "sky_delete": (*SKY, "--spot", "--action=delete"),
}


def accept(_command: str, _flags: list[str], _devices: int) -> None:
    """Every flag is right for the run."""


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_is_the_one_committed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """UPDATE=1 writes the files anew: look at the difference before committing it."""
    assert launch_pod([*DRY[name], "--dry_run"], accept, tiny.ROOT) == 0
    found, path = capsys.readouterr().out, SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE"):
        SNAPSHOTS.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


def test_a_dry_run_calls_nothing(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in DRY.values():
        launch_pod([*arguments, "--dry_run"], accept, tiny.ROOT)
    assert tools.calls() == []


class Tools:
    """Fake tools on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(tiny.ROOT / "tests" / "fake_tool.py", folder / "fake_tool.py")
        self.answer()
        for name in ("gcloud", "kubectl", "sbatch", "squeue", "scancel", "sky"):
            path = folder / name
            path.write_text(
                f"#!{sys.executable} -S\n__file__ = {str(folder / 'fake_tool.py')!r}\nexec(open(__file__).read())\n"
            )
            path.chmod(0o755)

    def answer(self, *rules: tuple[str, int, str] | tuple[str, int, str, int]) -> None:
        """(pattern of the command line, exit code, output[, how often])."""
        text = json.dumps([[*rule, 1000][:4] for rule in rules])
        (self.folder / "rules.json").write_text(text)

    def calls(self) -> list[str]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line)[0] for line in path.read_text().splitlines()] if path.exists() else []

    def stdin(self, pattern: str) -> str:
        lines = [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        return next(stdin for line, stdin in lines if pattern in line)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(tpu_vm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(tpu_vm, "PACKED", ("launch.py",))  # packing all would take longer than the test
    monkeypatch.chdir(tmp_path)
    return Tools(tmp_path)


def pod(*arguments: str) -> int:
    return launch_pod(arguments, accept, tiny.ROOT)


ACTIVE = ("describe", 0, "ACTIVE")


def verbs(calls: Sequence[str]) -> list[str]:
    """gcloud's calls in a word each."""
    words = {"create": "create", "describe": "describe", "delete": "delete", "tpu-vm scp": "scp"}
    found = []
    for call in calls:
        kind = next((word for text, word in words.items() if f" {text} " in call), "ssh")
        if kind == "ssh":
            kind = "follow" if "tail -n" in call else "start" if "nohup" in call else "prepare"
        found.append(kind)
    return found


def test_a_tpu_run_from_the_queue_to_its_end(tools: Tools) -> None:
    tools.answer(("describe", 0, "WAITING_FOR_RESOURCES", 1), ("describe", 0, "PROVISIONING", 1), ACTIVE)
    assert pod(*TPU, *RUN) == 0
    waited = ["create", "describe", "describe", "describe"]
    assert verbs(tools.calls()) == [*waited, "scp", "prepare", "start", "follow"]
    assert "python launch.py train --config=configs/demo.py --workdir=gs://bucket/runs/demo" in tools.calls()[-2]


def test_all_slices_are_followed_and_the_worst_end_counts(tools: Tools, capfd: pytest.CaptureFixture[str]) -> None:
    tools.answer(ACTIVE, ("demo-0.*tail -n", 76, "step 1"), ("demo-1.*tail -n", 1, "Traceback"))
    assert pod(*TPU, "--slices=2", *RUN) == 1
    told = capfd.readouterr()
    assert "[demo-0] step 1\n" in told.out + told.err and "[demo-1] Traceback\n" in told.out + told.err


def test_slices_begin_together_and_a_preemption_while_they_are_prepared_is_one(tools: Tools) -> None:
    """Processes wait for each other for less than a minute, and one ssh to a large slice takes part of that."""
    tools.answer(
        ("describe", 0, "ACTIVE", 1), ("demo-1.*pip install", 255, "", 1), ("describe", 0, "PREEMPTED", 1), ACTIVE
    )
    assert pod(*TPU, "--slices=2", "--spot", *RUN) == 0
    found = verbs(tools.calls())
    first = ["create", "describe", "scp", "scp", "prepare", "prepare", "describe", "delete"]
    assert found[: len(first)] == first
    assert found[len(first) :][-4:] == ["start", "start", "follow", "follow"]


def test_to_leave_a_log_ends_nothing(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(tpu_vm, "follow", interrupt)
    assert pod(*TPU, "--action=logs") == 130
    assert "nothing of demo was stopped; --action=logs follows it" in capsys.readouterr().err


def test_what_gcloud_says_beside_its_answer_does_no_harm(tools: Tools) -> None:
    """It tells of updates and defaults on standard error."""
    tools.answer(ACTIVE)
    (tools.folder / "stderr.txt").write_text("Updates are available for some Google Cloud CLI components.\n")
    assert pod(*TPU, *RUN) == 0


def test_a_preempted_tpu_is_asked_for_again(tools: Tools) -> None:
    tools.answer(
        ("describe", 0, "ACTIVE", 1),
        ("tail -n", 1, "connection lost", 1),
        ("describe", 0, "SUSPENDED", 1),
        ACTIVE,
    )
    assert pod(*TPU, "--spot", *RUN) == 0
    once = ["describe", "scp", "prepare", "start", "follow"]
    assert verbs(tools.calls()) == ["create", *once, "describe", "delete", "create", *once]


def test_a_tpu_that_is_always_taken_away_is_given_up(tools: Tools) -> None:
    tools.answer(("describe", 0, "SUSPENDED"))
    with pytest.raises(UsageError, match="demo was taken away 3 times"):
        pod(*TPU, "--restarts=2", *RUN)
    assert verbs(tools.calls()).count("create") == 3


@pytest.mark.parametrize(("code", "runs", "end"), [(75, 3, 75), (76, 3, 76), (2, 1, 2), (3, 1, 3), (1, 1, 1)])
def test_a_run_is_started_again_on_its_tpu_if_that_helps(tools: Tools, code: int, runs: int, end: int) -> None:
    tools.answer(ACTIVE, ("tail -n", code, "the run's output"))
    assert pod(*TPU, "--restarts=2", *RUN) == end
    assert verbs(tools.calls()).count("start") == runs
    assert verbs(tools.calls()).count("create") == 1


def test_a_worker_out_of_reach_is_one_line(tools: Tools) -> None:
    tools.answer(ACTIVE, ("tail -n", 255, "ssh: connect to host 10.0.0.2 port 22: Connection timed out"))
    with pytest.raises(UsageError, match="a worker of demo cannot be reached"):
        pod(*TPU, *RUN)
    tools.answer(ACTIVE, (" scp ", 1, "[/usr/bin/scp] exited with return code [255]."))
    with pytest.raises(UsageError, match="^a worker cannot be reached"):
        pod(*TPU, "--reuse", *RUN)


# platform: (arguments, call that fails, what the tool says, what we say)
REFUSALS: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "tpu quota": (
        (*TPU, *RUN),
        "create",
        "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' "
        "has been exceeded. Limit: 4 in region us-west4.",
        "quota does not allow",
    ),
    "tpu login": (
        (*TPU, *RUN),
        "create",
        "ERROR: (gcloud.compute.tpus.queued-resources.create) You do not currently have an active account selected.",
        "not logged in: run gcloud auth login",
    ),
    "tpu name": ((*TPU, *RUN), "create", "ERROR: ALREADY_EXISTS: Resource 'demo' already exists", "the name is in use"),
    "tpu permission": ((*TPU, *RUN), "create", "ERROR: PERMISSION_DENIED: tpu.googleapis.com", "may not do this"),
    "tpu failed": ((*TPU, *RUN), "nothing", "", "demo has FAILED"),
    "tpu unknown": ((*TPU, "--action=delete"), "delete", "ERROR: NOT_FOUND: Resource demo", "there is no such TPU"),
    "tpu odd": ((*TPU, *RUN), "create", "ERROR: something new", "failed with exit code 1: ERROR: something new"),
    "gke name": (
        (*GKE, *RUN),
        "create",
        'Error from server (AlreadyExists): error when creating "STDIN": jobsets.jobset.x-k8s.io "demo" already exists',
        "the name is in use",
    ),
    "gke login": ((*GKE, *RUN), "create", "error: You must be logged in to the server (Unauthorized)", "not logged in"),
    "gke jobset": (
        (*GKE, *RUN),
        "create",
        'error: resource mapping not found: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"',
        "has no JobSet: install it",
    ),
    "gke quota": (
        (*GKE, *RUN),
        "create",
        "Error from server (Forbidden): exceeded quota: tpus",
        "quota does not allow",
    ),
    "gke silent": ((*GKE, *RUN), "create", "Unable to connect to the server: dial tcp: i/o timeout", "does not answer"),
    "slurm partition": (
        (*SLURM, *RUN),
        "sbatch",
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "no such partition",
    ),
    "slurm limit": (
        (*SLURM, *RUN),
        "sbatch",
        "sbatch: error: QOSMaxGRESPerUser\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
        "a limit of the cluster",
    ),
    "slurm down": (
        (*SLURM, *RUN),
        "squeue",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "controller does not answer",
    ),
    "sky clouds": ((*SKY, *RUN), "launch", "No cloud access is set up. Run: sky check", "no cloud is set up"),
    "sky machines": (
        (*SKY, *RUN),
        "launch",
        "sky.exceptions.ResourcesUnavailableError: Failed to provision all possible launchable resources.",
        "no cloud has these machines",
    ),
    "sky quota": ((*SKY, *RUN), "launch", "Quota 'GPUS_ALL_REGIONS' exceeded.", "quota does not allow"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_line(tools: Tools, name: str) -> None:
    arguments, call, said, ours = REFUSALS[name]
    tools.answer((call, 1, said), ("describe", 0, "FAILED" if name == "tpu failed" else "ACTIVE"))
    with pytest.raises(UsageError) as caught:
        pod(*arguments)
    assert ours in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [TPU, GKE, SLURM, SKY], ids=["gcloud", "kubectl", "slurm", "sky"])
def test_a_tool_that_is_not_there_is_one_line(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="(gcloud|kubectl|squeue|sky) is not installed, or not on PATH: "):
        pod(*arguments, *RUN)


def test_the_others_are_handed_over(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    tools.answer(("sbatch", 0, "4711;cluster"))
    for arguments in (GKE, SLURM, SKY):
        assert pod(*arguments, *RUN) == 0
    assert [call.split()[0] for call in tools.calls()] == ["kubectl", "squeue", "sbatch", "sky", "sky"]
    assert yaml.safe_load(tools.stdin("kubectl"))["kind"] == "JobSet"
    assert tools.stdin("sbatch").startswith("#!/bin/bash\n#SBATCH --job-name=demo\n")
    assert yaml.safe_load((tools.folder / "demo.sky.yaml").read_text())["num_nodes"] == 2
    assert "submitted job 4711" in capsys.readouterr().out


def test_a_slurm_name_in_use_is_one_line(tools: Tools) -> None:
    tools.answer(("squeue", 0, "4710"))
    with pytest.raises(UsageError, match="job 4710 of yours is called demo"):
        pod(*SLURM, *RUN)
    assert not any("sbatch" in call for call in tools.calls())


@pytest.mark.parametrize("spot", [(), ("--spot",)])
def test_a_sky_name_in_use_is_one_line(tools: Tools, spot: tuple[str, ...]) -> None:
    tools.answer(("sky (status|jobs queue)", 0, "ID  NAME  RESOURCES  STATUS\n3   demo  2x(H100:8)  UP"))
    with pytest.raises(UsageError, match="the name is in use: sky has a demo"):
        pod(*SKY, *spot, *RUN)
    tools.answer(("sky status", 1, "Cluster demo not found."))
    assert pod(*SKY, *RUN) == 0


def test_the_slurm_script_is_a_script(tmp_path: Path) -> None:
    from unimodal.pods import slurm

    script = slurm.script(Pod(platform="slurm", accelerator="H100:8"), ("python", "launch.py", "train"))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("setup", ["true", "true # a folder", "true\n", "false\ntrue;"])
def test_gke_runs_behind_a_setup_of_any_form(setup: str) -> None:
    description, _ = split_flags([*GKE, f"--setup={setup}"])
    job = gke.manifest(description, ("echo", "the run"))["spec"]["replicatedJobs"][0]["template"]["spec"]
    command = job["template"]["spec"]["containers"][0]["command"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "the run\n"


# --- manifests against their specification: required and allowed fields, with the type of each --------------------------
# JobSet: api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset (v1alpha2). Job, pod and container: Kubernetes'
# batch/v1 and core/v1. benchmarks/manifests.py holds the same manifests against models generated from their schemas.
def check(value: Any, shape: Any, where: str = "") -> None:
    """`shape`: a type; a list of one shape; {"field": shape} with a leading ? for what may be missing; a predicate."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        known = {field.removeprefix("?"): inner for field, inner in shape.items()}
        assert value.keys() <= known.keys(), f"{where}: {value.keys() - known.keys()}"
        missing = {field for field in shape if not field.startswith("?")} - value.keys()
        assert not missing, f"{where} lacks {missing}"
        for field, inner in value.items():
            check(inner, known[field], f"{where}.{field}")
    elif isinstance(shape, list):
        assert isinstance(value, list) and value, where
        for number, inner in enumerate(value):
            check(inner, shape[0], f"{where}[{number}]")
    elif isinstance(shape, type):
        assert type(value) is shape, f"{where} is {value!r}"
    else:
        assert shape(value), f"{where} is {value!r}"


def texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(x, str) for pair in value.items() for x in pair)


def one_of(*known: Any) -> Callable[[Any], bool]:
    return lambda value: value in known


CONTAINER = {
    "name": str,
    "image": str,
    "workingDir": str,
    "command": [str],
    "env": [{"name": str, "value": str}],
    "ports": [{"containerPort": int}],
    "resources": {"limits": lambda v: all(isinstance(n, int) and n > 0 for n in v.values())},
    "?volumeMounts": [{"name": str, "mountPath": lambda v: v.startswith("/")}],
}
VOLUME = {
    "name": str,
    "?emptyDir": {"medium": one_of("Memory")},
    "?persistentVolumeClaim": {"claimName": str},
    "?csi": {"driver": one_of("gcsfuse.csi.storage.gke.io"), "volumeAttributes": texts},
}
POD_SPEC = {
    "terminationGracePeriodSeconds": int,
    "restartPolicy": one_of("Never"),  # a pod failure policy allows no other
    "nodeSelector": texts,
    "containers": [CONTAINER],
    "?volumes": [VOLUME],
}
RULE = {
    "action": one_of("FailJob", "Ignore", "Count", "FailIndex"),
    "onExitCodes": {"containerName": str, "operator": one_of("In", "NotIn"), "values": [int]},
}
JOB_SPEC = {
    "parallelism": int,
    "completions": int,
    "completionMode": one_of("Indexed", "NonIndexed"),
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [RULE]},
    "template": {"metadata": {"annotations": texts}, "spec": POD_SPEC},
}
ACTIONS = one_of(
    "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob", "RestartJobAndIgnoreMaxRestarts"
)
REASON = one_of(
    "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"
)
JOB_SET = {
    "apiVersion": one_of("jobset.x-k8s.io/v1alpha2"),
    "kind": one_of("JobSet"),
    # Of annotations, exclusive placement counts here and on a replicated job, and nowhere else.
    "metadata": {"name": str, "annotations": lambda v: v.keys() <= {"alpha.jobset.sigs.k8s.io/exclusive-topology"}},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [
                {
                    "name": lambda v: re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", v),
                    "action": ACTIONS,
                    "onJobFailureReasons": [REASON],
                }
            ],
        },
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB_SPEC}}],
    },
}
TASK = {
    "name": str,
    "num_nodes": int,
    "workdir": str,
    "?file_mounts": lambda v: all(m.keys() == {"source", "mode"} and m["mode"] == "MOUNT" for m in v.values()),
    "resources": {
        "accelerators": str,
        "use_spot": bool,
        "?infra": str,
        "?image_id": str,
        "?job_recovery": {"max_restarts_on_errors": int, "recover_on_exit_codes": [int]},
    },
    "envs": texts,
    "setup": str,
    "run": str,
}


@pytest.mark.parametrize("name", ["gke", "gke_multislice", "gke_gpus"])
def test_a_jobset_is_one(name: str) -> None:
    description, rest = split_flags(DRY[name])
    manifest = gke.manifest(description, ("python", "launch.py", "train", *rest))
    assert yaml.safe_load(yaml.safe_dump(manifest)) == manifest
    check(manifest, JOB_SET)
    container = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][-2:] == [word for word in DRY[name] if word.startswith(("--config", "--workdir"))]
    template = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    assert mounted == {volume["name"] for volume in template["spec"].get("volumes", [])}
    fuse = any("csi" in volume for volume in template["spec"].get("volumes", []))
    assert (template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}) == fuse
    with pytest.raises(AssertionError):
        check({**manifest, "spce": {}}, JOB_SET)


@pytest.mark.parametrize("name", ["sky", "sky_spot_tpu"])
def test_a_sky_task_is_one(name: str) -> None:
    description, rest = split_flags(DRY[name])
    check(sky.task(description, ("python", "launch.py", "train", *rest)), TASK)


def test_topologies_have_the_machines_the_platforms_say() -> None:
    known = {
        "v5e:1x1": (1, 1, "v5litepod-1"),
        "v5e:2x4": (8, 1, "v5litepod-8"),
        "v5e:16x16": (256, 64, "v5litepod-256"),
    }
    known |= {"v4:2x2x1": (4, 1, "v4-8"), "v5p:8x8x8": (512, 128, "v5p-1024"), "v6e:4x4": (16, 4, "v6e-16")}
    for topology, (chips, hosts, name) in known.items():
        one = tpu_slice(topology)
        assert (one.chips, one.hosts, one.accelerator_type) == (chips, hosts, name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--platform=tpuvm",), "did you mean tpu-vm"),
        (("--platform=gke", "--topology=v5e:4x4"), "--image is missing"),
        (("--platform=tpu-vm", "--topology=v5e:4x4"), "--zone is missing"),
        (("--platform=tpu-vm", "--zone=a"), "--topology is missing"),
        (("--platform=tpu-vm", "--zone=a", "--topology=v5:4x4"), "no TPU is called 'v5'"),
        (("--platform=tpu-vm", "--zone=a", "--topology=v5e:4x4x4"), "v5e has 2 dimensions, as v5e:4x4"),
        (
            ("--platform=tpu-vm", "--zone=a", "--topology=v5e:3x5"),
            "no topology v5e:3x5; the nearest are v5e:2x2, v5e:2x4, v5e:4x4",
        ),
        (("--platform=tpu-vm", "--zone=a", "--topology=v5p:4x4x16", *RUN), "v5p-512 as v5p:4x8x8 alone"),
        ((*TPU, "--workdir=runs/demo"), "--workdir=runs/demo would be on the TPU machines' own disks"),
        ((*GKE, "--workdir=runs/demo"), "would be on the container's own disk, which goes with it"),
        ((*SKY, "--workdir=runs/demo"), "with --setup or --volume"),
        ((*GKE, "--workdir=/run/demo", "--volume=claim:/runs"), "is not on the volume, which is mounted at /runs"),
        ((*GKE, "--workdir=/runs/demo", "--volume=Claim:/runs"), "give a bucket as --volume=gs://BUCKET:/runs, or"),
        ((*GKE, "--workdir=/runs/demo", "--volume=gs://bucket"), "--volume=gs://bucket: give a bucket as"),
        ((*SKY, "--workdir=/runs/demo", "--volume=claim:/runs"), "give a bucket as --volume=gs://BUCKET:/runs"),
        ((*TPU, "--workdir=/runs/demo", "--volume=claim:/runs"), "--volume is for gke and sky"),
        ((*SKY_TPU, "--slices=2", *RUN), "for --slices use tpu-vm or gke"),
        (("--platform=sky",), "either --topology"),
        (
            ("--platform=gke", "--image=u:1", "--accelerator=H100:8", "--slices=2"),
            "for more nodes of GPUs give --processes",
        ),
        (("--platform=slurm", "--accelerator=H100:many"), "as --accelerator=H100:8"),
        (("--platform=local", "--processes=two"), "--processes must be a whole number, but is 'two'"),
        (("--platform=local", "--processes=0"), "--processes must be at least 1"),
        (("--platform=local", "--action=logs"), "in the foreground"),
        (("--platform=gke", "--name=Demo_1"), "--name=Demo_1 must be of small letters"),
        (("--platform=local", "--dry_run=perhaps"), "--dry_run is true or false"),
        ((*TPU, "--action=logs", "--stpe=3"), "--action=logs takes no --stpe"),
    ],
)
def test_a_slip_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        launch_pod([*arguments, "--dry_run"] if "--dry_run=perhaps" not in arguments else arguments, accept, tiny.ROOT)
    assert words in str(caught.value)


EACH = {
    "tpu-vm": ("--topology=v5e:2x2", "--zone=us-west4-a"),
    "gke": ("--topology=v5e:2x2", "--image=REGISTRY/unimodal:1"),
    "slurm": ("--accelerator=H100:8",),
    "sky": ("--accelerator=H100:8",),
    "local": (),
}


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\x85", "\u2028"])
@pytest.mark.parametrize("platform", EACH)
def test_control_characters_are_refused(platform: str, character: str) -> None:
    for word in (f"--workdir=gs://bucket/a{character}END{character}touch /tmp/x", f"--config.name=a{character}b"):
        given = [f"--platform={platform}", *EACH[platform], "--config=demo", "--workdir=gs://bucket/run", word]
        with pytest.raises(UsageError, match="holds a control character") as caught:
            launch_pod([*given, "--dry_run"], accept, tiny.ROOT)
        assert len(str(caught.value).splitlines()) == 1
    for flag in ("--name", "--zone", "--image", "--partition", "--account", "--project", "--time"):
        with pytest.raises(UsageError, match="holds a control character"):
            launch_pod(
                [f"--platform={platform}", *EACH[platform], f"{flag}=a{character}b", "--dry_run"], accept, tiny.ROOT
            )


def shell_writes(script: str, folder: Path) -> dict[str, str]:
    """The files that a script leaves in a folder, where sbatch writes what it reads."""
    (folder / "sbatch").write_text("#!/bin/sh\ncat > job\n")
    (folder / "sbatch").chmod(0o755)
    subprocess.run(["bash", "-c", script], cwd=folder, env={"PATH": f"{folder}:/usr/bin:/bin"}, check=True)
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "sbatch"}


def test_a_printed_script_reads_its_text_whole(tmp_path: Path) -> None:
    text = "a\nEND\nEND_\ntouch wrong\nEND__ \n$(touch wrong)\n"
    found = shell_writes(spell(Step(("sbatch",), stdin=text, files=(("a file", text),))), tmp_path)
    assert found == {"job": text, "a file": text}


def test_a_printed_line_is_quoted(tmp_path: Path) -> None:
    pod = Pod(platform="local", processes=1)
    script = local.dry_run(pod, ("echo", "a; touch wrong", "$(touch wrong)"))
    assert shell_writes(script, tmp_path) == {}


def test_the_runs_own_flags_are_checked_before_anything_is_rented(tools: Tools) -> None:
    def refuse(command: str, flags: list[str], devices: int) -> None:
        raise UsageError(f"{command} {flags[0]} {devices}")

    with pytest.raises(UsageError, match="train --config=nowhere.py 16"):
        launch_pod([*TPU, "--config=nowhere.py"], refuse, tiny.ROOT)
    assert tools.calls() == []


def test_a_mesh_that_does_not_divide_the_pod_is_one_line() -> None:
    from unimodal.plan.meshes import check_mesh

    single = tiny.build(tiny.plain("vit"))
    mesh = dict(data=-1, fsdp=1, tensor=1, sequence=1)
    check_mesh(single, mesh, 8)
    check_mesh(single, {**mesh, "data": 2, "tensor": 4}, 8)
    check_mesh(single, {**mesh, "data": 1, "sequence": -1}, 8)
    for wrong in ({**mesh, "data": 2}, {**mesh, "fsdp": 3}, {**mesh, "tensor": 8}):
        with pytest.raises(UsageError, match="does not divide 8 devices.*; these do: .*fsdp=8"):
            check_mesh(single, wrong, 8)


def test_python_is_the_same_everywhere() -> None:
    assert f"FROM python:{PYTHON}-slim" in (tiny.ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"--python {PYTHON} " in (SNAPSHOTS / "tpu_vm.txt").read_text(encoding="utf-8")


def test_every_setting_has_a_reason_and_is_in_the_docs() -> None:
    page = (tiny.ROOT / "docs" / "pods" / "flags.md").read_text(encoding="utf-8")
    for setting in SETTINGS:
        assert setting.reason
        assert f"| {setting.platform} | `{setting.variable}` | `{setting.value}` | {setting.reason} |" in page
        assert setting.value in environment(setting.platform)[setting.variable]
