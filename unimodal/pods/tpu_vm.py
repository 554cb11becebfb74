"""TPU VMs through gcloud: a queued resource, the code copied to every worker, the run started on all, its end awaited.

The run is detached from the ssh that starts it, so a lost connection does not end it.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unimodal.errors import UsageError
from unimodal.hosts.peer import EXIT_DIVERGED, EXIT_LOST, EXIT_STOPPED, EXIT_USAGE
from unimodal.pods.description import Pod, tpu_slice, usual_shape
from unimodal.pods.environment import PYTHON, environment
from unimodal.pods.follow import follow
from unimodal.pods.tools import Step, explain, must, run, spell
from unimodal.pods.volume import check_workdir, in_bucket, volume

POLL_SECONDS = 30.0
UNREACHABLE = 255  # ssh's own exit code
PACKED = ("launch.py", "unimodal", "tasks", "configs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")

REASONS = (
    (r"active account|gcloud auth login|reauthentication|credentials", "not logged in: run gcloud auth login"),
    (r"quota", "the project's quota does not allow this: ask for more, or take a smaller --topology or another --zone"),
    (r"already.?exists|409", "the name is in use: choose another --name, or --action=delete first"),
    (r"attribute \[project\]", "no project: give --project, or gcloud config set project"),
    (r"permission.?denied|403", "the account may not do this in the project: check --project and its TPU API"),
    (r"accelerator type .* not found|invalid.*accelerator", "the zone does not have this TPU: choose another --zone"),
    (r"not.?found|404", "there is no such TPU: check --name, --zone and --project"),
)
GONE = ("SUSPENDED", "SUSPENDING", "PREEMPTED")


def dry_run(pod: Pod, program: Sequence[str]) -> str:
    """Every command, in order."""
    if pod.action == "logs":
        return "\n".join(spell(step) for step in _follow(pod).values())
    if pod.action == "delete":
        return spell(_delete(pod))
    _check(pod, program)
    steps = [
        *([] if pod.reuse else [_create(pod), _state(pod)]),
        _pack(Path("."), _archive(pod)),
        *(_copy(pod, node, _archive(pod)) for node in _nodes(pod)),
        *(_prepare(pod, node, program) for node in _nodes(pod)),
        *(_start(pod, node, program) for node in _nodes(pod)),
        *_follow(pod).values(),
    ]
    at_once = ["# of several slices, those lines that differ in the slice alone run at the same time"] * (
        pod.slices > 1
    )
    return "\n".join([*at_once, *(spell(step) for step in steps)])


def launch(pod: Pod, program: Sequence[str], root: Path) -> int:
    """Do it; returns the run's exit code. A TPU that is taken away is asked for again, `restarts` times."""
    if pod.action == "delete":
        must(_delete(pod), REASONS)
        print(f"deleted {pod.name}")
        return 0
    if pod.action == "logs":
        return _worst(follow(_follow(pod)))
    _check(pod, program)
    create = not pod.reuse
    for attempt in range(pod.restarts + 1):
        again = attempt < pod.restarts
        if create:
            must(_create(pod), REASONS)
            create = False
        if not _await_active(pod):
            state = "was taken away while it was being made"
        else:
            code = _bring_code(pod, program, root) or _run_once(pod, program)
            if code in (0, EXIT_USAGE, EXIT_DIVERGED):
                return code
            state = _now(pod)
            if code == UNREACHABLE and state == "ACTIVE":
                raise UsageError(
                    f"a worker of {pod.name} cannot be reached, though the TPU is ACTIVE; the run may go on there: look with "
                    f"--action=logs, or start again with --reuse"
                )
            if state == "ACTIVE":
                if code not in (EXIT_STOPPED, EXIT_LOST) or not again:
                    return code
                print(f"the run ended with exit code {code}; starting it again", flush=True)
                continue
        if again:
            print(f"{pod.name}: {state or 'gone'}; asking for another", flush=True)
            must(_delete(pod), REASONS)
            create = True
    raise UsageError(f"{pod.name} was taken away {pod.restarts + 1} times; run the same command again to go on")


def _now(pod: Pod) -> str:
    """The state of the queued resource; nothing if it is gone."""
    outcome = run(_state(pod))
    return "" if outcome.code else outcome.output.strip()


def _await_active(pod: Pod) -> bool:
    """True once the TPU is there; False if it was taken away again. Raises UsageError if it will never come."""
    last = ""
    while True:
        state = must(_state(pod), REASONS).strip()
        if state != last:
            print(f"{pod.name}: {state}", flush=True)
            last = state
        if state == "ACTIVE":
            return True
        if state in GONE:
            return False
        if state == "FAILED":
            raise UsageError(
                f"{pod.name} has FAILED: gcloud compute tpus queued-resources describe {pod.name} says why"
            )
        time.sleep(POLL_SECONDS)


def _check(pod: Pod, program: Sequence[str]) -> None:
    one = tpu_slice(pod.topology)
    volume(pod)
    if one.shape != (usual := usual_shape(one)):
        kind = (pod.topology or "").partition(":")[0]
        raise UsageError(
            f"gcloud knows {one.accelerator_type} as {kind}:{usual} alone: give that, or take gke for {pod.topology}"
        )
    if not pod.reuse and (pod.spot or one.hosts * pod.slices > 1):
        check_workdir(pod, program, "the TPU machines' own disks, which they do not share and which go with them")


