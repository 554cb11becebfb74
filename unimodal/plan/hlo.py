"""A compiled program's text → computations of instructions, and how often each of them runs.

XLA's own `cost_analysis` counts the body of a loop once, so a scanned stack looks one layer deep, and counts kernels as
nothing. Here every computation is weighted by the trip counts of the loops around it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

BYTES = {"pred": 1, "token": 0, "opaque": 0, "s4": 0.5, "u4": 0.5, "s2": 0.25, "u2": 0.25, "c64": 8, "c128": 16}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_NEW_LINE = re.compile(r"\s|\}(, execution_thread=.*)?$")  # an instruction, or the end of a computation
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_MANY_CALLED = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TURNS = re.compile(r'op_name="[^"]*/turns_(\d+)/while"')  # a loop that says in its scope how often it goes round


@dataclass(frozen=True)
class Shape:
    """One array of a program."""

    dimensions: tuple[int, ...]  # as compiled
    bytes: float  # of all of it
    in_memory: bool = True  # it lies in the chip's main memory (a TPU's scratchpad is S(1))
    kind: str = "f32"  # XLA's name of its type

    @property
    def size(self) -> int:
        return math.prod(self.dimensions)


@dataclass(frozen=True)
class Instruction:
    """name = shapes opcode(operands), attributes. A tuple has several shapes."""

    name: str  # unique in its computation
    opcode: str  # as dot or all-reduce
    shapes: tuple[Shape, ...]  # of the result
    operands: tuple[str, ...]  # names of instructions
    attributes: str  # the rest of the line
    root: bool = False  # it is the result of its computation

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str:
        """The value of name={…} or name=word; empty without it."""
        found = re.search(rf"(?<![\w]){name}=(?:\{{([^{{}}]*)\}}|([^\s,{{}}]+))", self.attributes)
        return (found[1] if found[1] is not None else found[2].lstrip("%")) if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"\d+", self.attribute(name)))

    @property
    def target(self) -> str:
        """The kernel that a custom call runs."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """One function of a module."""

    name: str  # unique in the module
    instructions: Mapping[str, Instruction]  # by name, in order

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions.values() if i.root), list(self.instructions.values())[-1])

    def operand(self, instruction: Instruction, index: int) -> Shape:
        """The array that an operand is."""
        return self.instructions[instruction.operands[index]].shapes[0]

    def parameters(self) -> dict[int, str]:
        """number → name."""
        found = (i for i in self.instructions.values() if i.opcode == "parameter")
        return {int(i.operands[0]): i.name for i in found}


@dataclass(frozen=True)
class Program:
    """All computations of a module."""

    computations: Mapping[str, Computation]  # by name
    entry: str  # the one where it begins
    replicas: int = 1  # devices that run it alike

    @cached_property
    def runs(self) -> dict[str, float]:
        """Count how often each computation that is run as such (not inside a fusion) runs in one step. Of branches, each
        counts as often as all of them are chosen together, which is an upper bound."""
        return self._weights(inside_fusions=False)

    @cached_property
    def all_runs(self) -> dict[str, float]:
        """The same, with what fusions and other instructions hold inside."""
        return self._weights(inside_fusions=True)

    def _weights(self, *, inside_fusions: bool) -> dict[str, float]:
        weights: dict[str, float] = {}

        def visit(name: str, times: float) -> None:
            weights[name] = weights.get(name, 0.0) + times
            here = self.computations[name]
            for instruction in here.instructions.values():
                for role, called in calls(instruction):
                    control = instruction.opcode in ("while", "conditional", "call", "async-start")
                    if called in self.computations and (control or inside_fusions):
                        trips = self.trips(instruction, here) if role in ("body", "condition") else 1
                        visit(called, times * trips)

        visit(self.entry, 1.0)
        return weights

    def trips(self, loop: Instruction, caller: Computation) -> int:
        """Count how often a `while` goes round: as the compiler or its own scope says, or from its counter's start, step and
        limit; else 1."""
        if known := _TRIPS.search(loop.attributes) or _TURNS.search(loop.attributes):
            return int(known[1])
        condition = self.computations.get(loop.attribute("condition"))
        body = self.computations.get(loop.attribute("body"))
        if condition is None or body is None:
            return 1
        limit, place = self._limit(condition)
        if limit is None:
            return 1
        start, step = 0, 1
        if place is not None:
            start = _constant(caller, _element(caller, loop.operands[0], place)) or 0
            counted = body.instructions.get(_element(body, body.root.name, place))
            if counted is not None and counted.opcode == "add":
                steps = (_constant(body, operand) for operand in counted.operands)
                step = next((value for value in steps if value), 1)
        return max(1, -(-(limit - start) // step))

    def _limit(self, condition: Computation) -> tuple[int | None, int | None]:
        """The constant that a counter is compared with, and which element of the loop's state the counter is."""
        compare = condition.root
        if compare.opcode == "compare":
            counter, constant = (condition.instructions[o] for o in compare.operands[:2])
            limit = _constant(condition, constant.name)
            if limit is not None and counter.opcode == "get-tuple-element":
                return limit + ("direction=LE" in compare.attributes), int(counter.attribute("index"))
        found = [_constant(condition, i.name) for i in condition.instructions.values() if i.opcode == "constant"]
        return max((value for value in found if value is not None), default=None), None


