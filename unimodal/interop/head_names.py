"""Which head of a checkpoint is which head of a task: those of one class that compute the same of the same parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unimodal.heads import Classifier, Embed, LanguageModel, MaskedLanguageModel, PooledClassifier, Projection
from unimodal.interop.describe import Output
from unimodal.interop.match import named_leaves
from unimodal.interop.stages import Decoded, Dense, Headed, Normed, Pool, Stage
from unimodal.layers import Embedding, Linear, Norm


def head_names(outputs: Sequence[Output], model: Any, theirs: Mapping[str, Any]) -> dict[str, str]:
    """Heads of the checkpoint that are of the same make as one of ours: prefix → prefix. theirs: its heads by name."""
    names: dict[str, str] = {}
    whole_of = {output.name: output.stages for output in outputs}
    for task, heads in model.heads.items():
        for head_name, head in heads.items():
            for output in outputs:
                names_there = [name for stage in output.stages for name in _modules(stage)]
                whole = {name: "" for name in names_there if _alike(head_name, head, name, theirs)}
                before = whole_of.get(output.start, ()) if isinstance(output.start, str) else ()
                for stage, inner in (whole or _parts(head, (*before, *output.stages))).items():
                    names.setdefault(f"heads.{stage}", f"heads.{task}.{head_name}{inner}")
    return names


def _modules(stage: Stage) -> tuple[str, ...]:
    """The names of the heads that are the whole of a stage, or of one of its parts."""
    if isinstance(stage, Decoded):
        return tuple(f"{stage.name}_{part}" for part in ("embed", "position", "mask"))
    return (stage.name,) if isinstance(stage, Headed) else ()


def _alike(name: str, ours: Any, their_name: str, heads: Mapping[str, Any]) -> bool:
    """True if two heads compute the same from the same parameters. Linear layers and tables are all alike: they must bear
    one name."""
    theirs = heads[their_name]
    if type(ours) is not type(theirs) or named_leaves(ours).keys() != named_leaves(theirs).keys():
        return False
    if isinstance(ours, Linear | Embedding):
        return name == their_name or {name, their_name} == CHARACTERS
    return all(_place(getattr(ours, field)) == _place(getattr(theirs, field)) for field in MEANING.get(type(ours), ()))


# What a task and what published checkpoints call the layer before CTC.
CHARACTERS = {"characters", "ctc"}


def _place(value: Any) -> Any:
    """A text ends with its end token, where there is one: to pool that or the last token is the same."""
    return replace(value, pooling="last", end=None) if isinstance(value, Embed) and value.pooling == "end" else value


# What the parameters of a head mean depends on these of its fields, and on which parameters there are.
MEANING: dict[type, tuple[str, ...]] = {
    LanguageModel: ("soft_cap",),
    MaskedLanguageModel: ("activation",),
    Projection: ("config",),
}


def _parts(head: Any, stages: Sequence[Stage]) -> dict[str, str]:
    """The checkpoint's stage → the part of our classifier that computes just that. stages: from the hidden states on."""
    match head, stages:
        case Classifier(norm=None), (Pool() as pool, Dense(activation=None) as dense) if _pooling(pool) == head.pooling:
            return {dense.name: ".linear"}
        case Classifier(norm=Norm() as own), (Pool() as pool, Normed() as normed, Dense(activation=None) as dense) if (
            _pooling(pool) == head.pooling and normed.epsilon == own.epsilon
        ):
            return {normed.name: ".norm", dense.name: ".linear"}
        case PooledClassifier(), (Pool() as pool, Dense(activation="tanh") as dense) if _pooling(pool) == head.pooling:
            return {dense.name: ".pooler"}
        case PooledClassifier(), (Pool(), Dense(activation="tanh"), Dense(activation=None) as dense):
            return {dense.name: ".linear"}
    return {}


def _pooling(pool: Pool) -> str:
    return {(0, 1): "first", (0, 2): "first_two", (0, None): "mean"}.get((pool.start, pool.stop), "")
