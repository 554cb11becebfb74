"""Configs for a checkpoint: what one must say so that the weights are right for it, and where one says otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from unimodal.backbone import BackboneConfig
from unimodal.errors import UsageError
from unimodal.interop.describe import Output, Tower
from unimodal.interop.files import open_source
from unimodal.interop.load import describe, resolve
from unimodal.interop.stages import Headed

# How it is run and stored, and how it would begin; none of it changes what given weights mean.
_FREE = (
    "dropout",
    "stochastic_depth",
    "scan",
    "remat",
    "dtype",
    "param_dtype",
    "attention",
    "quantization",
    "experts",  # which begin as copies of the shared MLP
    "init_std",
    "resize",
    "antialias",
)
# Fields that one parameter alone depends on: they may differ where that parameter starts afresh.
_ONLY = {
    "vocabulary": "table.table",
    "max_length": "position_table.table",
    "image_size": "position_table.table",
    "types": "type_table.table",
}


@dataclass(frozen=True)
class Recipe:
    """The parts of a model that a checkpoint fills, as `unimodal.model.assemble` takes them."""

    directory: Path  # of the checkpoint
    tokenizers: Mapping[str, tuple[str, Any]]  # name → kind and its Config
    backbones: Mapping[str, BackboneConfig]  # by name
    towers: tuple[Tower, ...]  # as its family describes them
    outputs: tuple[Output, ...]  # as its family describes them

    @property
    def heads(self) -> dict[str, Any]:
        """The checkpoint's heads by name, as stages whose fields are those of the head."""
        return {s.name: s for output in self.outputs for s in output.stages if isinstance(s, Headed)}


def recipe(path: str | Path) -> Recipe:
    """Write the config that a checkpoint (a directory, or a hub name) asks for. Only headers are read.

    Parameters and computation are float32 in it, whatever the file holds. Raises UsageError as `load_huggingface` does.
    """
    source = open_source(resolve(path))
    description = describe(source)
    towers = description.towers
    return Recipe(
        source.directory,
        {t.name: (t.kind, tokenizer_config(t)) for t in towers},
        {t.name: t.backbone for t in towers},
        towers,
        description.outputs,
    )


def tokenizer_config(tower: Tower) -> Any:
    """A tower's tokenizer for tokens that count from 0: without the places before its first position."""
    config = tower.tokenizer
    if not tower.first_position or config.max_length is None:
        return config
    return replace(config, max_length=config.max_length - tower.first_position)


def check_backbone(name: str, ours: BackboneConfig, theirs: BackboneConfig, directory: Path) -> None:
    """Raises UsageError, naming the first field, if weights of the backbone `theirs` would mean something else in ours."""
    _check(f"backbones.{name}", effective(ours), effective(theirs), directory)


def check_tokenizer(name: str, ours: Any, theirs: Any, directory: Path, skip: str | None) -> None:
    """The same for a tokenizer; fields that only a skipped parameter depends on may differ."""
    where, a, b = f"tokenizers.{name}", effective(ours), effective(theirs)
    if skip is not None:
        skipped = {field for field, parameter in _ONLY.items() if re.search(skip, f"{where}.{parameter}")}
        a, b = ({k: v for k, v in values.items() if k not in skipped} for values in (a, b))
    _check(where, a, b, directory)


def effective(config: Any) -> dict[str, Any]:
    """The fields that matter, with what an unset one comes to."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in _FREE}
    if isinstance(config, BackboneConfig):
        values |= dict(kv_heads=config.G, head_size=config.K, mlp_width=config.M)
        values["norm_bias"] = config.norm_bias and config.norm == "layer"  # others have none
        values["layer_scale"] = config.layer_scale is not None  # its initial value is read over
    if "stride" in values and "patch" in values:
        values["stride"] = values["stride"] or (values["patch"], values["patch"])
    return values


def _check(where: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], directory: Path) -> None:
    field = next((name for name, value in ours.items() if value != theirs[name]), None)
    if field is None:
        return
    value = theirs[field]
    shown = f'"{value}"' if isinstance(value, tuple) else value
    afresh = ""
    if field in _ONLY and where.startswith("tokenizers."):
        afresh = f", or --config.init_skip={where}.{_ONLY[field].split('.')[0]} to start that table afresh"
    raise UsageError(
        f"{where}.{field} is {ours[field]}, but {value} in {directory}: set --config.{where}.{field}={shown}{afresh}; "
        f"configs/finetune.py:{directory} sets all such fields"
    )
