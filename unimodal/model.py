"""Tokenizers, backbones and heads, assembled."""

from __future__ import annotations

import importlib
import pkgutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

import unimodal.tokenizers
from unimodal.backbone import Backbone, BackboneConfig
from unimodal.errors import UsageError
from unimodal.tokens import Tokens


class Model(nnx.Module):
    """The model of a run: `tokenizers`, `backbones` and `heads` by name.

    Tasks that name the same tokenizer or backbone share its weights; heads belong to one task each (ViT can name another's), and so does
    `state`, which has no gradient (see `unimodal.state`).
    """

    def __init__(self, tokenizers: Mapping[str, nnx.Module], backbones: Mapping[str, Backbone]):
        # Looked up by name, so a type checker cannot know their types.
        self.tokenizers: Any = nnx.Dict(tokenizers)
        self.backbones: Any = nnx.Dict(backbones)
        self.heads: Any = nnx.Dict({})
        self.state: Any = nnx.Dict({})

    def hidden(
        self,
        tokenizer: str,
        backbone: str,
        raw: jax.Array,
        *,
        key: jax.Array | tuple[jax.Array | None, jax.Array | None] | None = None,
        **options: Any,
    ) -> tuple[jax.Array, Tokens]:
        """Raw arrays [B,…] of one modality → hidden states [B,T,D], and the tokens that they belong to.

        key: turns dropout on; one key, or one for the tokenizer and one for the backbone. options: further arguments of
        the tokenizer, such as `lengths` and `causal` for text.
        """
        inner, outer = key if isinstance(key, tuple) else (None if key is None else jax.random.fold_in(key, 1), key)
        tokens = self.tokenizers[tokenizer](raw, key=inner, **options)
        hidden, _ = self.backbones[backbone](tokens, key=outer)
        return hidden, tokens


HeadMaker = Callable[[Model, nnx.Rngs], Mapping[str, nnx.Module]]
StateMaker = Callable[[Model], Mapping[str, nnx.Module]]


def tokenizer_kinds() -> list[str]:
    """The names of the modules in `unimodal/tokenizers/`."""
    return sorted(module.name for module in pkgutil.iter_modules(unimodal.tokenizers.__path__))


def tokenizer_module(kind: str) -> Any:
    """The module of a tokenizer kind, with its `Config` and `Tokenizer`. Raises UsageError for an unknown kind."""
    if kind not in tokenizer_kinds():
        raise UsageError(f"tokenizer kind {kind!r} is not one of {', '.join(tokenizer_kinds())}")
    return importlib.import_module(f"unimodal.tokenizers.{kind}")


Note = Callable[[Tokens, BackboneConfig], None]


def watch(model: Model, note: Note) -> None:
    """Call `note(tokens, config)` whenever a backbone of the model is called. It changes the model: give it a copy."""
    for name, backbone in list(model.backbones.items()):
        model.backbones[name] = _Watched(backbone, note)


@dataclass(frozen=True)
class _Note:
    """Makes a function hashable, as anything that a module holds must be."""

    call: Note


class _Watched(Backbone):
    """A backbone that tells what it is called with. Its parameters are called as they were."""

    def __init__(self, backbone: Backbone, note: Note):
        vars(self).update(vars(backbone))
        self.note = _Note(note)

    def __call__(self, tokens: Tokens, **options: Any) -> Any:
        self.note.call(tokens, self.config)
        return super().__call__(tokens, **options)


def check_shared_head(model: Model, task: str, head: str, part: str, outputs: int) -> None:
    """Raises UsageError unless `head` names an earlier task whose head has a linear layer of so many outputs in `part`."""
    others = [name for name, parts in model.heads.items() if part in parts]
    if head not in others:
        raise UsageError(
            f"tasks.{task}.head={head!r} names no earlier task with a head of its own; there is {', '.join(others) or 'none'}"
        )
    found = model.heads[head][part].linear.kernel.get_value().shape[-1]
    if found != outputs:
        raise UsageError(
            f"tasks.{task} has {outputs} classes, but the head of tasks.{head}, which it uses, has {found}"
        )


def _check_experts(tokenizers: Mapping[str, Any], backbones: Mapping[str, BackboneConfig]) -> None:
    """Raises UsageError for experts of a modality that no tokenizer of the model makes, whichever backbone it feeds."""
    there = sorted({tokenizer.modality for tokenizer in tokenizers.values()})
    for name, config in backbones.items():
        for expert in config.experts:
            if expert not in there:
                raise UsageError(
                    f"backbones.{name}.experts: no tokenizer makes {expert!r}; there is {', '.join(there) or 'none'}"
                )


def assemble(
    key: jax.Array,
    *,
    tokenizers: Mapping[str, tuple[str, Any]],
    backbones: Mapping[str, BackboneConfig],
    heads: Mapping[str, HeadMaker],
    states: Mapping[str, StateMaker] | None = None,
) -> Model:
    """Build a Model. `tokenizers`: name → (kind, its Config); `heads` and `states`: task → what makes them.

    Each part's random key depends on its name alone, so a part starts from the same weights whatever other parts there
    are. A tokenizer has the width of the backbone of the same name, or else of the first. Run it inside
    `sharding.initialise`. Raises UsageError for an unknown kind, or without a backbone where a tokenizer needs one.
    """
    first = next(iter(backbones.values()), None)

    def rngs(part: str) -> nnx.Rngs:
        return nnx.Rngs(params=jax.random.fold_in(key, zlib.crc32(part.encode())))

    made = {}
    for name, (kind, config) in tokenizers.items():
        module, backbone = tokenizer_module(kind), backbones.get(name, first)
        if backbone is None and not getattr(module, "ALONE", False):
            raise UsageError("a model needs at least one backbone")
        width = 0 if backbone is None else backbone.width
        made[name] = module.Tokenizer(config, width, rngs=rngs(f"tokenizer/{name}"))
    _check_experts(made, backbones)
    model = Model(made, {n: Backbone(c, rngs=rngs(f"backbone/{n}")) for n, c in backbones.items()})
    for task, make in heads.items():
        model.heads[task] = nnx.Dict(make(model, rngs(f"head/{task}")))
    for task, make_state in (states or {}).items():
        model.state[task] = nnx.Dict(make_state(model))
    return model
