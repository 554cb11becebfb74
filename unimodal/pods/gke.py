"""Google Kubernetes Engine: a JobSet of one Job per slice, given to kubectl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unimodal.errors import UsageError
from unimodal.hosts.peer import EXIT_DIVERGED, EXIT_STOPPED, EXIT_USAGE
from unimodal.pods.cloud import Cloud
from unimodal.pods.description import Pod, chosen, gpus, tpu_slice
from unimodal.pods.environment import environment
from unimodal.pods.tools import Step, to_yaml
from unimodal.pods.volume import Volume, check_workdir, volume

REASONS = (
    (
        r"unauthorized|must be logged in|gke-gcloud-auth|credentials",
        "not logged in to the cluster: run gcloud auth login",
    ),
    (r"already.?exists", "the name is in use: choose another --name, or --action=delete first"),
    (r"exceeded quota", "the namespace's quota does not allow this"),
    (r"no matches for kind .?JobSet", "the cluster has no JobSet: install it, see docs/pods/gke.md"),
    (
        r"unable to connect|connection refused|server \S+ was refused|no such host|i/o timeout",
        "the cluster does not answer: check the context",
    ),
    (r"forbidden", "the account may not do this in the cluster"),
)
SELECTOR = "jobset.sigs.k8s.io/jobset-name"


def manifest(pod: Pod, program: Sequence[str]) -> dict[str, Any]:
    """The JobSet. Raises UsageError without an image."""
    if pod.image is None:
        raise UsageError("--image is missing: a container with this repository in it, see Dockerfile")
    platform = chosen(pod)
    check_workdir(pod, program, "the container's own disk, which goes with it")
    mounts = _mounts(pod)
    tpu = tpu_slice(pod.topology) if platform == "tpu" else None
    hosts = tpu.hosts if tpu else pod.processes
    pod_spec: dict[str, Any] = {
        # A checkpoint must fit in between SIGTERM and SIGKILL.
        "terminationGracePeriodSeconds": 120,
        "restartPolicy": "Never",
        "nodeSelector": _nodes(pod),
        "containers": [_container(pod, program, platform)],
    }
    if mounts:
        pod_spec["volumes"] = [{"name": name, **source} for name, _, source in mounts]
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": _codes(EXIT_USAGE, EXIT_DIVERGED)},  # to mend first
            ]
        },
        "template": {"metadata": {"annotations": _annotations(volume(pod))}, "spec": pod_spec},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": pod.name, "annotations": _placement(pod)},
        "spec": {
            "failurePolicy": {
                "maxRestarts": pod.restarts,
                "rules": [{"name": "mend", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "slice", "replicas": pod.slices, "template": {"spec": job}}],
        },
    }


def _codes(*codes: int) -> dict[str, Any]:
    assert EXIT_STOPPED not in codes
    return {"containerName": "run", "operator": "In", "values": sorted(codes)}


def _nodes(pod: Pod) -> dict[str, str]:
    spot = {"cloud.google.com/gke-spot": "true"} if pod.spot else {}
    if pod.topology is None:
        return {"cloud.google.com/gke-accelerator": gpus(pod.accelerator)[0].lower(), **spot}
    one = tpu_slice(pod.topology)
    return {
        "cloud.google.com/gke-tpu-accelerator": one.kind.label,
        "cloud.google.com/gke-tpu-topology": one.shape,
        **spot,
    }


def _mounts(pod: Pod) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, path and source of each volume."""
    # NCCL's processes talk through shared memory, of which a container has 64 MB otherwise.
    found: list[tuple[str, str, dict[str, Any]]] = []
    if pod.topology is None:
        found.append(("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}}))
    if (shared := volume(pod)) is not None:
        source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": shared.source}}
        if shared.bucket:
            # A checkpoint is a folder that is renamed when it is whole, which gcsfuse refuses without a limit.
            options = {"bucketName": shared.bucket, "mountOptions": "implicit-dirs,rename-dir-limit=200000"}
            source = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": options}}
        found.append(("runs", shared.path, source))
    return found


def _annotations(shared: Volume | None) -> dict[str, str]:
    # GKE puts the container that mounts a bucket beside ours.
    return {"gke-gcsfuse/volumes": "true"} if shared is not None and shared.bucket else {}


def _placement(pod: Pod) -> dict[str, str]:
    # One Job has one slice to itself: its pods must not be spread over several.
    return {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if pod.topology else {}


def _container(pod: Pod, program: Sequence[str], platform: str) -> dict[str, Any]:
    # The first pods may wait for others whose nodes still pull the image.
    given = environment(platform) | {"UNIMODAL_PATIENCE": "300"}
    variables = [{"name": name, "value": value} for name, value in given.items()]
    container: dict[str, Any] = {"name": "run", "image": pod.image, "workingDir": "/unimodal"}
    if pod.topology is not None:
        one = tpu_slice(pod.topology)
        each = one.chips // one.hosts
        variables.append({"name": "UNIMODAL_JOIN", "value": "1"})  # GKE tells each pod who the others are
        command = list(program)
        ports = [8471, 8431, 8476, 8477]
        limits = {"google.com/tpu": each}
    else:
        first = f"{pod.name}-slice-0-0.{pod.name}"
        variables += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:8476"},
            {"name": "JAX_NUM_PROCESSES", "value": str(pod.processes)},
        ]
        # The index of a pod is only known inside it; exec, so that SIGTERM reaches Python and not a shell.
        command = ["bash", "-c", 'JAX_PROCESS_ID=$JOB_COMPLETION_INDEX exec "$@"', "bash", *program]
        ports = [8476, 8477]
        limits = {"nvidia.com/gpu": gpus(pod.accelerator)[1]}
    if mounts := _mounts(pod):
        container["volumeMounts"] = [{"name": name, "mountPath": path} for name, path, _ in mounts]
    if pod.setup:
        # On a line of its own: behind a comment that ends the setup, the run would be a part of that.
        command = ["bash", "-c", f'{{ {pod.setup}\n}} && exec "$@"', "bash", *command]
    return container | {
        "command": command,
        "env": variables,
        "ports": [{"containerPort": port} for port in ports],
        "resources": {"limits": limits},
    }


def _create(pod: Pod, program: Sequence[str]) -> Step:
    text = to_yaml(manifest(pod, program))
    return Step(("kubectl", "create", "--filename=-"), stdin=text)


def _logs(pod: Pod) -> Step:
    words = ("kubectl", "logs", "--follow", "--prefix", f"--selector={SELECTOR}={pod.name}", "--max-log-requests=1024")
    return Step(words)


def _delete(pod: Pod) -> Step:
    return Step(("kubectl", "delete", "jobset", pod.name))


CLOUD = Cloud(_create, _logs, _delete, "delete", REASONS)
