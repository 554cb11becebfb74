"""Every family against its reference: outputs, gradients and the round trip (tests/reference/interop)."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unimodal.interop as interop
from unimodal.interop.files import open_source

REFERENCES = Path(__file__).parent / "reference" / "interop"
NAMES = sorted(path.parent.name for path in REFERENCES.glob("*/reference.npz"))


def reference(
    name: str,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray | None]:
    """Inputs, outputs, gradients, and which tokens are real."""
    with np.load(REFERENCES / name / "reference.npz") as file:
        groups = {
            group: {key.removeprefix(f"{group}/"): file[key] for key in file.files if key.startswith(f"{group}/")}
            for group in ("in", "out", "grad")
        }
        return groups["in"], groups["out"], groups["grad"], file.get("valid")


def at_real_tokens(value: Any, valid: np.ndarray | None) -> Any:
    return value if valid is None or value.shape[:2] != valid.shape else value * valid[:, :, None].astype(value.dtype)


def scalar_loss(outputs: dict[str, jax.Array], valid: np.ndarray | None) -> jax.Array:
    total = jnp.zeros((), jnp.float32)
    for _, value in sorted(outputs.items()):
        weights = np.cos(0.37 * np.arange(value.size)).astype(np.float32)
        total = total + (at_real_tokens(value, valid).reshape(-1) * weights).sum() / value.size**0.5
    return total


@pytest.mark.parametrize("name", NAMES)
def test_outputs_gradients_and_round_trip(name: str, tmp_path: Path) -> None:
    inputs, outputs, gradients, valid = reference(name)
    model = interop.load_huggingface(REFERENCES / name)

    def loss(model: interop.Pretrained, inputs: dict[str, jax.Array]) -> Any:
        found = model(**inputs)
        return scalar_loss({key: found[key] for key in outputs}, valid), found

    (_, found), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, inputs)
    for key, wanted in outputs.items():
        error = np.abs(at_real_tokens(np.asarray(found[key]), valid) - at_real_tokens(wanted, valid)).max()
        print(f"{name} {key}: {error:.1e} of {np.abs(wanted).max():.1e}")
        assert found[key].shape == wanted.shape
        assert error <= min(1e-4, 1e-5 * max(1.0, np.abs(wanted).max())), (key, error)

    ours = interop.to_tensors(ours)
    for key, wanted in gradients.items():
        error = np.abs(ours[key] - wanted).max() / np.abs(wanted).max()
        print(f"{name} gradient of {key}: {error:.1e}")
        assert error <= 1e-3, key

    interop.save_huggingface(model, tmp_path)
    before, after = open_source(REFERENCES / name), open_source(tmp_path)
    assert set(before.tensors) == set(after.tensors)
    for key, tensor in before.tensors.items():
        assert tensor.dtype == after.tensors[key].dtype
        assert tensor.read().tobytes() == after.tensors[key].read().tobytes(), key
    assert filecmp.cmp(REFERENCES / name / "config.json", tmp_path / "config.json", shallow=False)
