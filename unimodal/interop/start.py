"""Training that starts from published weights: which parameters of a model a checkpoint fills, and filling them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from unimodal.backbone import BackboneConfig
from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Output, Tower
from unimodal.interop.files import Source, open_source
from unimodal.interop.head_names import head_names
from unimodal.interop.load import describe, read_leaf, resolve
from unimodal.interop.match import Matched, Piece, check_tied, check_unread, match, named_leaves
from unimodal.interop.numbers import making
from unimodal.interop.preparation import Preparation, published
from unimodal.interop.pretrained import Origin, Pretrained
from unimodal.interop.recipes import check_backbone, check_tokenizer, tokenizer_config
from unimodal.interop.stages import Decoded
from unimodal.sharding import path_name

Tokenizers = Mapping[str, tuple[str, Any]]
Backbones = Mapping[str, BackboneConfig]


@dataclass(frozen=True)
class Start:
    """Parameters of a model that a published checkpoint fills."""

    source: Source  # the files
    matched: Matched  # its tensors and the parts of its own model
    loaded: Mapping[str, Sequence[Piece]]  # our parameter → the pieces that fill it
    fresh: tuple[str, ...]  # our others, which stay as initialised
    unused: tuple[str, ...]  # tensors that nothing of ours takes
    before: Mapping[str, int]  # rows of a table there that come before ours
    inputs: tuple[str, ...] = ()  # lines on what the weights are fed with, and on copies

    def report(self) -> str:
        """Each parameter and tensor by name, then `inputs`."""
        width = max(map(len, (*self.loaded, *self.fresh)), default=0)
        lines = [
            f"starting from {self.source.directory}: {len(self.loaded)} parameters loaded, {len(self.fresh)} fresh; "
            f"{len(self.unused)} tensors unused"
        ]
        for name, pieces in self.loaded.items():
            theirs = ", ".join(dict.fromkeys(piece.row.source for piece in pieces))
            lines.append(f"  loaded  {name:<{width}}  from {theirs}")
        lines += [f"  fresh   {name}" for name in self.fresh]
        return "\n".join([*lines, *(f"  unused  {name}" for name in self.unused), *self.inputs])

    def fill(self, parameters: Any) -> Any:
        """`parameters` with what is loaded in the place of what was initialised: same shapes, dtypes and shards.

        One at a time: the array that was in its place is deleted. Raises UsageError for two tensors that should be
        equal but are not, or a file that is gone.
        """
        check_tied(self.matched, self.source)
        found, structure = jax.tree_util.tree_flatten_with_path(parameters)
        names = [path_name(path) for path, _ in found]
        assert set(self.loaded) <= set(names)
        return structure.unflatten(
            self._read(name, leaf) if name in self.loaded else leaf
            for name, (_, leaf) in zip(names, found, strict=True)
        )

    def _read(self, name: str, old: jax.Array) -> jax.Array:
        pieces, before, dtype = self.loaded[name], self.before.get(name, 0), np.dtype(old.dtype)
        shape, where = (old.shape[0] + before, *old.shape[1:]) if before else old.shape, old.sharding
        # Free the initialised array first: both together might not fit.
        old.delete()
        if not before:
            return read_leaf(shape, dtype, where, pieces, self.source)
        return jax.device_put(read_leaf(shape, dtype, None, pieces, self.source)[before:], where)


def start_from(
    path: str | Path, model: Any, tokenizers: Tokenizers, backbones: Backbones, *, skip: str | None = None
) -> Start:
    """Match a checkpoint with a model (or its shapes) made of `tokenizers` and `backbones`, as `assemble` takes them.

    Each tower of the checkpoint fills the tokenizer of its kind and the backbone behind that; heads are filled where
    they are of the same make and size. skip: a regular expression; parameters whose path it is found in start afresh.
    Nothing but headers is read. Raises UsageError where the model's parts are not the checkpoint's, naming the field.
    """
    source = open_source(resolve(path))
    description = describe(source)
    ours = named_leaves(nnx.state(model, nnx.Param))
    left_out = _left_out(skip, list(ours))
    # Find out which part of ours each tower fills before shapes are compared, so that errors name a field of the config.
    places = _places(description.towers, tokenizers, backbones, source.directory)
    for place in places:
        tower, tokenizer, backbone = place.tower, place.tokenizer, place.backbone
        if not _all_under(f"backbones.{backbone}.", ours, left_out):
            check_backbone(backbone, backbones[backbone], tower.backbone, source.directory)
        if tokenizer is not None and not _all_under(f"tokenizers.{tokenizer}.", ours, left_out):
            config = tokenizers[tokenizer][1]
            check_tokenizer(tokenizer, config, tokenizer_config(tower), source.directory, skip)
    for name, config in _decoders(description, backbones).items():
        if not _all_under(f"backbones.{name}.", ours, left_out):
            check_backbone(name, backbones[name], config, source.directory)
    theirs = _abstract(_stacked_as_ours(description, places, backbones), source)
    abstract = named_leaves(theirs)
    matched = match(description.rows, abstract, source)
    # A head that we cannot read is no loss here, and is reported; something in the layers that we cannot read is.
    layers = sorted({re.escape(row.source.split("{layer}")[0]) for row in description.rows if "{layer}" in row.source})
    check_unread(matched, description.leftovers, source, ignore=f"^(?!{'|'.join(layers)})")
    names = _names(places, description, model, theirs)
    loaded, before = {}, _before(places)
    for their_name, pieces in matched.pieces.items():
        name, shape = _ours(their_name, names), abstract[their_name].shape
        if name not in ours or name in left_out:
            continue
        if name in before:
            shape = (shape[0] - before[name], *shape[1:])
        if shape == ours[name].shape:
            loaded[name] = pieces
        # Let a head of another size start afresh: other classes are what fine-tuning is for.
        elif not name.startswith("heads."):
            raise UsageError(f"{name} has the shape {ours[name].shape}, but {shape} in {source.directory}")
    if not loaded:
        raise UsageError(f"nothing of {source.directory} goes into this model (init_skip={skip!r})")
    return Start(
        source,
        matched,
        {name: loaded[name] for name in ours if name in loaded},
        tuple(name for name in ours if name not in loaded),
        _unused(source, matched, loaded),
        before,
    )


def preparation_of(
    path: str | Path, tokenizers: Tokenizers, backbones: Backbones, *, skip: str | None = None
) -> Preparation:
    """Find how the checkpoint's inputs were prepared, for those of `tokenizers` that it fills. A vocabulary whose table of embeddings is
    skipped does not come along. Raises UsageError as `start_from` does."""
    source = open_source(resolve(path))
    places = _places(describe(source).towers, tokenizers, backbones, source.directory)
    filled = {
        place.tokenizer: place.tower
        for place in places
        if place.tokenizer is not None
        and not (place.tower.input == "text" and _found(skip, [f"tokenizers.{place.tokenizer}.table.table"]))
    }
    sizes = {name: config for name, (_, config) in tokenizers.items()}
    return published(source.directory, source.config, filled, sizes)


@dataclass(frozen=True)
class _Place:
    """The place of a checkpoint's tower: our backbone, and our tokenizer if we have one of its kind."""

    tower: Tower  # of the checkpoint
    tokenizer: str | None  # of ours; None: there is none of its kind
    backbone: str  # of ours


