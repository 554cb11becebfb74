"""Reading a checkpoint into the one backbone: header, names matched, then one tensor at a time into its shards."""

from __future__ import annotations

import importlib
import logging
import math
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

import unimodal.interop.families
from unimodal.configuration import nearest
from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families._refused import REFUSED
from unimodal.interop.files import Source, open_source
from unimodal.interop.match import Matched, Piece, check_tied, check_unread, match, named_leaves
from unimodal.interop.numbers import check_depth, making
from unimodal.interop.pretrained import Origin, Pretrained
from unimodal.sharding import shardings

logger = logging.getLogger(__name__)


def load_huggingface(
    path: str | Path, *, mesh: Mesh | None = None, dtype: DTypeLike | None = None, ignore: str | None = None
) -> Pretrained:
    """The checkpoint in a local directory (or, with `huggingface_hub` installed, of a hub name) as a callable model.

    mesh: every parameter is read straight into its shards on it; None: the default device, whole. dtype: of parameters
    and computation; None: as in the file. ignore: a regular expression; tensors in whose name it is found may go unread.
    `model.origin.fresh` and `.unused` name what the file did not fill and what of it went unread. Raises UsageError,
    before any weight is read, for a directory that is no checkpoint, a truncated or pickled file, a missing tensor, an
    unexpected shape, a tensor that nothing reads, an unknown model_type or activation.
    """
    prepared = prepare(resolve(path), dtype, ignore)
    return prepared.read(None if mesh is None else mesh)


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that has been checked but not read: the model's shapes, and what fills them."""

    source: Source  # the files
    description: Description  # by its family
    abstract: Pretrained  # the model's shapes
    matched: Matched  # which tensor fills which parameter
    dtype: np.dtype[Any] | None  # that parameters are read as; None: as stored

    def read(self, mesh: Mesh | None) -> Pretrained:
        """All parameters, one tensor in memory at a time."""
        check_tied(self.matched, self.source)
        leaves = named_leaves(self.abstract)
        # Ask for the shardings of all parameters at once: two on one mesh axis are found before anything is read.
        where: Mapping[str, Any] = {} if mesh is None else named_leaves(shardings(self.abstract, mesh))
        fresh = self._fresh(leaves, where)
        values = [
            self.leaf(name, leaf, where.get(name)) if name in self.matched.pieces else fresh[name]
            for name, leaf in leaves.items()
        ]
        logger.info("read %d tensors of %s", sum(map(len, self.matched.pieces.values())), self.source.directory)
        for what, names in (("fresh", self.matched.fresh), ("unused", self.matched.unused)):
            if names:
                logger.info("%s: %s", what, ", ".join(names))
        return jax.tree.unflatten(jax.tree.structure(self.abstract), values)

    def leaf(self, name: str, abstract: Any, sharding: Sharding | None) -> jax.Array:
        """One parameter."""
        pieces = self.matched.pieces[name]
        dtype = self.source.tensors[pieces[0].source].dtype if self.dtype is None else self.dtype
        return read_leaf(abstract.shape, dtype, sharding, pieces, self.source)

    def _fresh(self, leaves: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The parameters that no tensor fills, as they are initialised; nothing else is computed."""
        names = self.matched.fresh
        if not names:
            return {}
        description, origin = self.description, self.abstract.origin
        floating = _main_dtype(self.source) if self.dtype is None else self.dtype

        def make() -> list[jax.Array]:
            made = named_leaves(Pretrained(description, origin, rngs=nnx.Rngs(0)))
            return [made[name].astype(floating) for name in names]

        out = [where[name] for name in names] if where else None
        return dict(zip(names, jax.jit(make, out_shardings=out)(), strict=True))


def prepare(directory: Path, dtype: DTypeLike | None = None, ignore: str | None = None) -> Prepared:
    """Open and check a checkpoint. Raises UsageError as `load_huggingface` does."""
    source = open_source(directory)
    wanted = None if dtype is None else jnp.dtype(dtype)
    compute = str(_main_dtype(source) if wanted is None else wanted)
    description = _with_dtype(describe(source), compute)
    origin = Origin(
        str(directory),
        source.config_text,
        tuple((name, tuple(tensors)) for name, tensors in source.files().items()),
        tuple((name, tensor.shape) for name, tensor in source.tensors.items()),
    )
    # Match with shapes alone, so that what is wrong with a checkpoint of 100 GB is told within a second.
    leaves = named_leaves(_abstract(description, origin))
    matched = match(description.rows, leaves, source)
    check_unread(matched, description.leftovers, source, ignore)
    origin = replace(origin, unused=tuple(matched.unused), fresh=tuple(matched.fresh))
    return Prepared(source, description, _abstract(description, origin), matched, wanted)


def describe(source: Source) -> Description:
    """Ask the checkpoint's family to describe it. Raises UsageError for a model_type that no family knows."""
    config = Fields(source.config, str(source.directory / "config.json"))
    kind, known = config.raw("model_type"), families()
    if kind is None:
        raise UsageError(f"{config.where} has no model_type; give the directory of a Hugging Face checkpoint")
    name = str(kind).replace("-", "_")
    if name in REFUSED:
        raise UsageError(f"{config.where}: model_type {kind!r} does not load: {REFUSED[name]}")
    if name not in known:
        raise UsageError(f"{config.where}: model_type {kind!r} is not supported; {nearest(name, known)}")
    family = importlib.import_module(f"unimodal.interop.families.{name}")
    names = Names({name: tensor.shape for name, tensor in source.tensors.items()})
    with making(config.where):
        description = family.describe(config, names, source.directory)
    # Compare with the files: a config.json that claims a million layers would be assembled otherwise.
    check_depth(config.where, [tower.backbone.depth for tower in description.towers], len(source.tensors))
    return description


def families() -> list[str]:
    """The model_types that load: the modules in `families/` that do not begin with an underscore."""
    names = (module.name for module in pkgutil.iter_modules(unimodal.interop.families.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def resolve(path: str | Path) -> Path:
    """A local directory; or a hub name, fetched by `huggingface_hub` without pickles. Raises UsageError for neither."""
    directory = Path(path).expanduser()
    name = str(path)
    if directory.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return directory
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(f"{name} is not a directory; to fetch it by name, pip install huggingface_hub") from None
    # Leave pickled weights where they are: they can run code.
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        # Its errors are of many kinds (offline, no such name, gated); all mean the same to whoever gave the name.
        raise UsageError(f"{name} is not a directory and could not be fetched: {str(error).splitlines()[0]}") from error


def read_leaf(
    shape: tuple[int, ...], dtype: np.dtype[Any], sharding: Sharding | None, pieces: Sequence[Piece], source: Source
) -> jax.Array:
    """One parameter, put together shard by shard: each source tensor is mapped once and copied to where it belongs."""
    whole = tuple((0, size) for size in shape)
    placed: dict[Any, tuple[tuple[int, int], ...]] = {None: whole}
    if sharding is not None:
        slices = sharding.addressable_devices_indices_map(shape)
        placed = {device: _bounds(index or (), shape) for device, index in slices.items()}
    # Make one buffer for each distinct shard, which devices that hold copies share.
    buffers = {index: _aligned([stop - start for start, stop in index], dtype) for index in set(placed.values())}
    if pieces[0].layer is not None and pieces[0].row.first:  # layers that nothing there fills
        for buffer in buffers.values():
            buffer.fill(pieces[0].row.before)
    for piece in pieces:
        # Read each tensor once, whatever the number of shards that want a part of it.
        value = piece.row.read(source.tensors[piece.source].read()).reshape(piece.shape)
        value = value if piece.layer is None else value[None]
        region = piece.region(shape)
        for index, buffer in buffers.items():
            _copy(value, region, buffer, index)
    if sharding is None:
        return jax.device_put(buffers[whole])
    arrays = [jax.device_put(buffers[index], device) for device, index in placed.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An empty array that begins at a multiple of 64 bytes: a CPU device then takes it as it is, without a second copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(dtype).reshape(shape)


def _copy(
    value: np.ndarray, region: Sequence[tuple[int, int]], buffer: np.ndarray, index: Sequence[tuple[int, int]]
) -> None:
    """Copy the part of `value`, which fills `region` of the parameter, that lies in the shard at `index`."""
    source, target = [], []
    for (a, b), (start, stop) in zip(region, index, strict=True):
        first, last = max(a, start), min(b, stop)
        # Leave out shards of other regions.
        if first >= last:
            return
        source.append(slice(first - a, last - a))
        target.append(slice(first - start, last - start))
    buffer[tuple(target)] = value[tuple(source)]


def _bounds(index: Sequence[slice], shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def _abstract(description: Description, origin: Origin) -> Pretrained:
    with making(f"{origin.directory}/config.json"):
        return jax.eval_shape(lambda: Pretrained(description, origin, rngs=nnx.Rngs(0)))


def _main_dtype(source: Source) -> np.dtype[Any]:
    """The floating type of most tensors."""
    counts = Counter(t.dtype for t in source.tensors.values() if jnp.issubdtype(t.dtype, jnp.floating))
    if not counts:
        raise UsageError(f"{source.directory} holds no floating-point tensors")
    return counts.most_common(1)[0][0]


def _with_dtype(description: Description, dtype: str) -> Description:
    towers = tuple(
        replace(
            tower,
            backbone=replace(tower.backbone, dtype=dtype, param_dtype=dtype),
            tokenizer=replace(tower.tokenizer, param_dtype=dtype),
        )
        for tower in description.towers
    )
    return replace(description, towers=towers)
