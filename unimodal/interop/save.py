"""Writing a model back as the checkpoint it came from: the same names, shapes and files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unimodal.errors import UsageError
from unimodal.interop.files import INDEX, SINGLE, Source, open_source, small_files, write_file
from unimodal.interop.match import Piece, expand, named_leaves
from unimodal.interop.pretrained import Pretrained


def save_huggingface(model: Pretrained, directory: str | Path) -> None:
    """Write the model as a Hugging Face directory: its tensors under their published names, config.json and small files.

    Tensors that went unread at loading are copied from where the model came from. Parameters are gathered one at a
    time. Raises UsageError if that origin is needed and gone, the directory cannot be written, or the model sees as
    config.json does not say, or the directory holds other weights.
    """
    _refuse_other_windows(model)
    target, origin = Path(directory), model.origin
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write in {target}: {error.strerror}") from error
    # Open where the model came from: tensors that it never read are copied from there.
    old = _origin(origin.directory, needed=bool(origin.unused))
    if old is None or target.resolve() != old.directory.resolve():
        _refuse_other_weights(target, [file for file, _ in origin.files])
    groups, leaves = pieces_by_source(model), named_leaves(model)
    shapes = dict(origin.shapes)
    for file, names in origin.files:
        described = {
            name: (
                shapes[name],
                np.dtype(leaves[groups[name][0].leaf].dtype) if name in groups else _old(old, name).dtype,
            )
            for name in names
        }
        write_file(target / file, described, _values(names, groups, leaves, shapes, old))
    # Take vocabularies and preprocessing along, so that the copy can be used by itself.
    if old is not None and target.resolve() != old.directory.resolve():
        for path in small_files(old.directory):
            (target / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(old.directory / path, target / path)
    elif old is None and len(origin.files) > 1:
        raise UsageError(f"{origin.directory}, whose {INDEX} is to be written again, is gone")
    (target / "config.json").write_text(origin.config, encoding="utf-8")


def _refuse_other_windows(model: Pretrained) -> None:
    """config.json is written as it was read; weights that have been trained to see otherwise would be misread."""
    for tower in model.description.towers:
        ours, theirs = (
            f"window={c.window}, global_tokens={c.global_tokens}"
            + ("" if c.window_layers is None else f", window_layers={c.window_layers}")
            for c in (model.backbones[tower.name].config, tower.backbone)
        )
        if ours != theirs:
            raise UsageError(f"the backbone {tower.name!r} has {ours}, but its config.json says {theirs}: not saved")


def _refuse_other_weights(target: Path, files: Sequence[str]) -> None:
    """Weights of a checkpoint in other files, or the index of its files, would be read in the place of these."""
    own = {*files} if files == [SINGLE] else {*files, INDEX}
    if others := sorted(
        path.name for path in (*target.glob("*.safetensors"), target / INDEX) if path.exists() and path.name not in own
    ):
        raise UsageError(
            f"{target} holds {others[0]} of another checkpoint, which would be read in its place; give a new directory"
        )


def to_tensors(model: Pretrained) -> dict[str, np.ndarray]:
    """A model (or anything of its shape, such as its gradients) by the published names, on the host.

    Tensors that no parameter of ours reads are not among them.
    """
    groups, leaves, shapes = pieces_by_source(model), named_leaves(model), dict(model.origin.shapes)
    return {name: assemble(groups[name], leaves, shapes[name]) for name in shapes if name in groups}


def pieces_by_source(model: Pretrained) -> dict[str, list[Piece]]:
    """Source tensor → the pieces of ours that make it, in order."""
    groups: dict[str, list[Piece]] = {}
    known = {name for name, _ in model.origin.shapes}
    for piece in expand(model.description.rows, named_leaves(model)):
        if piece.source in known:
            groups.setdefault(piece.source, []).append(piece)
    return groups


def assemble(pieces: Sequence[Piece], leaves: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """One source tensor from ours."""
    parts = sorted(pieces, key=lambda piece: piece.row.part)
    values = [piece.row.write(_take(piece, leaves[piece.leaf]), shape) for piece in parts]
    return values[0] if len(values) == 1 else np.concatenate(values, axis=parts[0].row.axis)


def _take(piece: Piece, leaf: jax.Array) -> np.ndarray:
    """The part of a parameter that a piece is, brought to the host; one layer of a stack, not all."""
    # Slice on the device, so that only one layer comes to the host at a time.
    value = leaf if piece.layer is None else leaf[piece.layer]
    if piece.row.rows is not None:
        value = value[slice(*piece.row.rows)]
    return np.asarray(value)


def _values(
    names: Sequence[str],
    groups: Mapping[str, list[Piece]],
    leaves: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    old: Source | None,
) -> Iterator[np.ndarray]:
    for name in names:
        yield assemble(groups[name], leaves, shapes[name]) if name in groups else _old(old, name).read()


def _origin(directory: str, *, needed: bool) -> Source | None:
    try:
        return open_source(Path(directory))
    except UsageError as error:
        if needed:
            raise UsageError(f"the model keeps unread tensors where it came from, and now: {error}") from error
        return None


def _old(old: Source | None, name: str) -> Any:
    assert old is not None  # `_origin` has seen to it
    if name not in old.tensors:
        raise UsageError(f"{old.directory} no longer has the tensor {name}, which the model left unread there")
    return old.tensors[name]
