"""launch.py plan: what is counted in compiled programs, by hand and against unrolled twins; its output; its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, PartitionSpec

from unimodal.chips import GIB, TPUS
from unimodal.errors import UsageError
from unimodal.kernels import placed
from unimodal.plan import open_topology
from unimodal.plan.compile import Memory, out_of_memory
from unimodal.plan.count import _places, collectives, eight_bit_flops, flops, kernels, traffic
from unimodal.plan.hlo import Program, parse
from unimodal.plan.model_flops import forward_flops, jaxpr_flops, visible_share
from unimodal.plan.roofline import roofline
from unimodal.plan.show import verdict
from unimodal.plan.topology import exists, wraps
from unimodal.sharding import make_mesh
from unimodal.tokens import Span
from unimodal.visibility import Pattern

B, D, L = 8, 16, 5


def compiled(function: Callable[..., Any], *arguments: Any) -> Program:
    return parse(jax.jit(function).lower(*arguments).compile().as_text())


def stack(weights: jax.Array, x: jax.Array, *, scan: bool) -> jax.Array:
    layer = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
    if scan:
        return jax.lax.scan(layer, x, weights)[0].sum()
    for w in weights:
        x, _ = layer(x, w)
    return x.sum()


def test_a_scanned_stack_counts_as_its_unrolled_twin_does() -> None:
    weights, x = jnp.ones((L, D, D)), jnp.ones((B, D))
    # Forward, and two products of as much each backward, but for the gradient of the first layer's input.
    by_hand = 2 * B * D * D * (3 * L - 1)
    for scan in (True, False):
        program = compiled(jax.grad(partial(stack, scan=scan)), weights, x)
        seen, hidden = flops(program)
        # A scan's body is the same for every layer, so it does not leave the first one's out.
        assert seen == by_hand + (2 * B * D * D if scan else 0) and hidden == 0, scan


def test_a_loop_within_a_loop() -> None:
    def outer(x: jax.Array) -> jax.Array:
        inner = lambda x, _: (x @ jnp.full((D, D), 0.5), None)  # noqa: E731
        return jax.lax.scan(lambda x, _: (jax.lax.scan(inner, x, None, length=3)[0], None), x, None, length=L)[0]

    assert flops(compiled(outer, jnp.ones((B, D))))[0] == 3 * L * 2 * B * D * D


@pytest.mark.parametrize("length", [1024, 1000])
def test_a_ring_does_its_share(length: int) -> None:
    # How often the loop over tiles goes round differs between devices, so the compiled program does not say it.
    pattern = Pattern((Span(length, True),))
    x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

    def backward(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        total = lambda *x: placed.ring(*x, None, pattern, scale=0.25, tile=32).sum()  # noqa: E731
        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    alone = flops(compiled(backward, x, x, x))[0]
    with jax.set_mesh(make_mesh(data=1, sequence=8)):
        shared = flops(compiled(backward, x, x, x))[0]
    assert 8 * shared == pytest.approx(alone, rel=0.05)


def test_convolutions() -> None:
    signal, kernel = jnp.ones((2, 40, 4)), jnp.ones((5, 4, 8))
    convolve = partial(
        jax.lax.conv_general_dilated, window_strides=(3,), padding="VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert flops(compiled(convolve, signal, kernel))[0] == 2 * 2 * 12 * 8 * 5 * 4
    jaxpr = jax.make_jaxpr(convolve)(signal, kernel)
    assert jaxpr_flops(jaxpr.jaxpr) == 2 * 2 * 12 * 8 * 5 * 4


def test_places_of_a_padded_window() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        size, kernel, stride, dilation, holes, before = rng.integers((3, 1, 1, 1, 1, 0), (9, 5, 4, 3, 4, 4))
        reach = (size - 1) * holes + 1
        out = int((reach + 2 * before - (kernel - 1) * dilation - 1) // stride + 1)
        if out < 1:
            continue
        window = dict(stride=str(stride), rhs_dilate=str(dilation), lhs_dilate=str(holes), pad=f"{before}_{before}")
        places = [o * stride + k * dilation - before for o in range(out) for k in range(kernel)]
        by_hand = sum(0 <= place < reach and place % holes == 0 for place in places)
        assert _places(int(size), int(kernel), out, window) == by_hand, window


def test_collectives_by_hand() -> None:
    mesh = Mesh(np.array(jax.devices()), ("x",))

    def all_sum(x: jax.Array) -> jax.Array:
        step = lambda x, _: (jax.lax.psum(x, "x") * 0.5, None)  # noqa: E731
        return jax.lax.scan(step, x, None, length=L)[0]

    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, "x", tiled=True)

    split, whole, x = PartitionSpec("x"), PartitionSpec(), jnp.ones((64, 32))
    mapped = partial(jax.shard_map, mesh=mesh, check_vma=False)
    summed = collectives(compiled(mapped(all_sum, in_specs=split, out_specs=split), x))
    assert {k: (c.count, c.bytes) for k, c in summed.items()} == {"all-reduce": (L, L * 8 * 32 * 4)}
    assert summed["all-reduce"].sent == L * 8 * 32 * 4 * 2 * 7 / 8
    gathered = collectives(compiled(mapped(gather, in_specs=split, out_specs=whole), x))
    assert {k: (c.count, c.bytes) for k, c in gathered.items()} == {"all-gather": (1, 64 * 32 * 4)}
    assert gathered["all-gather"].sent == 64 * 32 * 4 * 7 / 8


# As a compiler for TPUs prints it, shortened: a loop of six, in it a reduce-scatter spelt as an all-reduce of which a
# fusion keeps its share, a product spelt as a convolution, and a kernel; one array in the scratchpad.
TPU = """HloModule jit_run, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[8,16]) -> f32[2,16] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[8,16]{1,0:T(8,128)} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = f32[2,16]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={2,16}
}

