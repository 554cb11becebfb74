"""Description of a checkpoint by its family: towers, outputs and rows. It is data only; `pretrained.py` runs it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unimodal.backbone import BackboneConfig
from unimodal.errors import UsageError
from unimodal.interop.numbers import DEEPEST, check_number, is_count, shown
from unimodal.interop.stages import Stage
from unimodal.interop.table import Row


@dataclass(frozen=True)
class Tower:
    """One tokenizer and its backbone."""

    name: str  # of both, in `model.tokenizers` and `model.backbones`
    input: str  # the argument that it reads: text, image or audio
    kind: str  # of the tokenizer, as in `unimodal.model.assemble`
    tokenizer: Any  # its Config
    backbone: BackboneConfig  # its config
    causal: bool = False  # tokens see only what came before
    first_position: int = 0  # of the first text token in the position table
    pad_id: int | None = None  # ids that positions do not count; None: all count
    skip_padding: bool = False  # positions do not count what the mask hides, so that padding on the left moves nothing
    masked: bool = True  # it takes a mask; if not, rows are filled up with fill_id
    fill_id: int = 0  # the id that fills up rows without a mask


@dataclass(frozen=True)
class Output:
    """One output of a checkpoint. It is left out if its start, or one of its `needs`, was not computed."""

    name: str  # under which the model returns it
    tower: str  # whose hidden states it begins with
    stages: tuple[Stage, ...] = ()  # applied in turn
    start: str | tuple[str, ...] = "hidden"  # "hidden", or an earlier output, or several of which the mean is taken
    needs: tuple[str, ...] = ()  # outputs that must be there besides


@dataclass(frozen=True)
class Description:
    """The whole of a checkpoint."""

    towers: tuple[Tower, ...]  # in the order of the inputs
    outputs: tuple[Output, ...]  # in the order in which they are computed
    rows: tuple[Row, ...]  # its tensors ↔ our parameters
    leftovers: tuple[str, ...] = ()  # regular expressions of whole names: tensors that are known, and rightly go unread


ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
GATED = {"silu": "swiglu", "gelu_tanh": "geglu", "gelu": "geglu_erf"}


@dataclass(frozen=True)
class Fields:
    """config.json, or a part of it, read with the defaults of its family."""

    values: Mapping[str, Any]  # as JSON has them
    where: str  # their place, for error lines

    def get(self, key: str, default: Any) -> Any:
        """A field of the type of its default. Raises UsageError for another type."""
        value = self.values.get(key)
        if value is None:
            return default
        number = isinstance(default, float) and type(value) is int
        truth = isinstance(value, bool) and not isinstance(default, bool)  # Python takes it for a number
        if default is not None and not number and (truth or not isinstance(value, type(default))):
            raise UsageError(f"{self.where}: {key}={shown(value)} should be a {type(default).__name__}")
        check_number(self.where, key, value)
        return float(value) if number else value

    def raw(self, key: str) -> Any:
        """A field as it is, None if missing."""
        return self.values.get(key)

    def need(self, key: str) -> int:
        """A count of at least one without which there is no model."""
        value: Any = self.values.get(key)
        if not is_count(value, least=1) or ("layer" in key and value > DEEPEST):
            raise UsageError(f"{self.where}: {key} should be a whole number above 0, but is {shown(value)}")
        return value

    def sizes(
        self,
        width: str = "hidden_size",
        depth: str = "num_hidden_layers",
        heads: str = "num_attention_heads",
        mlp_width: str = "intermediate_size",
    ) -> dict[str, Any]:
        """The four sizes of a backbone, each from the key that a family has for it."""
        keys = dict(width=width, depth=depth, heads=heads, mlp_width=mlp_width)
        return {name: self.need(key) for name, key in keys.items()}

    def count(self, key: str, default: int) -> int:
        """A count of at least one."""
        return default if self.values.get(key) is None else self.need(key)

    def counts(self, key: str, default: list[int]) -> list[int]:
        """Several."""
        value = self.get(key, default)
        if not value or not all(is_count(each, least=1) for each in value):
            raise UsageError(f"{self.where}: {key}={shown(value)} should be a list of whole numbers above 0")
        return value

    def pair(self, key: str, default: int) -> tuple[int, int]:
        """One size for both directions, or (height, width)."""
        value = self.values.get(key, default)
        both = value if isinstance(value, list | tuple) else (value, value)
        if len(both) != 2 or not all(is_count(each, least=1) for each in both):
            raise UsageError(f"{self.where}: {key}={shown(value)} should be a whole number above 0, or two")
        return both[0], both[1]

    def part(self, key: str) -> Fields:
        """A nested configuration."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise UsageError(f"{self.where}: {key} should be an object, but is {value!r}")
        return Fields(value, f"{self.where}: {key}")

    def activation(self, key: str, default: str) -> str:
        """Our name of an activation. Raises UsageError for one that we have not."""
        name = self.get(key, default)
        if name not in ACTIVATION_NAMES:
            close = difflib.get_close_matches(name, ACTIVATION_NAMES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(ACTIVATION_NAMES)}"
            raise UsageError(f"{self.where}: {key}={name!r} is an unknown activation; {hint}")
        return ACTIVATION_NAMES[name]

    def head(self, kind: str) -> bool:
        """True if the file says that it holds a model with this head: `architectures` names a class that ends so."""
        return any(str(name).endswith(kind) for name in self.get("architectures", []))

    def gated(self, key: str, default: str) -> str:
        """Our name of a gated MLP with this activation."""
        name = self.activation(key, default)
        if name not in GATED:
            raise UsageError(
                f"{self.where}: {key}={self.get(key, default)!r} cannot gate an MLP; {', '.join(GATED)} can"
            )
        return GATED[name]

    def only(self, key: str, *allowed: Any) -> None:
        """Raises UsageError unless the field is one of `allowed` (or missing): what we would otherwise get wrong."""
        if key in self.values and self.values[key] not in allowed:
            known = " or ".join(repr(value) for value in allowed)
            raise UsageError(f"{self.where}: {key}={self.values[key]!r} is not supported, only {known}")


@dataclass(frozen=True)
class Names:
    """The tensors that a checkpoint has: whether one is there decides which heads are."""

    names: Mapping[str, tuple[int, ...]]  # and their shapes

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self.names[name]

    def prefix(self, *prefixes: str) -> str:
        """The first of `prefixes` that tensors bear (a model with heads), "" if they bear none (the bare model)."""
        return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in self.names)), "")
