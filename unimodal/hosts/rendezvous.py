"""The rendezvous: a process joins the others of its run."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from unimodal.errors import DivergedError, ReplicasDifferError, Stopped, StorageError, UsageError
from unimodal.hosts.facts import device_facts, difference, run_facts
from unimodal.hosts.lifeline import Lifeline, end_now
from unimodal.hosts.peer import (
    EXIT_DIVERGED,
    EXIT_LOST,
    EXIT_REPLICAS,
    EXIT_STOPPED,
    EXIT_STORAGE,
    EXIT_USAGE,
    LostError,
)
from unimodal.hosts.roll import call_the_roll

PATIENCE = 50.0  # seconds for all processes to be there: less than a minute, so that nobody watches a hang for longer


def patience() -> float:
    """Give the seconds to wait: PATIENCE, or UNIMODAL_PATIENCE where hosts start minutes apart. Raises UsageError."""
    given = os.environ.get("UNIMODAL_PATIENCE", str(PATIENCE))
    try:
        return float(given)
    except ValueError as error:
        raise UsageError(f"UNIMODAL_PATIENCE must be in seconds, but is {given!r}") from error


@dataclass(frozen=True)
class Place:
    """The place of this process among all."""

    process: int  # its number, from 0
    count: int  # how many processes there are
    address: str  # host:port where process 0 listens for JAX
    local_devices: tuple[int, ...] | None = None  # devices of this process; None: all it sees


def find_place() -> Place | None:
    """Find the place of this process, by the environment or by JAX's knowledge of clusters. None: it is alone.

    The environment must say that there are others: by JAX_COORDINATOR_ADDRESS, by the variables of Slurm or GKE, or by
    UNIMODAL_JOIN=1 where only JAX knows the others (TPU VMs, MPI).

    Raises UsageError for numbers that cannot be right.
    """
    env = os.environ
    several = env.get("SLURM_NTASKS", "1") != "1" or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    if not (several or env.get("JAX_COORDINATOR_ADDRESS") or env.get("UNIMODAL_JOIN")):
        return None
    given = {key: env.get(f"JAX_{key.upper()}") for key in ("num_processes", "process_id")}
    try:
        numbers: Any = {key: int(value) for key, value in given.items() if value}
        address, count, process, devices = _detected(numbers)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"cannot join the other processes: {error}") from error
    if count == 1 or (address is None and count is None):
        return None
    if address is None or count is None or process is None or not 0 <= process < count:
        raise UsageError(
            f"cannot join the other processes: coordinator address {address}, process {process} of {count}; give all of "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    return Place(process, count, address, None if devices is None else tuple(devices))


def _detected(numbers: Mapping[str, int]) -> tuple[Any, Any, Any, Any]:
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, process = numbers.get("num_processes"), numbers.get("process_id")
    if address and count is not None and process is not None:
        return address, count, process, None
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize() asks when it is told nothing

    return ClusterEnv.auto_detect_unset_distributed_params(address, count, process, None, None, int(patience()))


def join(
    root: Path, config: Mapping[str, Any], workdir: str, *, own: Sequence[Path] = (), seconds: float | None = None
) -> Lifeline | None:
    """Join the others, check that all are there and alike, and start JAX across them. None: there are no others.

    The code below `root`, and the tasks below `own`, must be alike.

    Raises, in every process, LostError that names who is missing, or UsageError that names who differs, and in what.
    """
    place = find_place()
    if place is None:
        return None
    seconds = patience() if seconds is None else seconds
    port = int(os.environ.get("UNIMODAL_GUARD_PORT", int(place.address.rsplit(":", 1)[1]) + 1))
    peers = call_the_roll(place.process, place.count, place.address, port, seconds)
    lifeline = Lifeline(place.process, place.count, peers, end_now)
    names = [lifeline.name(process) for process in range(place.count)]
    judge = lambda everyone: difference(everyone, names)  # noqa: E731
    lifeline.agree("code, config and versions", run_facts(root, config, workdir, own), judge, seconds)
    # Keep SIGTERM for the loop: every process stops after the same step, wherever the signal arrives.
    jax.config.update("jax_enable_preemption_service", False)
    devices: Any = None if place.local_devices is None else list(place.local_devices)
    jax.distributed.initialize(
        place.address, place.count, place.process, local_device_ids=devices, initialization_timeout=int(seconds)
    )
    with as_one(lifeline, leave=False):
        lifeline.agree("devices", device_facts(), judge, seconds)
    return lifeline


_CODES: dict[type[BaseException], int] = {
    UsageError: EXIT_USAGE,
    LostError: EXIT_LOST,
    DivergedError: EXIT_DIVERGED,
    ReplicasDifferError: EXIT_REPLICAS,
    StorageError: EXIT_STORAGE,
    Stopped: EXIT_STOPPED,
}


@contextlib.contextmanager
def as_one(lifeline: Lifeline | None, *, leave: bool = True) -> Iterator[Lifeline | None]:
    """Run the body as one of several processes: an error in one ends all, each with one line that says where and why.

    All end at once. An orderly shutdown would wait for the others, which may be waiting too.
    """
    if lifeline is None:
        yield None
        return
    try:
        yield lifeline
    except tuple(_CODES) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _give_up(lifeline, str(error), next(code for kind, code in _CODES.items() if isinstance(error, kind)))
    except Exception as error:
        time.sleep(3)  # if this is but the echo of another's death, that is heard meanwhile and ends this process
        traceback.print_exc()
        _give_up(lifeline, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", 1)
    if leave:
        lifeline.leave()


def _give_up(lifeline: Lifeline, reason: str, code: int) -> None:
    lifeline.give_up(reason, code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
