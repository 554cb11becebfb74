"""Facts about chips, as their makers publish them. Every figure is for one chip.

TPUs: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Google Cloud's documentation: HBM, its bandwidth, peak
bf16 FLOP/s, peak int8 where the page has it, and inter-chip bandwidth (published as 2400, 1600, 4800 and 3200 Gbit/s; the
pages that double them count both directions). GPUs: NVIDIA's data sheets of the A100 (SXM, 40 and 80 GB), H100 SXM and
H200 SXM: dense bf16, int8 and float8, without sparsity; NVLink's 600 and 900 GB/s are both directions together, so half
of it leaves the chip.
A compiler keeps a little of a TPU's memory for itself, and says how much it leaves when a program does not fit:
`usable` is that.
"""

from __future__ import annotations

from dataclasses import dataclass

GB, GIB, TERA = 1e9, 2.0**30, 1e12


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator, as its maker publishes it. None where nothing is published."""

    name: str  # short
    kind: str  # JAX's device kind begins with it
    memory: float | None = None  # bytes of HBM
    usable: float | None = None  # bytes of HBM that a program can have
    flops: float | None = None  # peak bf16 per second
    bandwidth: float | None = None  # bytes of HBM per second
    links: float | None = None  # bytes per second that leave the chip over all its links
    per_host: int = 1  # chips of one host
    axes: int = 0  # dimensions of a TPU's topology
    largest: int = 0  # chips of the largest slice
    int8: float | None = None  # peak per second of products in int8; None: none of its own is published
    float8: float | None = None  # the same in float8

    @property
    def capacity(self) -> float | None:
        """HBM bytes that a program may take."""
        return self.usable or self.memory


TPUS = {
    "v4": Chip("v4", "TPU v4", 32 * GIB, 30.75 * GIB, 275 * TERA, 1200 * GB, 300 * GB, 4, 3, 4096),
    "v5e": Chip(
        "v5e", "TPU v5 lite", 16 * GIB, 15.75 * GIB, 197 * TERA, 819 * GB, 200 * GB, 4, 2, 256, int8=393 * TERA
    ),
    "v5p": Chip("v5p", "TPU v5", 95 * GIB, 95.74 * GIB, 459 * TERA, 2765 * GB, 600 * GB, 4, 3, 6144),
    "v6e": Chip(
        "v6e", "TPU v6 lite", 32 * GIB, 31.25 * GIB, 918 * TERA, 1638 * GB, 400 * GB, 4, 2, 256, int8=1836 * TERA
    ),
}
GPUS = (
    Chip(
        "H200", "NVIDIA H200", 141 * GB, None, 989 * TERA, 4800 * GB, 450 * GB, 8, int8=1979 * TERA, float8=1979 * TERA
    ),
    Chip(
        "H100", "NVIDIA H100", 80 * GB, None, 989 * TERA, 3350 * GB, 450 * GB, 8, int8=1979 * TERA, float8=1979 * TERA
    ),
    Chip("A100", "NVIDIA A100-SXM4-40GB", 40 * GB, None, 312 * TERA, 1555 * GB, 300 * GB, 8, int8=624 * TERA),
    Chip("A100", "NVIDIA A100", 80 * GB, None, 312 * TERA, 2039 * GB, 300 * GB, 8, int8=624 * TERA),
)


def chip_of(device: object) -> Chip:
    """The chip of a JAX device; one without figures if it is not in the tables (a CPU, say)."""
    return _of_kind(str(getattr(device, "device_kind", "unknown")))


def peak_flops(device_kind: str) -> float | None:
    """Give a chip's peak, dense bf16 FLOP/s. None where none is published, as for a CPU: then there is no MFU."""
    return _of_kind(device_kind).flops


def _of_kind(kind: str) -> Chip:
    # The longest name wins: "TPU v5 lite" also begins with "TPU v5".
    known = sorted((*TPUS.values(), *GPUS), key=lambda chip: -len(chip.kind))
    return next((chip for chip in known if kind.startswith(chip.kind)), Chip(kind, kind))
