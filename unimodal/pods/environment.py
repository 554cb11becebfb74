"""The environment of a run on each platform, with a reason for every flag. docs/pods/flags.md shows the same table."""

from __future__ import annotations

from dataclasses import dataclass

from unimodal.errors import UsageError


@dataclass(frozen=True)
class Setting:
    """An environment variable, or one flag within it, and the reason for it."""

    platform: str  # tpu or gpu
    variable: str  # its name; LIBTPU_INIT_ARGS and XLA_FLAGS hold several flags
    value: str  # of the variable, or the flag
    reason: str  # one line for the reader


SETTINGS = (
    Setting(
        "tpu",
        "LIBTPU_INIT_ARGS",
        "--xla_tpu_enable_async_collective_fusion=true",
        "collectives run inside the matrix products beside them instead of between them",
    ),
    Setting(
        "tpu",
        "LIBTPU_INIT_ARGS",
        "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
        "the same for the all-gathers of fsdp, which are most of its traffic",
    ),
    Setting(
        "tpu",
        "LIBTPU_INIT_ARGS",
        "--xla_tpu_overlap_compute_collective_tc=true",
        "the core computes while its transfers are under way",
    ),
    Setting(
        "gpu",
        "XLA_FLAGS",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "starts collectives as early as their inputs are there, so that computation hides them",
    ),
    Setting(
        "gpu",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "0.92",
        "JAX takes three quarters of the memory otherwise; NCCL and cuDNN need what is left here",
    ),
    Setting(
        "cpu",
        "JAX_PLATFORMS",
        "cpu",
        "simulated devices are wanted even where there is a GPU",
    ),
)
PYTHON = "3.11"  # what the tests and constraints.txt are for, and the Dockerfile has; TPU images bring 3.10, too old
COMMON = (
    ("PYTHONUNBUFFERED", "1"),  # a log shows the last line before a death
    ("TF_CPP_MIN_LOG_LEVEL", "2"),  # warnings of the C++ side bury our one line
)


def environment(platform: str) -> dict[str, str]:
    """Variables for "tpu", "gpu" or "cpu"."""
    if platform not in {setting.platform for setting in SETTINGS}:
        raise UsageError(f"no environment for {platform!r}: it is tpu, gpu or cpu")
    found = dict(COMMON)
    for setting in SETTINGS:
        if setting.platform == platform:
            found[setting.variable] = f"{found.get(setting.variable, '')} {setting.value}".strip()
    return found