def _constant(computation: Computation, name: str) -> int | None:
    """The whole number that an instruction is, if it is one."""
    found = computation.instructions.get(name)
    while found is not None and found.opcode in ("copy", "bitcast", "convert") and found.operands:
        found = computation.instructions.get(found.operands[0])
    if found is None or found.opcode != "constant" or not re.fullmatch(r"\d+", found.operands[0]):
        return None
    return int(found.operands[0])


def _element(computation: Computation, name: str, place: int) -> str:
    """The operand of a tuple."""
    found = computation.instructions.get(name)
    return (
        found.operands[place] if found is not None and found.opcode == "tuple" and place < len(found.operands) else ""
    )


def calls(instruction: Instruction) -> Sequence[tuple[str, str]]:
    """(role, computation) of all that an instruction calls."""
    found = [(m[1], m[2]) for m in _CALLED.finditer(instruction.attributes)]
    for many in _MANY_CALLED.finditer(instruction.attributes):
        found += [("calls", name.strip().lstrip("%")) for name in many[1].split(",") if name.strip()]
    return found


def parse(text: str) -> Program:
    """The text of a compiled module (`compiled.as_text()`) → Program."""
    computations: dict[str, Computation] = {}
    entry, name, body = "", "", {}
    for line in _whole_lines(text):
        if header := _HEADER.match(line):
            name, body = header[2], {}
            entry = name if header[1] else entry
        elif line.startswith("}"):
            if name:
                computations[name] = Computation(name, body)
            name = ""
        elif name and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[2], found[3], root=bool(found[1]))
            body[instruction.name] = instruction
    partitions = re.search(r"num_partitions=(\d+)", text[:10_000])
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _whole_lines(text: str) -> Iterator[str]:
    """The lines of a module; an instruction whose attributes hold line breaks (a kernel's description does) as one."""
    whole = ""
    for line in text.splitlines():
        if whole.startswith(" ") and line and not _NEW_LINE.match(line):
            whole += line
            continue
        yield whole
        whole = line
    yield whole


def _instruction(name: str, rest: str, *, root: bool) -> Instruction:
    shape, rest = _split_shape(rest)
    opcode, _, rest = rest.partition("(")
    end = _closing(rest)
    inside, attributes = rest[:end], rest[end + 1 :]
    if opcode in ("parameter", "constant"):
        operands: tuple[str, ...] = (inside,)
    else:
        # Older compilers print the operands' shapes before their names.
        operands = tuple(m for m in re.findall(r"%([\w.\-]+)", inside)) or tuple(
            word.strip() for word in inside.split(",") if re.fullmatch(r"\s*[\w.\-]+\s*", word)
        )
    return Instruction(name, opcode.strip(), shapes_of(shape), operands, attributes, root)


def shapes_of(text: str) -> tuple[Shape, ...]:
    """All arrays of a printed shape."""
    return tuple(_shape(m) for m in _SHAPE.finditer(text))


def _shape(found: re.Match[str]) -> Shape:
    kind, digits, layout = found[1], found[2], found[3] or ""
    dimensions = tuple(int(d) for d in digits.split(",") if d)
    bits = re.search(r"\d+", kind)
    width = BYTES.get(kind, int(bits[0]) / 8 if bits else 4)
    return Shape(dimensions, math.prod(dimensions) * width, "S(" not in layout, kind)


def _split_shape(text: str) -> tuple[str, str]:
    """The shape that an instruction's text begins with, and the rest."""
    if text.startswith("("):
        end = _closing(text[1:]) + 2
        return text[:end], text[end:].lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closing(text: str) -> int:
    """Find the bracket that closes the one just before `text`."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text)