%fused (q: bf16[8,16], w: bf16[16,32]) -> f32[8,32] {
  %q = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = f32[8,32]{1,0:T(8,128)} convolution(%q, %w), dim_labels=bf_io->bf
}

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %left = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} convert(%x)
  %right = bf16[16,32]{1,0:T(8,128)(2,1)} constant({...})
  %product = f32[8,32]{1,0:T(8,128)} fusion(%left, %right), kind=kOutput, calls=%fused
  %query = bf16[2,4,128,64]{3,2,1,0} constant({...})
  %mask = s8[1,2,2]{2,1,0} constant({...})
  %splash_mha_fwd.2 = bf16[2,4,128,64]{3,2,1,0} custom-call(%mask, %query, %query, %query), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q_dkv\\": 64, \\"use_fused_bwd_kernel\\": false}"
}}, metadata={op_name="jit(run)/while/body/blocks_3_of_4/splash_mha_fwd/pallas_call" stack_frame_id=7}
  %scattered = f32[2,16]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%i, %x)
}

%condition (state.1: (s32[], f32[8,16])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (start: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %start = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
}
"""


def test_a_program_for_a_tpu() -> None:
    program = parse(TPU)
    seen, hidden = flops(program)
    assert seen == 6 * 2 * 8 * 16 * 32
    assert hidden == 6 * 4 * (2 * 4) * 128 * 128 * 64 * 3 / 4  # of four blocks, one is skipped
    assert kernels(program) == {"tpu_custom_call: splash_mha_fwd": 6}
    found = collectives(program)
    assert {k: (c.count, c.bytes, c.sent) for k, c in found.items()} == {
        "reduce-scatter": (6, 6 * 8 * 16 * 4, 6 * 8 * 16 * 4 * 3 / 4)
    }
    kernel = 4 * (2 * 4 * 128 * 64 * 2) + 2 * 2
    moved = (8 * 16 * 4) + (16 * 32 * 2 + 8 * 32 * 4) + kernel + (8 * 16 * 4 + 2 * 16 * 4)
    assert traffic(program) == 6 * moved + traffic_of_condition()


@pytest.mark.parametrize(
    ("results", "factor"),
    [
        ("f32[2,64,64]{2,1,0}, bf16[2,4,128,64]{3,2,1,0}, bf16[2,4,128,64]{3,2,1,0}", 8),
        (
            "f32[2,64,64]{2,1,0}, bf16[2,2,4,128,64]{4,3,2,1,0}, bf16[2,4,128,64]{3,2,1,0}, bf16[2,4,128,64]{3,2,1,0}",
            10,
        ),
    ],
)
def test_splash_backward_in_one_kernel_or_two(results: str, factor: int) -> None:
    text = TPU.replace("%splash_mha_fwd.2 = bf16[2,4,128,64]{3,2,1,0}", f"%splash_mha_dkv.2 = ({results})")
    assert flops(parse(text))[1] == 6 * factor * (2 * 4) * 128 * 128 * 64 * 3 / 4


def traffic_of_condition() -> float:
    return 6 * (4 + 4 + 1)  # two numbers compared


@pytest.mark.parametrize("scan", [True, False])
def test_model_flops_by_hand(scan: bool) -> None:
    experiment = tiny.build(tiny.plain("gpt", backbones__shared__scan=scan))
    (task,) = experiment.tasks
    width, depth, vocabulary, rows, length = 32, 2, 264, 8, 16
    products = depth * (4 * width**2 + 2 * width * 4 * width) + width * vocabulary
    attention = depth * 4 * rows * width * length * (length + 1) / 2  # causal: every token itself and those before it
    assert forward_flops(experiment.model, task) == 2 * rows * length * products + attention


@pytest.mark.parametrize("layout", [(9, 0), (9, 1), (4, 0, 7, 1), (3, 1, 5, 0, 1, 0, 2, 1)])
def test_visible_share_is_that_of_the_dense_mask(layout: tuple[int, ...]) -> None:
    spans = tuple(Span(length, bool(causal)) for length, causal in zip(layout[::2], layout[1::2], strict=True))
    for window, always in [(None, 0), (None, 2), (1, 0), (1, 3), (2, 1), (4, 0), (4, 2), (6, 20), (50, 1)]:
        pattern = Pattern(spans, window, always)
        place = np.arange(pattern.length)
        mask = pattern.sees(place[:, None], place[None, :], pattern.limit[:, None])
        assert visible_share(pattern) == mask.mean(), (window, always)


def test_model_flops_know_windows_and_global_tokens() -> None:
    def count(**fields: int | tuple[int, ...]) -> float:
        given = {f"backbones__shared__{name}": value for name, value in fields.items()}
        experiment = tiny.build(tiny.plain("bert", **given))
        return forward_flops(experiment.model, experiment.tasks[0])

    # Of 16 tokens, with a window of 2, all see both neighbours and themselves, but the two at the ends.
    each = 2 * 4 * 8 * 32  # layers · (scores and sums) · rows · width
    assert count() - count(window=2) == each * (16 * 16 - (3 * 16 - 2))
    # The first token now sees 14 more, and is seen by them.
    assert count(window=2, global_tokens=1) - count(window=2) == each * 28
    # One of two layers sees all.
    assert count() - count(window=2, window_layers=(1,)) == each * (16 * 16 - (3 * 16 - 2)) / 2


def test_roofline() -> None:
    chip = TPUS["v5e"]
    assert chip.flops and chip.bandwidth and chip.links
    found = roofline(
        chip, flops=chip.flops, model_flops=chip.flops / 2, traffic=chip.bandwidth / 2, sent=2 * chip.links
    )
    assert found is not None
    assert (found.compute, found.memory, found.interconnect) == (1, 0.5, 2)
    assert found.binds == "interconnect" and found.mfu == 0.25


def test_eight_bits_have_a_peak_of_their_own() -> None:
    chip = TPUS["v5e"]
    assert chip.flops and chip.int8 and chip.float8 is None

    def compute(**eight_bit: float) -> float:
        found = roofline(chip, flops=3e12, model_flops=3e12, traffic=0.0, sent=0.0, eight_bit=eight_bit)
        assert found is not None
        return found.compute

    assert compute(int8=2e12) == pytest.approx(1e12 / chip.flops + 2e12 / chip.int8)
    for found in (compute(float8=2e12), compute()):  # float8 is no faster than bf16 there
        assert found == pytest.approx(3e12 / chip.flops)


def test_products_of_two_arrays_of_eight_bits() -> None:
    product = "convolution(%left, %right), dim_labels=bf_io->bf"

    def count(left: str, right: str, out: str) -> dict[str, float]:
        lines = (f"  %left = {left}[8,16] parameter(0)", f"  %right = {right}[16,32] parameter(1)")
        end = f"  ROOT %product = {out}[8,32] {product}"
        return eight_bit_flops(
            parse("\n".join(("HloModule m", "ENTRY %main (a: f32[]) -> f32[] {", *lines, end, "}", "")))
        )

    work = 2 * 8 * 16 * 32
    assert count("s8", "s8", "s32") == {"int8": work, "float8": 0}
    assert count("f8e5m2", "f8e4m3fn", "f32") == {"int8": 0, "float8": work}
    assert count("s8", "bf16", "f32") == count("bf16", "bf16", "f32") == {"int8": 0, "float8": 0}


def test_out_of_memory_is_read() -> None:
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G."
    )
    assert out_of_memory(message, 4 * GIB, None) == Memory(4 * GIB, 13.5 * GIB, 15.75 * GIB, False)
    message = "Ran out of memory on HBM, the total memory required for HLO temporaries (27.00G) exceeds available HBM (15.75G)."
    found = out_of_memory(message, 4 * GIB, None)
    assert found is not None and found.total == 31 * GIB and found.fits is False
    assert out_of_memory("INTERNAL: something else", 0.0, None) is None


def test_what_fits() -> None:
    assert Memory(1, 2, None).fits is None and Memory(1, 2, 3).fits is True and Memory(1, 3, 3).fits is False
    assert Memory(1, 3, 3, True).fits is True and "accepts it" in verdict(Memory(1, 3, 3, True))
    assert "does not fit" in verdict(Memory(GIB, 3 * GIB, 3 * GIB)) and "1.00 GiB too much" in verdict(
        Memory(GIB, 3 * GIB, 3 * GIB)
    )


def test_slices_that_exist() -> None:
    assert exists(TPUS["v5e"], (16, 16)) and exists(TPUS["v5p"], (8, 8, 8)) and exists(TPUS["v4"], (2, 2, 1))
    assert not exists(TPUS["v5e"], (8, 4)) and not exists(TPUS["v5p"], (6, 8, 8)) and not exists(TPUS["v4"], (4, 4))
    assert wraps(TPUS["v6e"], (8, 16)) == (False, True, False) and all(wraps(TPUS["v5p"], (4, 4, 8)))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v7:2x2", r"unknown topology 'v7:2x2'; there is v4"),
        ("v5e", r"unknown topology 'v5e'; the nearest are v5e:"),
        ("v5e:5x5", r"no topology 'v5e:5x5'; the nearest are .*v5e:4x4, v5e:4x8"),
        ("v5p:8x8x9", r"no topology 'v5p:8x8x9'; the nearest are .*v5p:8x8x8"),
        ("cpu:none", r"say how many devices to simulate, as cpu:8"),
        ("cpu:9", r"asks for 9 devices, but JAX already runs with 8"),
        ("gpu", r"this machine's GPUs, and JAX finds none"),
    ],
)
def test_topologies_that_are_not(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_topology(name)


def test_without_libtpu_or_while_another_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from unimodal.plan import topology

    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"libtpu is not installed.*unimodal\[tpu\]"):
        open_topology("v5e:2x2")

    def held(*_: Any, **__: Any) -> None:
        raise RuntimeError('ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm …".')

    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topology.topologies, "get_topology_desc", held)
    with pytest.raises(UsageError, match="one process at a time may hold libtpu"):
        open_topology("v5e:2x2")


def test_the_command(tmp_path: Path) -> None:
    config, cpu = f"--config={tiny.ROOT / 'tests' / 'tiny.py'}:gpt", "--topology=cpu:8"
    lines = [
        ["plan", config, cpu, "--config.mesh.data=2", "--config.mesh.fsdp=4", f"--json={tmp_path / 'plan.json'}"],
        ["plan", config, cpu, "--config.mesh.data=3"],
        ["plan", config, cpu, "--config.mesh.data=1", "--config.mesh.tensor=8"],
        ["plan", config],
        ["plan", config, cpu, "--mesh=best"],
        ["plan", config, "--topology=v5q:2x2"],
    ]
    scratch = tmp_path / "runs"
    scratch.mkdir()
    whole, *wrong = tiny.launches(lines, scratch)
    assert whole[0] == 0, whole
    for word in (
        "topology",
        "mesh",
        "parameters",
        "HBM a chip",
        "model FLOPs",
        "compiled FLOPs",
        "all-gather",
        "replicated",
    ):
        assert word in whole[1]
    found = json.loads((tmp_path / "plan.json").read_text())
    keys = "devices parameters hbm fits flops_per_device eight_bit_flops_per_device model_flops_per_device collectives kernels mesh bound"
    assert list(found) == keys.split()
    assert found["devices"] == 8 and found["mesh"] == dict(data=2, fsdp=4, tensor=1, sequence=1)
    assert set(found["hbm"]) == {"arguments", "temporaries", "total", "capacity"}
    assert (
        found["hbm"]["total"] == found["hbm"]["arguments"] + found["hbm"]["temporaries"] > 4 * found["parameters"] / 4
    )
    assert found["fits"] is None and found["bound"] is None
    assert 1 <= found["flops_per_device"] / found["model_flops_per_device"] < 1.5
    assert all(set(c) == {"count", "bytes"} for c in found["collectives"].values())
    says = [
        "mesh data=3 does not divide the 8 devices of cpu:8; meshes that divide it, the batch and the model: fsdp=8;",
        "mesh tensor=8: heads=4",
        "--topology is missing; there is v4",
        "--mesh=best must be auto",
        "unknown topology 'v5q:2x2'; there is v4",
    ]
    says[1] = "is not divisible by mesh tensor=8; meshes that divide it"
    for (code, _, err), text in zip(wrong, says, strict=True):
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and text in err, err


def test_mesh_auto_ranks_those_that_divide(capsys: pytest.CaptureFixture[str]) -> None:
    import launch
    from unimodal.plan import command

    plain = tiny.plain("gpt", backbones__shared__depth=1)
    command.run_plan(plain, launch.task_class, topology="cpu:2", mesh="auto")
    out = capsys.readouterr().out
    assert "3 meshes divide cpu:2 and the model" in out
    rows = [line for line in out.splitlines() if line.startswith(("data=2 ", "fsdp=2 ", "tensor=2 "))]
    assert len(rows) == 3


def test_a_tpu_slice(tmp_path: Path) -> None:
    pytest.importorskip("libtpu")
    config = f"--config={tiny.ROOT / 'tests' / 'tiny.py'}:gpt"
    line = ["plan", config, "--topology=v5e:2x2", "--config.mesh.data=1", "--config.mesh.fsdp=4"]
    code, out, err = tiny.launches([[*line, f"--json={tmp_path / 'plan.json'}"]], tmp_path)[0]
    if "one process at a time" in err:
        pytest.skip("another process holds libtpu")
    assert code == 0, err
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] is True and found["hbm"]["capacity"] == 15.75 * GIB
    assert found["bound"]["binds"] in out
    assert 1 <= found["flops_per_device"] / found["model_flops_per_device"] < 1.5
