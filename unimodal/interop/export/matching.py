"""Which architecture a model of ours is, and, where it is none, which of its options stand in the way."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.export.architectures import ARCHITECTURES, UNENDED
from unimodal.interop.export.handed import Handed, Offer
from unimodal.interop.head_names import head_names
from unimodal.interop.match import named_leaves
from unimodal.interop.pretrained import Origin, Pretrained
from unimodal.interop.recipes import effective, tokenizer_config
from unimodal.interop.stages import Decoded


@dataclass(frozen=True)
class Exported:
    """A model of ours as a published architecture."""

    offer: Offer  # the architecture and its config.json
    description: Description  # of the checkpoint that would be written
    abstract: Pretrained  # the shapes of that checkpoint
    names: Mapping[str, str]  # the architecture's parameter → ours
    left: tuple[str, ...]  # parameters of ours that it has not


def match(handed: Handed, model: Any) -> Exported:
    """The architecture that computes what the model does. model: ours, or its shapes.

    Raises UsageError, naming the options that stand in the way and what would fit, where there is none.
    """
    offers = [offer for make in ARCHITECTURES if (offer := make(handed)) is not None]
    if not offers:
        heads = ", ".join(f"{name} ({type(head).__name__})" for name, head in handed.heads.items())
        raise UsageError(
            f"no published architecture reads {' and '.join(handed.inputs)} with the heads {heads}, so the task "
            f"{handed.task!r} cannot be exported to huggingface:…; stablehlo:… takes any model"
        )
    judged = [(offer, *_judge(handed, offer, model)) for offer in offers]
    offer, exported, against = min(judged, key=lambda one: len(one[2]))
    if exported is None or against:
        more = f"; and {len(against) - 6} more" if len(against) > 6 else ""
        raise UsageError(
            f"{offer.config['architectures'][0]} is nearest to the task {handed.task!r}, but not the same: "
            f"{'; '.join(against[:6])}{more}"
        )
    return exported


def _unended(offer: Offer) -> list[str]:
    """An architecture that pools the end token, for a vocabulary that puts none there."""
    if offer.config.get("text_config", {}).get("eos_token_id") != UNENDED:
        return []
    return ["it pools the token that ends a text, but texts of bytes end with none; a vocabulary with one would fit"]


def _judge(handed: Handed, offer: Offer, model: Any) -> tuple[Exported | None, list[str]]:
    where = f"config.json of {offer.family}"
    family = importlib.import_module(f"unimodal.interop.families.{offer.family}")
    try:
        description = family.describe(Fields(offer.config, where), Names(offer.markers), Path("/nowhere"))
    except UsageError as error:  # a size that the architecture does not know
        return None, [str(error).removeprefix(f"{where}: ")]
    against = _differences(handed, description) + _unended(offer)
    scan = {tower.name: handed.inputs[tower.name].layers.scan for tower in description.towers}
    towers = tuple(replace(t, backbone=replace(t.backbone, scan=scan[t.name])) for t in description.towers)
    description = replace(description, towers=towers, outputs=tuple(_scanned(handed, o) for o in description.outputs))
    abstract = jax.eval_shape(lambda: Pretrained(description, Origin("", ""), rngs=nnx.Rngs(0)))
    names = _names(handed, offer, description, model, abstract)
    theirs = named_leaves(abstract)
    ours = {name: leaf for name, leaf in named_leaves(nnx.state(model, nnx.Param)).items() if _of(handed, name)}
    missing = [name for name in theirs if names.get(name) not in ours]
    if missing and not against:
        against.append(f"it has {offer.wants}, which the heads of {handed.task!r} are not ({missing[0]})")
    found = {name: names[name] for name in theirs if names.get(name) in ours}
    wrong = [n for n, o in found.items() if theirs[n].shape != ours[o].shape]
    if wrong and not against:
        against.append(f"{found[wrong[0]]} is {ours[found[wrong[0]]].shape}, but {theirs[wrong[0]].shape} there")
    left = tuple(name for name in ours if name not in set(found.values()))
    if left and not against:
        against.append(f"it has no place for {left[0]}" + (f" and {len(left) - 1} more" if len(left) > 1 else ""))
    return Exported(offer, description, abstract, found, left), against


def _differences(handed: Handed, description: Description) -> list[str]:
    """Fields in which our tokenizers and backbones are not what the architecture's config means."""
    found = []
    for tower in description.towers:
        part = handed.inputs[tower.name]
        pairs = (
            (f"tokenizers.{part.tokenizer}", part.config, tokenizer_config(tower)),
            (f"backbones.{part.backbone}", part.layers, tower.backbone),
        )
        for where, ours, theirs in pairs:
            found += _differing(where, ours, theirs)
        if part.causal != tower.causal:
            sees = "what came before" if tower.causal else "all of a row"
            found.append(
                f"its {tower.input} sees only {sees}; --config.tasks.{handed.task}.causal={tower.causal} would fit"
            )
        if tower.input == "text" and not tower.masked:
            found += _unfilled(handed, tower.tokenizer.max_length)
    if handed.decoder is not None:
        for decoder in _decoders(description):
            found += _differing(f"backbones.{handed.decoder[0]}", handed.decoder[1], decoder.config)
    return found


