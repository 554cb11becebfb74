"""Rows and tensors against the parameters of a model: what fills what, checked before anything is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from unimodal.errors import UsageError
from unimodal.interop.files import Source, Tensor
from unimodal.interop.table import Row, fits
from unimodal.sharding import path_name


@dataclass(frozen=True)
class Piece:
    """One source tensor (by name) and the part of one of our leaves that it fills."""

    source: str  # the tensor's name
    leaf: str  # the parameter's dotted name
    row: Row  # of the family's table
    layer: int | None  # which layer of a stacked parameter; None: the parameter is not stacked
    shape: tuple[int, ...]  # of the part

    def region(self, leaf_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The part as (start, stop) of each of the leaf's dimensions."""
        whole = [(0, size) for size in leaf_shape]
        if self.layer is not None:
            whole[0] = (self.layer, self.layer + 1)
        if self.row.rows is not None:
            whole[0 if self.layer is None else 1] = self.row.rows
        return tuple(whole)


def named_leaves(model: Any) -> dict[str, Any]:
    """Parameters by dotted path, in the tree's own order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]}


def expand(rows: Sequence[Row], leaves: Mapping[str, Any]) -> list[Piece]:
    """One piece per row, or per row and layer where its source name has `{layer}`.

    A stacked parameter has the layers as its first dimension; an unstacked backbone has them in its path, after
    `layers.`, and both are found.
    """
    pieces = []
    for row in rows:
        if "{layer}" not in row.source:
            pieces.append(_piece(row, row.ours, row.source, None, leaves))
        elif row.ours in leaves:
            pieces += [
                _piece(row, row.ours, row.source.replace("{layer}", str(i)), i, leaves)
                for i in range(row.first, leaves[row.ours].shape[0])
            ]
        else:
            # Look the layers up in the paths: an unrolled backbone may lack some, and its table does not know which.
            before, after = row.ours.split(".layers.")
            pattern = re.compile(rf"{re.escape(before)}\.layers\.(\d+)\.{re.escape(after)}")
            numbers = [
                n for n in sorted(int(m.group(1)) for m in map(pattern.fullmatch, leaves) if m) if n >= row.first
            ]
            assert numbers, f"the table names {row.ours}, which the model has not"
            for i in numbers:
                ours = f"{before}.layers.{i}.{after}"
                pieces.append(_piece(row, ours, row.source.replace("{layer}", str(i)), None, leaves))
    return pieces


def _piece(row: Row, ours: str, source: str, layer: int | None, leaves: Mapping[str, Any]) -> Piece:
    assert ours in leaves, f"the table names {ours}, which the model has not"
    shape = tuple(leaves[ours].shape)[0 if layer is None else 1 :]
    if row.rows is not None:
        shape = (row.rows[1] - row.rows[0], *shape[1:])
    return Piece(source, ours, row, layer, shape)


@dataclass(frozen=True)
class Matched:
    """Tensors of a checkpoint matched with parameters of a model."""

    pieces: Mapping[str, list[Piece]]  # by parameter
    tied: list[tuple[Piece, Piece]]  # second copies, to be compared
    fresh: list[str]  # parameters without a tensor
    unused: list[str]  # tensors without a parameter


def match(rows: Sequence[Row], leaves: Mapping[str, Any], source: Source) -> Matched:
    """Match a table with a checkpoint. Raises UsageError for a missing tensor or one of an unexpected shape."""
    pieces: dict[str, list[Piece]] = {}
    second = []
    for piece in expand(rows, leaves):
        if piece.source not in source.tensors:
            # Begin afresh what may be missing; a second copy is not needed to fill anything.
            if piece.row.optional or piece.row.tied:
                continue
            raise UsageError(f"{_where(source)} lacks the tensor {piece.source}, which {piece.leaf} is read from")
        check_shape(piece, source.tensors[piece.source])
        if piece.row.tied:
            second.append(piece)
        else:
            pieces.setdefault(piece.leaf, []).append(piece)
    used = {p.source for group in pieces.values() for p in group} | {p.source for p in second}
    return Matched(
        pieces,
        [(piece, pieces[piece.leaf][0]) for piece in second],
        [name for name in leaves if name not in pieces],
        [name for name in source.tensors if name not in used],
    )


# Constants that older releases saved beside the weights: 0, 1, 2, …, and the frequencies of rotary positions.
CONSTANTS = (r"(.*\.)?position_ids", r"(.*\.)?rotary_emb\.inv_freq")


def check_unread(matched: Matched, leftovers: Sequence[str], source: Source, ignore: str | None = None) -> None:
    """Raises UsageError, naming the first, if tensors go unread that are neither known leftovers nor to be ignored.

    leftovers: regular expressions of whole names; ignore: a regular expression that is found in a name.
    """
    try:
        known = re.compile("|".join(f"(?:{pattern})" for pattern in (*CONSTANTS, *leftovers)))
        chosen = None if ignore is None else re.compile(ignore)
    except re.error as error:
        raise UsageError(f"ignore={ignore!r} is no regular expression: {error}") from error
    # Refuse what nobody can place: a model that ignores a tensor computes something else without a word.
    unread = [n for n in matched.unused if not known.fullmatch(n) and not (chosen is not None and chosen.search(n))]
    if not unread:
        return
    more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
    raise UsageError(
        f"{source.tensors[unread[0]].file} holds {unread[0]}{more}, which nothing here reads, so the model would compute "
        f"something else; if it would not, load_huggingface(…, ignore={re.escape(unread[0])!r}) leaves it out"
    )


def check_shape(piece: Piece, tensor: Tensor) -> None:
    """Raises UsageError, naming file and tensor, unless the tensor can be this piece."""
    found = piece.row.read_shape(tensor.shape)
    if found is None or not fits(found, piece.shape):
        raise UsageError(
            f"{tensor.file}: tensor {tensor.name} has the shape {tensor.shape}, which does not fit the {piece.shape} that "
            f"config.json asks for ({piece.leaf})"
        )


def check_tied(matched: Matched, source: Source) -> None:
    """Raises UsageError if a second copy of a tensor, which we keep once, is not equal to the first."""
    for second, first in matched.tied:
        a, b = source.tensors[second.source], source.tensors[first.source]
        # Compare bits, as NaN is not equal to itself.
        if a.shape != b.shape or not np.array_equal(a.read().view(np.uint8), b.read().view(np.uint8)):
            raise UsageError(
                f"{a.file}: tensor {a.name} differs from {b.name}, of which it should be a copy; "
                + ("set tie_word_embeddings to false in config.json" if a.name.endswith("weight") else "fetch it again")
            )


def _where(source: Source) -> str:
    files = list(source.files())
    return str(source.directory / files[0]) if len(files) == 1 else f"{source.directory} ({len(files)} files)"
