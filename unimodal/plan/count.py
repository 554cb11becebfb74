"""Counts the work of one step of a compiled program on each device: FLOPs, collectives, kernels, bytes to and from memory."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimodal.plan.hlo import Computation, Instruction, Program

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Custom calls that are no kernels: notes to the compiler and to the runtime.
_NOTES = (
    *("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "AllocateBuffer", "AssumeGatherIndicesInBound"),
    *("ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "ResizeBuffer"),
)
# Instructions that move nothing: they name, or another instruction moves for them.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *(
        "copy-done",
        "slice-done",
        "dynamic-slice-done",
        "async-done",
        "async-update",
        "all-gather-done",
        "all-reduce-done",
        "collective-permute-done",
    ),
    *("send", "send-done", "recv", "recv-done", "partition-id", "replica-id", "opt-barrier", "domain"),
)


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind in one step on one device."""

    count: float = 0.0  # how many
    bytes: float = 0.0  # of the whole array that each makes or takes, the larger of the two
    sent: float = 0.0  # bytes that leave the chip

    def plus(self, times: float, size: float, sent: float) -> Collective:
        return Collective(self.count + times, self.bytes + times * size, self.sent + times * sent)


def flops(program: Program) -> tuple[float, float]:
    """FLOPs of all products and convolutions of a step on one device, and those of kernels that the compiler does not see
    into (see `kernel_flops`)."""
    seen = hidden = 0.0
    for name, times in program.all_runs.items():
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            if count := _PRODUCTS.get(instruction.opcode):
                seen += times * count(instruction, computation)
            elif instruction.opcode == "custom-call":
                hidden += times * kernel_flops(instruction, computation)
    return seen, hidden


def eight_bit_flops(program: Program) -> dict[str, float]:
    """The FLOPs of products and convolutions whose operands both are "int8", or both "float8"."""
    found = {"int8": 0.0, "float8": 0.0}
    for name, times in program.all_runs.items():
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            count = _PRODUCTS.get(instruction.opcode)
            if count is None:
                continue
            kinds = {_EIGHT_BITS.get(computation.operand(instruction, i).kind[:2]) for i in (0, 1)}
            if len(kinds) == 1 and (kind := kinds.pop()):
                found[kind] += times * count(instruction, computation)
    return found


def dot_flops(dot: Instruction, computation: Computation) -> float:
    """2 · result · contracted."""
    left = computation.operand(dot, 0).dimensions
    contracted = math.prod(left[d] for d in dot.numbers("lhs_contracting_dims"))
    return 2.0 * dot.shapes[0].size * contracted


