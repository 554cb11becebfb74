"""A plan in words: aligned lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.plan.compile import Memory, Plan
from unimodal.plan.meshes import spell

GIB = 2.0**30


def report(plan: Plan) -> str:
    """The whole plan of one step."""
    topology, memory = plan.topology, plan.memory
    rows = [
        (
            "topology",
            f"{topology.name}: {len(topology.devices)} {topology.chip.name} chips on {topology.hosts} host(s)",
        ),
        (
            "step",
            f"{', '.join(plan.tasks)}; compiled in {plan.seconds:.0f} s, {plan.program_bytes / 1e6:.1f} MB of HLO",
        ),
        ("mesh", spell(plan.mesh)),
        ("parameters", f"{plan.parameters:,}"),
        (
            "HBM a chip",
            f"arguments {_gib(memory.arguments)}, temporaries {_gib(memory.temporaries)}, {verdict(memory)}",
        ),
        ("model FLOPs", f"{_scaled(plan.model_flops, 'FLOP')} a chip and step"),
        (
            "compiled FLOPs",
            f"{_scaled(plan.flops + plan.hidden_flops, 'FLOP')} a chip and step{_hidden(plan)}{_narrow(plan)}",
        ),
    ]
    rows += [
        ("collectives" if i == 0 else "", f"{kind} ×{c.count:,.0f}, {_scaled(c.bytes, 'B')} a chip")
        for i, (kind, c) in enumerate(sorted(plan.collectives.items(), key=lambda item: -item[1].bytes))
    ] or [("collectives", "none")]
    rows.append(("kernels", ", ".join(f"{name} ×{count}" for name, count in plan.kernels.items()) or "none"))
    rows.append(("replicated", ", ".join(plan.replicated) or "nothing large"))
    rows += _bound(plan)
    return _aligned(rows)


def verdict(memory: Memory) -> str:
    """ "total 4.2 GiB of 15.8: fits, 11.5 to spare"."""
    total = f"total {_gib(memory.total)}"
    if memory.capacity is None:
        return f"{total} (the capacity is not known)"
    left = memory.capacity - memory.total
    ends = f"fits, {_gib(left)} to spare" if left >= 0 else f"does not fit, {_gib(-left)} too much"
    if memory.accepted and left < 0:
        ends = f"the compiler accepts it, though its figures add up to {_gib(-left)} too much"
    return f"{total} of {_gib(memory.capacity)}: {ends}"


def comparison(plans: Sequence[Plan]) -> str:
    """A table of plans that differ in their mesh, in the order given."""
    head = ("mesh", "HBM", "fits", "collectives", "at best", "binds", "MFU at most")
    rows: list[tuple[str, ...]] = [head]
    for plan in plans:
        total, bound = sum(c.bytes for c in plan.collectives.values()), plan.bound if plan.flops else None
        fits = {True: "yes", False: "no", None: "?"}[plan.fits]
        rest = ("", "", "") if bound is None else (f"{bound.seconds:.4f} s", bound.binds, f"{bound.mfu:.0%}")
        sent = _scaled(total, "B") if plan.flops else ""
        rows.append((spell(plan.mesh), _gib(plan.memory.total), fits, sent, *rest))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _bound(plan: Plan) -> list[tuple[str, str]]:
    bound = plan.bound
    if bound is None:
        return [("bound", f"none: there are no published peaks for {plan.topology.chip.name}")]
    each = f"compute {bound.compute:.4f} s, HBM {bound.memory:.4f} s, interconnect {bound.interconnect:.4f} s"
    return [
        ("at best", f"{each}: {bound.binds} binds"),
        (
            "",
            f"MFU at most {bound.mfu:.1%}{' of the bf16 peak' * bool(_narrow(plan))} (a bound, with everything at its peak and overlapped; no forecast)",
        ),
    ]


def _peak(memory: Memory) -> str:
    return "" if memory.peak is None else f" (alive at the worst moment: {_gib(memory.peak)})"


def _hidden(plan: Plan) -> str:
    return f", {_scaled(plan.hidden_flops, 'FLOP')} of them in kernels" if plan.hidden_flops else ""


def _narrow(plan: Plan) -> str:
    return "".join(f", {_scaled(n, 'FLOP')} of them {kind}" for kind, n in plan.eight_bit_flops.items() if n)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.01 * GIB else f"{size / 2**20:.2f} MiB"


def _scaled(number: float, unit: str) -> str:
    """ "7.000 TFLOP": a number in the largest of T, G, M, k that leaves it above 1."""
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:,.3f} {prefix}{unit}"
    return f"{number:,.0f} {unit}"


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)
