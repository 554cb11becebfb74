"""The files of a published checkpoint, written from a model of ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from unimodal.errors import UsageError
from unimodal.interop.export.matching import Exported
from unimodal.interop.files import SINGLE, write_file
from unimodal.interop.match import Piece, expand, named_leaves
from unimodal.interop.save import assemble
from unimodal.interop.table import TRANSPOSE

# Tensors that stand with leading dimensions of one there, by how their names end.
ONE_BEFORE = ("cls_token", "position_embeddings", "distillation_token", "decoder_pos_embed", "decoder.mask_token")
TWO_BEFORE = ("parametrizations.weight.original0", "head.probe")


def write_checkpoint(exported: Exported, model: Any, directory: Path) -> tuple[str, ...]:
    """Write config.json and model.safetensors; returns the tensors' names. Parameters are gathered one at a time.

    Raises UsageError if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write in {directory}: {error.strerror}") from error
    ours = named_leaves(nnx.state(model, nnx.Param))
    leaves = {name: ours[exported.names[name]] for name in named_leaves(exported.abstract)}
    groups: dict[str, list[Piece]] = {}
    for piece in expand(exported.description.rows, leaves):
        if not piece.row.tied:  # a second copy, which config.json says is the first
            groups.setdefault(piece.source, []).append(piece)
    shapes = {name: tensor_shape(pieces, exported) for name, pieces in groups.items()}
    dtypes = {name: np.dtype(leaves[pieces[0].leaf].dtype) for name, pieces in groups.items()}
    described = {name: (shapes[name], dtypes[name]) for name in groups}
    values = (assemble(groups[name], leaves, shapes[name]) for name in groups)
    write_file(directory / SINGLE, described, values)
    dtype = str(next(iter(dtypes.values())))
    text = json.dumps({**exported.offer.config, "torch_dtype": dtype}, indent=2, ensure_ascii=False)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    return tuple(groups)


def tensor_shape(pieces: list[Piece], exported: Exported) -> tuple[int, ...]:
    """The published shape of a tensor that is made of these pieces of ours."""
    piece = pieces[0]
    row, count = piece.row, piece.row.part[1]
    shape: tuple[Any, ...] = piece.shape
    if row.source.endswith(ONE_BEFORE):
        return (1, *shape)
    if row.source.endswith(TWO_BEFORE):
        return (1, 1, *shape)
    if row.source.endswith("quantizer.codevectors"):  # ours [groups, codes, size]
        return (1, shape[0] * shape[1], shape[2])
    if row.source in ("logit_scale", "logit_bias"):
        return (1,) if exported.offer.family == "siglip" else ()
    if row.source.endswith("class_embedding"):
        return shape[-1:]
    if row.permute is not None and len(row.permute) == len(shape) and len(shape) > 2:
        return tuple(shape[row.permute.index(i)] for i in range(len(shape)))  # a convolution
    if row.permute is not None and len(row.permute) == 4:  # patches: ours [rows·columns·channels, width]
        config = next(t.tokenizer for t in exported.description.towers if row.ours.startswith(f"tokenizers.{t.name}."))
        return (shape[len(shape) - 1], config.channels, config.patch, config.patch)
    if row.ours.endswith(".kernel"):
        inner = 2 if row.ours.endswith("attention.output.kernel") else 1
        inputs, outputs = math.prod(shape[:inner]), math.prod(shape[inner:])
        if row.permute == TRANSPOSE:
            return (outputs * count, inputs)
        return (inputs, outputs * count)
    return (math.prod(shape) * count,) if row.ours.endswith(".bias") else tuple(shape)