def convolution_flops(convolution: Instruction, computation: Computation) -> float:
    """2 · batch · features in · features out · places where the window lies on the input.

    Places are counted, not windows: compilers for TPUs write batched products as convolutions whose windows lie on
    padding almost everywhere.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    if labels is None:
        return 0.0
    left, right = (computation.operand(convolution, i).dimensions for i in (0, 1))
    out = convolution.shapes[0].dimensions
    window = {m[1]: m[2] for m in re.finditer(r"(\w+)=([\w\-x]+)", convolution.attribute("window"))}
    places = 1.0
    for axis, digit in enumerate(sorted(set(labels[1]) - {"b", "f"})):
        sizes = (left[labels[1].index(digit)], right[labels[2].index(digit)], out[labels[3].index(digit)])
        places *= _places(*sizes, {key: value.split("x")[axis] for key, value in window.items()})
    groups = int(convolution.attribute("feature_group_count") or 1)
    batch_groups = int(convolution.attribute("batch_group_count") or 1)
    batch, features = left[labels[1].index("b")] / batch_groups, left[labels[1].index("f")] / groups
    return 2.0 * batch * features * out[labels[3].index("f")] * places


def _places(size: int, kernel: int, out: int, window: Mapping[str, str]) -> float:
    """Pairs (output, tap) along one axis whose input is a number and not padding or a hole."""
    stride, dilation, holes = (int(window.get(name, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate"))
    before = int(window.get("pad", "0_0").split("_")[0])
    if not before and holes == 1 and (out - 1) * stride + (kernel - 1) * dilation < size:
        return float(out * kernel)  # nothing is padded
    few, many, by_few, by_many = kernel, out, dilation, stride
    if out < kernel:
        few, many, by_few, by_many = out, kernel, stride, dilation
    start = np.arange(many, dtype=np.int64) * by_many - before
    total = 0
    for i in range(few):
        place = start + i * by_few
        total += int(((place >= 0) & (place < (size - 1) * holes + 1) & (place % holes == 0)).sum())
    return float(total)


def kernel_flops(call: Instruction, computation: Computation) -> float:
    """FLOPs of a kernel, as it declares them, or by a formula; 0 for one that neither declares nor is known.

    Attention over q [..., T, K] and k [..., S, K]: 4·T·S·K a head forward (QKᵀ and PV), 10·T·S·K backward (QKᵀ again, dP,
    dQ, dK, dV); a backward pass in two kernels takes 6 for dQ and 8 for dK and dV, without dQ among its results. Of that the share of blocks that is
    not skipped, where the kernel's scope says it ("blocks_10_of_16").
    """
    target, config = call.target, _config(call)
    if target == "__cublas$gemm" or target.startswith("__cublas$lt$matmul"):
        numbers = config.get("gemm_backend_config", config).get("dot_dimension_numbers", {})
        left = computation.operand(call, 0).dimensions
        return (
            2.0 * call.shapes[0].size * math.prod(left[int(d)] for d in numbers.get("lhs_contracting_dimensions", ()))
        )
    declared = config.get("custom_call_config", {}).get("cost_estimate", config.get("cost_estimate", {}))
    if float(declared.get("flops", 0)) > 0:
        return float(declared["flops"])
    scope = re.search(r'op_name="([^"]*)"', call.attributes)
    words = f"{call.name} {call.target} {scope[1] if scope else ''}".lower()
    if not re.search(r"splash|flash_attention|fmha", words):
        return 0.0
    arrays = [computation.instructions[name].shapes[0] for name in call.operands]
    query, key = [a.dimensions for a in arrays if len(a.dimensions) >= 3 and "f" in a.kind][:2]  # masks are integers
    if "fmha" in words:  # cuDNN: [B,T,H,K]
        heads, places = math.prod(query) // query[-3], query[-3] * key[-3]
    else:
        heads, places = math.prod(query) // query[-2], query[-2] * key[-2]
    factor = 4.0
    if re.search(r"bwd|backward|dkv|dq", words):
        gradients = sum(len(shape.dimensions) >= len(key) for shape in call.shapes)  # the rest is scratch
        factor = (10.0 if gradients > 2 else 8.0) if "dkv" in words else 6.0 if re.search(r"dq\b|dq_", words) else 10.0
    skipped = re.search(r"blocks_(\d+)_of_(\d+)", call.attributes)
    return factor * heads * places * (int(skipped[1]) / int(skipped[2]) if skipped else 1.0)


_PRODUCTS = {"dot": dot_flops, "convolution": convolution_flops}
_EIGHT_BITS = {"s8": "int8", "f8": "float8"}  # the names of float8's kinds go on after that


def _config(call: Instruction) -> dict[str, Any]:
    found = re.search(r"backend_config=(\{.*\})", call.attributes)
    try:
        return json.loads(found[1]) if found else {}
    except json.JSONDecodeError:
        return {}


def kernels(program: Program) -> dict[str, int]:
    """Custom calls by target (Pallas kernels by the name of the kernel) → how many times a step."""
    found: dict[str, float] = {}
    for name, times in program.all_runs.items():
        for call in program.computations[name].instructions.values():
            if call.opcode == "custom-call" and call.target not in _NOTES:
                label = call.target
                if label == "tpu_custom_call":
                    label = f"{label}: {re.sub(r'[.][0-9]+$', '', call.name)}"
                found[label] = found.get(label, 0.0) + times
    return {name: round(times) for name, times in sorted(found.items())}


def collectives(program: Program) -> dict[str, Collective]:
    """Count collectives by kind. An all-reduce of which a fusion keeps but its own share is a reduce-scatter. One that several fusions work
    at, to overlap it with other work, has the same channel in all of them, and counts once."""
    found: dict[str, Collective] = {}
    channels: set[tuple[str, str]] = set()
    for name, times in program.all_runs.items():
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            channel = (kind, instruction.attribute("channel_id"))
            if channel[1] and channel in channels:
                continue
            channels.add(channel)
            kind = "reduce-scatter" if kind == "all-reduce" and "reduce-scatter" in name else kind
            size = collective_bytes(instruction, computation)
            sent = _sent(kind, size, group_size(instruction, program.replicas))
            found[kind] = found.get(kind, Collective()).plus(times, size, sent)
    return {kind: value for kind, value in found.items() if value.bytes}


def collective_bytes(collective: Instruction, computation: Computation) -> float:
    """The whole array: of its operands and its results the larger."""
    known = computation.instructions
    operands = sum(known[o].bytes for o in collective.operands if o in known)
    if collective.opcode in ("all-reduce-start", "collective-permute-start"):
        return operands  # the result is as large, and stands in a tuple with much else
    results = collective.bytes - (operands if collective.opcode.endswith("-start") else 0)
    return max(operands, results)


def _sent(kind: str, size: float, group: int) -> float:
    """Bytes that leave each chip of a group, by the best algorithm over a ring."""
    share = (group - 1) / group
    return size * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def group_size(collective: Instruction, everybody: int) -> int:
    """Count the devices that take part together."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", collective.attributes):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", collective.attributes):
        return int(iota[2])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", collective.attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return max(2, everybody)