def _bring_code(pod: Pod, program: Sequence[str], root: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        archive = str(Path(folder) / _archive(pod))
        must(_pack(root, archive), ())
        code = _everywhere([_copy(pod, node, archive) for node in _nodes(pod)])
    return code or _everywhere([_prepare(pod, node, program) for node in _nodes(pod)])


def _everywhere(steps: Sequence[Step]) -> int:
    """All at the same time, for the processes of one slice wait for those of the others. UNREACHABLE if one was, else 0."""
    with ThreadPoolExecutor(len(steps)) as pool:
        outcomes = list(pool.map(run, steps))
    for step, outcome in zip(steps, outcomes, strict=True):
        if outcome.code not in (0, UNREACHABLE):
            raise UsageError(explain(step, outcome, SSH_REASONS))
    return max(outcome.code for outcome in outcomes)


def _run_once(pod: Pod, program: Sequence[str]) -> int:
    if code := _everywhere([_start(pod, node, program) for node in _nodes(pod)]):
        return code
    for last in ("+1", "20", "20"):  # a connection may be lost while the run goes on
        code = _worst(follow(_follow(pod, last)))
        if code != UNREACHABLE:
            return code
        time.sleep(min(POLL_SECONDS, 5))
    return UNREACHABLE


SSH_REASONS = (
    (
        r"connection (refused|timed out|closed)|exit code 255|\[255\]|unreachable|ssh.*failed",
        "a worker cannot be reached",
    ),
    *REASONS,
)


def _archive(pod: Pod) -> str:
    return f"{pod.name}.tar.gz"


def _nodes(pod: Pod) -> list[str]:
    return [pod.name] if pod.slices == 1 else [f"{pod.name}-{number}" for number in range(pod.slices)]


def _where(pod: Pod) -> tuple[str, ...]:
    if pod.zone is None:
        raise UsageError("--zone is missing: where the TPUs are, as --zone=us-west4-a")
    return (f"--zone={pod.zone}", *([f"--project={pod.project}"] if pod.project else []))


def _create(pod: Pod) -> Step:
    one = tpu_slice(pod.topology)
    nodes = [f"--node-id={pod.name}"]
    if pod.slices > 1:
        nodes = [f"--node-count={pod.slices}", f"--node-prefix={pod.name}"]
    words = (
        *("gcloud", "compute", "tpus", "queued-resources", "create", pod.name, *nodes, *_where(pod)),
        f"--accelerator-type={one.accelerator_type}",
        f"--runtime-version={pod.image or one.kind.runtime}",
        *(["--spot"] if pod.spot else []),
        "--quiet",
    )
    return Step(words, note=f"{pod.slices} × {pod.topology}: {one.chips} chips on {one.hosts} host(s) each")


def _state(pod: Pod) -> Step:
    words = ("gcloud", "compute", "tpus", "queued-resources", "describe", pod.name, *_where(pod))
    return Step((*words, "--format=value(state.state)"), note=f"every {POLL_SECONDS:.0f} s, until it says ACTIVE")


def _delete(pod: Pod) -> Step:
    words = ("gcloud", "compute", "tpus", "queued-resources", "delete", pod.name, *_where(pod), "--force", "--quiet")
    return Step(words)


def _pack(root: Path, archive: str) -> Step:
    return Step(("tar", "-czf", archive, "--exclude=__pycache__", "-C", str(root), *PACKED))


def _copy(pod: Pod, node: str, archive: str) -> Step:
    words = (
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "scp",
        archive,
        f"{node}:unimodal.tar.gz",
        "--worker=all",
        *_where(pod),
    )
    return Step((*words, "--quiet"))


def _ssh(pod: Pod, node: str, command: str, note: str, worker: str = "all") -> Step:
    words = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", node, f"--worker={worker}", *_where(pod), "--quiet")
    return Step((*words, f"--command={command}"), note=note)


def _prepare(pod: Pod, node: str, program: Sequence[str]) -> Step:
    extras = "tpu,gs" if in_bucket(program) else "tpu"
    parts = [
        "mkdir -p unimodal && tar -xzf unimodal.tar.gz -C unimodal && cd unimodal",
        "python3 -m pip install --quiet --user uv",
        f"python3 -m uv venv --quiet --allow-existing --python {PYTHON} .venv",
        f"python3 -m uv pip install --quiet --python .venv/bin/python -e '.[{extras}]' -c constraints.txt",
        *([pod.setup] if pod.setup else []),
    ]
    return _ssh(pod, node, " && ".join(parts), f"the images bring an older Python; uv fetches {PYTHON}")


def _start(pod: Pod, node: str, program: Sequence[str]) -> Step:
    settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in environment("tpu").items())
    words = [".venv/bin/python" if word == "python" else word for word in program]
    inner = f"UNIMODAL_JOIN=1 {settings} {shlex.join(words)}; echo $? > run.exit"
    command = (
        f"cd unimodal && rm -f run.exit && (nohup setsid bash -c {shlex.quote(inner)} > run.log 2>&1 < /dev/null & "
        f"echo $! > run.pid)"
    )
    return _ssh(pod, node, command, "detached: a lost connection does not end it")


def _follow(pod: Pod, last: str = "+1") -> dict[str, Step]:
    # The first host of a slice speaks for all: when any process ends, the guard ends the others with the same kind of code.
    command = f"cd unimodal && tail -n {last} --pid=$(cat run.pid) -F run.log; exit $(cat run.exit)"
    note = "its output until it ends, and its exit code"
    return {node: _ssh(pod, node, command, note, worker="0") for node in _nodes(pod)}


def _worst(codes: Sequence[int]) -> int:
    """Choose the code of several slices: what has to be mended first, then what is unknown, then what a restart helps."""
    for code in (EXIT_USAGE, *(c for c in codes if c not in (0, UNREACHABLE, EXIT_STOPPED, EXIT_LOST)), UNREACHABLE):
        if code in codes:
            return code
    return max(codes, default=0)