def _places(towers: Sequence[Tower], tokenizers: Tokenizers, backbones: Backbones, directory: Path) -> list[_Place]:
    found = []
    for tower in towers:
        same_kind = [name for name, (kind, _) in tokenizers.items() if kind == tower.kind]
        if len(same_kind) > 1 and tower.name not in same_kind:
            raise UsageError(
                f"tokenizers {' and '.join(same_kind)} are both of kind {tower.kind}; name the one that {directory} is to "
                f"fill {tower.name!r}"
            )
        name = None if not same_kind else tower.name if tower.name in same_kind else same_kind[0]
        behind = tower.name if name is None else name
        # Leave a tower out where nothing says which backbone it could fill.
        if name is None and (len(towers) > 1 or (behind not in backbones and len(backbones) > 1)):
            continue
        # As `assemble` has it: the backbone of that name, or else the first.
        found.append(_Place(tower, name, behind if behind in backbones else next(iter(backbones))))
    if not found:
        kinds = " and ".join(tower.kind for tower in towers)
        raise UsageError(f"{directory} reads {kinds}, for which the config has no tokenizer")
    for place in found:
        rivals = " and ".join(other.tower.name for other in found if other.backbone == place.backbone)
        if rivals != place.tower.name:
            raise UsageError(
                f"the {rivals} towers of {directory} would both fill backbones.{place.backbone}; name two backbones {rivals}"
            )
    return found