def traffic(program: Program) -> float:
    """Bytes read from and written to the chip's memory, each instruction once, without what stays in a scratchpad."""
    total = 0.0
    for name, times in program.runs.items():
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            if instruction.opcode not in _FREE:
                total += times * _moved(instruction, computation, program)
    return total


def _moved(instruction: Instruction, computation: Computation, program: Program) -> float:
    opcode = instruction.opcode
    if instruction.target in _NOTES:
        return 0.0
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _in_memory(instruction)
    if opcode == "dynamic-update-slice":
        return 2 * _in_memory(computation.instructions[instruction.operands[1]])
    if opcode in (
        "copy-start",
        "slice-start",
        "dynamic-slice-start",
    ):  # (from, to, …), often the scratchpad one of them
        ends = [shape for shape in instruction.shapes if shape.dimensions][:2]
        return sum(shape.in_memory for shape in ends) * min((shape.bytes for shape in ends), default=0.0)
    inner = _inside(instruction, program)
    if inner is not None:
        return _read(instruction, computation, inner, program) + _written(inner.root, inner, program)
    known = computation.instructions
    return sum(_in_memory(known[o]) for o in instruction.operands if o in known) + _in_memory(instruction)


def _inside(instruction: Instruction, program: Program) -> Computation | None:
    """Give the computation inside a fusion."""
    name = instruction.attribute("calls") if instruction.opcode == "fusion" else ""
    return program.computations.get(name)


def _read(fusion: Instruction, computation: Computation, inner: Computation, program: Program) -> float:
    """Bytes that a fusion reads: of operands that it only cuts slices from, or puts slices into, the slices alone."""
    parameters, total = inner.parameters(), 0.0
    for number, operand in enumerate(fusion.operands):
        if operand in computation.instructions and number in parameters:
            whole = _in_memory(computation.instructions[operand])
            total += min(whole, _used(parameters[number], inner, whole, program))
    return total


def _used(name: str, inner: Computation, whole: float, program: Program) -> float:
    """Bytes of an array of `whole` bytes that its users within a fusion look at."""
    total = 0.0
    for user in inner.instructions.values():
        if name not in user.operands:
            continue
        deeper = _inside(user, program)
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            total += 0.0  # what is not put in stays where it is
        elif user.opcode in ("bitcast", "tuple", "reshape"):
            total += _used(user.name, inner, whole, program)
        elif deeper is not None:
            parameters = deeper.parameters()
            numbers = [number for number, operand in enumerate(user.operands) if operand == name]
            total += sum(_used(parameters[number], deeper, whole, program) for number in numbers)
        else:
            return whole
    return min(total, whole)


def _written(result: Instruction, inner: Computation, program: Program) -> float:
    """Bytes that a fusion writes: of an array that it puts a slice into, the slice alone."""
    known, deeper = inner.instructions, _inside(result, program)
    if result.opcode == "tuple":
        return sum(_written(known[operand], inner, program) for operand in result.operands if operand in known)
    if result.opcode == "bitcast" and result.operands and result.operands[0] in known:
        return min(_in_memory(result), _written(known[result.operands[0]], inner, program))
    if result.opcode == "dynamic-update-slice":
        return _in_memory(known[result.operands[1]])
    if result.opcode == "parameter":
        return 0.0
    return _in_memory(result) if deeper is None else _written(deeper.root, deeper, program)


def _in_memory(instruction: Instruction) -> float:
    return sum(shape.bytes for shape in instruction.shapes if shape.in_memory)
