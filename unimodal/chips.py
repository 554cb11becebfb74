"""Peak arithmetic of accelerators, as their makers publish it: dense bf16, without sparsity, one chip."""

from __future__ import annotations

# JAX's device kind begins with … → FLOP/s. The longest name that fits wins: "TPU v5 lite" also begins with "TPU v5".
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """None where nothing is published (a CPU, say): then there is no MFU."""
    fitting = [kind for kind in PEAK_FLOPS if device_kind.startswith(kind)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None