def _left_out(skip: str | None, names: Sequence[str]) -> set[str]:
    """Our parameters that are to start afresh. Raises UsageError if there are none although `skip` is given."""
    if skip is None:
        return set()
    if not (found := _found(skip, names)):
        raise UsageError(f"init_skip={skip!r} is found in no parameter's path; they look like {names[0]}")
    return found


def _found(skip: str | None, names: Iterable[str]) -> set[str]:
    try:
        return {name for name in names if skip is not None and re.search(skip, name)}
    except re.error as error:
        raise UsageError(f"init_skip={skip!r} is no regular expression: {error}") from error


def _all_under(prefix: str, names: Iterable[str], left_out: set[str]) -> bool:
    return all(name in left_out for name in names if name.startswith(prefix))


def _stacked_as_ours(description: Description, places: Sequence[_Place], backbones: Backbones) -> Description:
    """The checkpoint's model with its layers stacked or not as ours are, so that its parameters are ours by other names."""
    scan = {place.tower.name: backbones[place.backbone].scan for place in places}
    towers = (
        replace(tower, backbone=replace(tower.backbone, scan=scan.get(tower.name, True)))
        for tower in description.towers
    )
    return replace(
        description, towers=tuple(towers), outputs=tuple(_scanned(o, backbones) for o in description.outputs)
    )


def _scanned(output: Output, backbones: Backbones) -> Output:
    """An output whose decoder, if it has one, stacks its layers as ours of that name does."""
    stages = tuple(
        replace(stage, config=replace(stage.config, scan=backbones[stage.name].scan))
        if isinstance(stage, Decoded) and stage.name in backbones
        else stage
        for stage in output.stages
    )
    return replace(output, stages=stages)


def _decoders(description: Description, backbones: Backbones) -> dict[str, BackboneConfig]:
    """Backbones of the checkpoint that are no tower's, for which ours has one of the name."""
    stages = [s for output in description.outputs for s in output.stages if isinstance(s, Decoded)]
    return {stage.name: stage.config for stage in stages if stage.name in backbones}


def _abstract(description: Description, source: Source) -> Pretrained:
    origin = Origin(str(source.directory), "")
    with making(f"{origin.directory}/config.json"):
        return jax.eval_shape(lambda: Pretrained(description, origin, rngs=nnx.Rngs(0)))


def _names(places: Sequence[_Place], description: Description, model: Any, theirs: Pretrained) -> dict[str, str]:
    """Prefixes of the checkpoint's parameters → ours."""
    names = head_names(description.outputs, model, theirs.heads)
    names |= {f"heads.{name}": f"backbones.{name}" for name in _decoders(description, model.backbones)}
    for place in places:
        names[f"backbones.{place.tower.name}"] = f"backbones.{place.backbone}"
        if place.tokenizer is not None:
            names[f"tokenizers.{place.tower.name}"] = f"tokenizers.{place.tokenizer}"
    return names


def _before(places: Sequence[_Place]) -> dict[str, int]:
    """Our position tables → how many rows the checkpoint's has before its first position."""
    return {
        f"tokenizers.{place.tokenizer}.position_table.table": place.tower.first_position
        for place in places
        if place.tower.first_position
    }


def _unused(source: Source, matched: Matched, loaded: Mapping[str, Sequence[Piece]]) -> tuple[str, ...]:
    """Tensors that fill nothing of ours; the second copies of those that do are used as well."""
    pieces = [piece for group in loaded.values() for piece in group]
    filled = {piece.leaf for piece in pieces}
    used = {piece.source for piece in pieces} | {
        second.source for second, first in matched.tied if first.leaf in filled
    }
    return tuple(name for name in source.tensors if name not in used)


def _ours(name: str, names: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in names if name.startswith(f"{prefix}.")), None)
    return "" if prefix is None else names[prefix] + name.removeprefix(prefix)