def _unfilled(handed: Handed, places: int) -> list[str]:
    """What keeps a task's texts from filling every place of the position table with ids that are seen."""
    task, fill, length = f"--config.tasks.{handed.task}", handed.fields["fill"], handed.fields["texts"].length
    found = [f"it sees the padding of texts; {task}.fill=0 would fit"] if fill is None else []
    return found + (
        [f"its texts have {places} ids; {task}.texts.length={places} would fit"] if length != places else []
    )


def _differing(where: str, ours: Any, theirs: Any) -> list[str]:
    """Fields of one config in which two differ."""
    a, b = effective(ours), effective(theirs)
    return [
        f"{where}.{name} is {a[name]}, --config.{where}.{name}={_shown(b[name])} would fit"
        for name in a
        if a[name] != b[name]
    ]


def _decoders(description: Description) -> list[Decoded]:
    """The backbones of the architecture that stand behind its heads."""
    return [stage for output in description.outputs for stage in output.stages if isinstance(stage, Decoded)]


def _scanned(handed: Handed, output: Output) -> Output:
    """An output whose decoder stacks its layers as ours does."""
    if handed.decoder is None:
        return output
    scan = handed.decoder[1].scan
    stages = tuple(
        replace(stage, config=replace(stage.config, scan=scan)) if isinstance(stage, Decoded) else stage
        for stage in output.stages
    )
    return replace(output, stages=stages)


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, tuple) else str(value)


def _of(handed: Handed, name: str) -> bool:
    """True if a parameter belongs to the task."""
    prefixes = [f"heads.{handed.task}."]
    for part in handed.inputs.values():
        prefixes += [f"tokenizers.{part.tokenizer}.", f"backbones.{part.backbone}."]
    if handed.decoder is not None:
        prefixes.append(f"backbones.{handed.decoder[0]}.")
    return name.startswith(tuple(prefixes))


def _names(handed: Handed, offer: Offer, description: Description, model: Any, theirs: Pretrained) -> dict[str, str]:
    """Each parameter of the architecture → ours, as far as there is one."""
    prefixes = head_names(description.outputs, _OnlyTask(handed), theirs.heads)
    prefixes |= {f"heads.{there}": f"heads.{handed.task}.{ours}" for there, ours in offer.renamed.items()}
    if handed.decoder is not None:
        prefixes |= {f"heads.{stage.name}": f"backbones.{handed.decoder[0]}" for stage in _decoders(description)}
    for tower in description.towers:
        part = handed.inputs[tower.name]
        prefixes[f"tokenizers.{tower.name}"] = f"tokenizers.{part.tokenizer}"
        prefixes[f"backbones.{tower.name}"] = f"backbones.{part.backbone}"
    found = {}
    for name in named_leaves(theirs):
        prefix = next((p for p in prefixes if name.startswith(f"{p}.")), None)
        if prefix is not None:
            found[name] = prefixes[prefix] + name.removeprefix(prefix)
    return found


class _OnlyTask:
    """The heads of one task, for `head_names` to look at."""

    def __init__(self, handed: Handed):
        self.heads = {handed.task: handed.heads}
