"""Families that are another one by other names, or one tower of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.stages import Headed
from unimodal.interop.table import Row

Describe = Callable[[Fields, Names, Path], Description]


def renamed(
    describe: Describe, config: Fields, names: Names, directory: Path, *, there: str, known: str
) -> Description:
    """Describe a checkpoint whose names begin with `there` by a `describe` that expects them to begin with `known`."""
    if not there or not names.prefix(there):
        return describe(config, names, directory)
    seen = {known + name.removeprefix(there) if name.startswith(there) else name: s for name, s in names.names.items()}
    made = describe(config, Names(seen), directory)
    back = [
        replace(row, source=there + row.source.removeprefix(known)) if row.source.startswith(known) else row
        for row in made.rows
    ]
    return replace(made, rows=tuple(back))


def tower_alone(
    describe: Describe, config: Fields, names: Names, directory: Path, *, tower: str, part: str
) -> Description:
    """One tower of a model of two, of which the file has that tower and perhaps its projection. tower: its name; part: of
    config.json and of the tensors' names (`text` or `vision`)."""
    prefix, heads = f"{part}_model.", ("text_projection.", "visual_projection.")
    bare = not names.prefix(prefix)
    seen = {n if not bare or n.startswith(heads) else prefix + n: shape for n, shape in names.names.items()}
    whole = {f"{part}_config": config.values, "projection_dim": config.raw("projection_dim")}
    made = describe(Fields(whole, config.where), Names(seen), directory)
    filled = {row.ours for row in made.rows if row.source.replace("{layer}", "0") in seen}
    outputs: list[Output] = []
    for output in made.outputs:
        known = {"hidden", *(before.name for before in outputs)}
        has_all = all(any(ours.startswith(head) for ours in filled) for head in _heads(output))
        if output.tower == tower and output.start in known and not output.needs and has_all:
            outputs.append(output)
    ours = (f"tokenizers.{tower}.", f"backbones.{tower}.", *(head for output in outputs for head in _heads(output)))
    rows = [row for row in made.rows if row.ours.startswith(ours)]
    return replace(
        made,
        towers=tuple(t for t in made.towers if t.name == tower),
        outputs=tuple(_plainly(output, f"{tower}_pooled") for output in outputs),
        rows=tuple(_without(row, prefix) if bare else row for row in rows),
    )


def _heads(output: Output) -> list[str]:
    """The paths of the parameters of its stages."""
    named = [stage for stage in output.stages if isinstance(stage, Headed)]
    return [f"heads.{stage.name}." for stage in named if jax.tree.leaves(jax.eval_shape(_made(stage)))]


def _made(stage: Headed) -> Callable[[], Any]:
    return lambda: stage.module(nnx.Rngs(0))


def _plainly(output: Output, pooled: str) -> Output:
    """Use the plain name `pooled`, as there is but one tower."""
    name, start = ("pooled" if word == pooled else word for word in (output.name, output.start))
    return replace(output, name=name, start=start)


def _without(row: Row, prefix: str) -> Row:
    return replace(row, source=row.source.removeprefix(prefix))
