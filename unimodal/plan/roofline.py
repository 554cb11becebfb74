"""Roofline of a step, or how fast it could be at best: the slowest of computing, moving memory and talking, each at its published peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unimodal.chips import Chip


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step in each resource, if nothing else held it up and all three overlapped. The largest binds.

    This is no measurement: real programs overlap less, and their products do not reach the peak.
    """

    compute: float  # seconds of arithmetic
    memory: float  # seconds of main memory
    interconnect: float  # seconds between chips
    mfu: float  # upper bound on model FLOPs utilisation: model FLOPs / (bf16 peak · the largest)

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.interconnect)

    @property
    def binds(self) -> str:
        times = {"compute": self.compute, "HBM": self.memory, "interconnect": self.interconnect}
        return max(times, key=lambda name: times[name])

    def as_json(self) -> dict[str, float | str]:
        return {
            "compute_seconds": self.compute,
            "hbm_seconds": self.memory,
            "interconnect_seconds": self.interconnect,
            "binds": self.binds,
            "mfu_upper_bound": self.mfu,
        }


def roofline(
    chip: Chip,
    *,
    flops: float,
    model_flops: float,
    traffic: float,
    sent: float,
    eight_bit: Mapping[str, float] | None = None,
) -> Roofline | None:
    """The estimate for one step of one device, from what it computes, moves and sends; None for a chip without figures.
    eight_bit: how many of the FLOPs are "int8" and "float8", at peaks of their own where the chip has such."""
    if not (chip.flops and chip.bandwidth and chip.links):
        return None
    peaks = {"int8": chip.int8 or chip.flops, "float8": chip.float8 or chip.flops}
    narrow = eight_bit or {}
    compute = (flops - sum(narrow.values())) / chip.flops + sum(count / peaks[kind] for kind, count in narrow.items())
    memory, interconnect = traffic / chip.bandwidth, sent / chip.links
    return Roofline(compute, memory, interconnect, model_flops / chip.flops / max(compute, memory, interconnect, 1e-12))
