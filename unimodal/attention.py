"""Self-attention, and the choice of the kernel that computes it.

A static `Layout`, an optional window with global tokens, and the `segment` numbers describe who sees whom (see `tokens.py`
and `visibility.py`). So the kernel is chosen while tracing:

| `implementation` | what runs |
|---|---|
| `xla` | all logits at once, with a dense mask unless all see all |
| `lean` | the same, but the backward pass computes the weights again; no forward-mode derivative |
| `blockwise` | tile by tile, in memory linear in T; tiles that nobody sees are skipped |
| `cudnn` | GPU; flags for causality and windows, lengths; a dense mask where these are not enough |
| `splash` | TPU; any pattern, by blocks, except global tokens of several documents in a row |
| `ring` | `blockwise` as a ring over the mesh axis `sequence`, in a zigzag where that pays |
| `ulysses` | heads exchanged for tokens over `sequence`, around the kernel that suits the platform |
| `auto` | lean for short rows and splash for others on TPUs, cudnn on GPUs where it fits, blockwise for windows and long |
| | rows and on CPUs for causal ones from 1,024 tokens on, else xla; over `sequence`, ulysses around splash where the |
| | heads divide, else ring |
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax

from unimodal.errors import UsageError
from unimodal.kernels import placed
from unimodal.kernels.blockwise import tiling
from unimodal.kernels.cudnn import cudnn, needs_mask
from unimodal.kernels.dense import attend
from unimodal.kernels.lean import lean
from unimodal.remat import KERNEL, named
from unimodal.tokens import Layout
from unimodal.visibility import Pattern, visible

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "xla", "lean", "blockwise", "cudnn", "splash", "ring", "ulysses")
LONG = 8192  # rows from which T² logits take too much memory
TILED_ON_CPU = 1024  # rows from which a CPU gains by leaving out a quarter of the tiles (docs/performance.md)
# On TPUs, rows below it are faster dense: splash pads them to whole blocks and heads of 64 to 128 lanes, and moving that
# takes longer than moving T² weights (docs/scaling.md, "Short rows").
SHORT = 384


def attention(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    layout: Layout,
    segment: jax.Array | None = None,
    *,
    window: int | None = None,
    global_tokens: int = 0,
    implementation: str = "auto",
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: jax.Array | None = None,
    right_padded: bool = False,
) -> jax.Array:
    """Compute self-attention of tokens laid out as `layout`: [B,T,H,K]. On a mesh with `sequence` > 1, rows are split.

    window, global_tokens: see `visibility.Pattern`.
    implementation: see the table at the top of this file.
    scale, soft_cap: of the logits, see `kernels.dense.attend`. cuDNN has no soft_cap.
    bias: [H,T,T], added to the logits. Only the kernels "xla" and "lean" have it.
    right_padded: the promise of `Tokens` about `segment`.

    Raises ValueError for an unknown implementation, and UsageError for one that the mesh, the heads or the pattern rule out.
    """
    pattern, packed = Pattern(layout, window, global_tokens), segment is not None and not right_padded
    factor = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
    parts = placed.sequence_parts()
    if bias is not None:
        if implementation not in ("auto", "xla", "lean"):
            raise UsageError(f"attention {implementation!r} has no bias on the logits: choose 'xla', 'lean' or 'auto'")
        implementation = "xla" if implementation == "auto" else implementation
    local, spread = _choose(
        implementation,
        placed.platform(),
        str(q_BTHK.dtype),
        q_BTHK.shape[-1],
        pattern,
        packed,
        parts,
        placed.heads_divide(k_BTGK.shape[2]),
        soft_cap is not None,
    )
    if spread == "ulysses" and not placed.heads_divide(k_BTGK.shape[2]):
        raise UsageError(
            f"attention {implementation!r} deals out heads over sequence={parts}, but {k_BTGK.shape[2]} key/value heads "
            "do not divide: choose 'ring', or another mesh"
        )
    if local == "splash" and _beyond_splash(pattern, packed):
        raise UsageError(
            f"attention {implementation!r} has no global_tokens for each of several documents in a row: choose "
            "'blockwise' or 'auto'"
        )
    if local == "cudnn" and soft_cap is not None:
        raise UsageError("attention 'cudnn' has no attention_soft_cap: choose 'xla', 'blockwise' or 'auto'")
    q, k, v = q_BTHK, k_BTGK, v_BTGK

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None) -> jax.Array:
        if local == "blockwise":  # spreads over the mesh by itself, unless inside a shard_map already
            tile = tile_size(pattern)
            given: dict[str, Any] = dict(scale=factor, soft_cap=soft_cap, right_padded=right_padded)
            return placed.ring(q, k, v, segment, pattern, tile=tile, **given)
        if local in ("xla", "lean"):
            mask = visible(layout, segment, window=window, global_tokens=global_tokens)
            if local == "lean":
                return lean(q, k, v, mask, scale=factor, soft_cap=soft_cap, bias=bias)
            return named(attend(q, k, v, mask, scale=scale, soft_cap=soft_cap, bias=bias)[0], KERNEL)
        if local == "cudnn":
            return cudnn(q, k, v, segment, pattern, scale=factor, right_padded=right_padded)
        # Import late: Pallas for TPUs takes long to import, and few machines have one.
        from unimodal.kernels.splash import splash

        return splash(q, k, v, segment, pattern, scale=factor, soft_cap=soft_cap)

    if spread == "ulysses":
        return placed.all_to_all(kernel, q, k, v, segment)
    # XLA partitions plain products and cuDNN's call by itself, but not a Pallas kernel.
    return placed.on_mesh(kernel, q, k, v, segment) if local == "splash" else kernel(q, k, v, segment)


def tile_size(pattern: Pattern) -> int:
    """Choose the tile of the blockwise kernel: about the window, so that few tiles are half seen, from 128 to 512."""
    if not pattern.narrow or pattern.window is None:
        return 512
    return min(512, max(128, 1 << (pattern.window - 1).bit_length()))


@functools.cache
def _choose(
    implementation: str,
    platform: str,
    dtype: str,
    head_size: int,
    pattern: Pattern,
    packed: bool = False,
    parts: int = 1,
    divides: bool = True,
    capped: bool = False,
) -> tuple[str, str]:
    """Choose the kernel of a device, and how `parts` devices share a row: "ring", "ulysses", or "" for not at all."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    local = implementation
    if implementation in ("auto", "ulysses"):
        local = _suited(platform, dtype, head_size, pattern, packed, capped)
        if parts > 1 and local == "lean":  # that a fused kernel waits behind it makes dealing out heads pay
            local = "splash" if pattern.length >= 128 else "xla"
    spread = ""
    if implementation == "ring":
        local = "blockwise"
    if parts > 1 and implementation != "xla":  # the compiler splits xla by itself, to compare with
        fused = local == "splash" or implementation in ("cudnn", "ulysses")
        spread = "ulysses" if fused and (divides or implementation != "auto") else "ring"
        local = "blockwise" if spread == "ring" else local
    _say(local, f", {spread} over sequence={parts}" if spread else "", platform, dtype, head_size)
    return local, spread


