"""A bit that differs between copies of one value is found, its device named, and nothing is saved after it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import toy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimodal.errors import ReplicasDifferError
from unimodal.sharding import make_mesh
from unimodal.training.checkpoint import saved_steps
from unimodal.training.replicas import differing


def placed(mesh: Mesh, spec: PartitionSpec, flip: tuple[int, ...] = ()) -> jax.Array:
    """Numbers of 8×6 on a mesh; the copies that the devices `flip` hold differ in one bit."""
    whole, sharding = np.arange(48, dtype=np.float32).reshape(8, 6), NamedSharding(mesh, spec)
    parts = []
    for device, index in sharding.addressable_devices_indices_map(whole.shape).items():
        part = whole[index].copy()
        if device.id in flip:
            part.reshape(-1).view(np.uint32)[1] ^= 1 << 20
        parts.append(jax.device_put(part, device))
    return jax.make_array_from_single_device_arrays(whole.shape, sharding, parts)


@pytest.mark.parametrize("sizes", [dict(data=8), dict(data=4, fsdp=2), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_a_flipped_bit_names_its_device(sizes: dict[str, int]) -> None:
    mesh = make_mesh(**sizes)
    specs = {"copied": PartitionSpec(), "split": PartitionSpec("fsdp"), "both": PartitionSpec(("fsdp",), "tensor")}
    good = {name: placed(mesh, spec) for name, spec in specs.items()}
    assert differing(good, mesh) is None
    for name, spec in specs.items():
        found = differing({**good, name: placed(mesh, spec, flip=(5,))}, mesh)
        assert found is not None and found.endswith(f": {name}")
        assert f"5 (process 0 on {socket.gethostname()})" in found
        if name == "copied":  # seven agree, so one is named alone
            assert found.startswith("device 5 (process 0 on ")


def test_what_one_device_holds_has_no_copy() -> None:
    mesh = make_mesh(fsdp=8)
    assert differing({"split": placed(mesh, PartitionSpec("fsdp"), flip=(5,))}, mesh) is None


def test_the_run_ends_before_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fault(_arrays: Any, _mesh: Any) -> str | None:
        asked.append(len(asked))
        return "device 3 (process 0): params.linear.kernel" if len(asked) == 2 else None

    monkeypatch.setattr("unimodal.training.loop.differing", fault)
    with pytest.raises(ReplicasDifferError, match="after step 4 .* device 3"):
        toy.run(tmp_path, steps=6, compare_replicas_every=2)
    assert saved_steps(tmp_path)[-1] == 3