@functools.cache  # so that each choice is logged once
def _say(kernel: str, spread: str, platform: str, dtype: str, head_size: int) -> None:
    logger.info("attention: %s kernel%s on %s (%s, head size %d)", kernel, spread, platform, dtype, head_size)


def _suited(platform: str, dtype: str, head_size: int, pattern: Pattern, packed: bool, capped: bool) -> str:
    """Choose the kernel for whole rows. packed: segments are more than padding at row ends; capped: with a soft_cap."""
    T = pattern.length
    if platform == "tpu" and not _beyond_splash(pattern, packed):
        return "lean" if T < SHORT else "splash"
    size, count = tiling(T, 1, tile_size(pattern))
    # A dense mask makes any kernel quadratic again. With a window, tiles are faster once most of them are empty; on a CPU,
    # where products take nearly all the time, once a quarter of the tiles of long rows are.
    seen = pattern.tiles(size, count).mean() if pattern.narrow or platform == "cpu" else 1.0
    sparse = T >= LONG or (pattern.narrow and seen <= 0.5) or (platform == "cpu" and T >= TILED_ON_CPU and seen <= 0.75)
    fits = (
        platform == "gpu"
        and not capped
        and dtype in ("bfloat16", "float16")
        and head_size % 8 == 0
        and head_size <= 128
    )
    # With a mask, cuDNN's backward pass needs an even T.
    if fits and not (needs_mask(pattern, packed) and (sparse or T % 2)):
        return "cudnn"
    return "blockwise" if sparse else "xla"


def _beyond_splash(pattern: Pattern, packed: bool) -> bool:
    """True if splash cannot express the pattern: it fixes it while tracing, but here each row has global tokens elsewhere."""
    return packed and pattern.narrow and pattern.global_tokens > 0
