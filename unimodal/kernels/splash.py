"""The fused attention of TPUs: JAX's splash attention, which skips blocks that nobody sees, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from unimodal.remat import KERNEL
from unimodal.visibility import Pattern

LANES = 128  # of a TPU's vector registers: blocks are multiples of it


@dataclass(frozen=True)
class Seen(masks.Mask):
    """A pattern in the form of splash's masks: block by block, equal blocks once. Padding up to `size` sees itself."""

    pattern: Pattern  # of the real tokens
    size: int  # of the padded row

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    def __getitem__(self, idx: Any) -> np.ndarray:
        place = np.arange(self.size, dtype=np.int32)
        limit = np.concatenate([self.pattern.limit, place[self.pattern.length :] + 1])
        rows, columns = idx
        return self.pattern.sees(place[rows][:, None], place[columns][None, :], limit[rows][:, None])


def block_size(length: int, full: bool = False) -> int:
    """Choose the largest block of 512, 256, 128 with less than a quarter of padding on rows of `length`. full: every token sees
    all, so no block could be skipped. A row below 1,024 is then one block, with the least padding."""
    least = -(-length // LANES) * LANES
    if full and least < 8 * LANES:
        return least
    return next(b for b in (4 * LANES, 2 * LANES, LANES) if -(-length // b) * b <= 1.25 * least)


def mask_of(pattern: Pattern, size: int) -> masks.Mask:
    """Make the mask of rows padded to `size`: one that splash computes instead of loading, where it has one."""
    shape = size, size
    if pattern.causal and not pattern.narrow:
        return masks.CausalMask(shape)
    if pattern.narrow and not pattern.global_tokens and pattern.window is not None:
        if pattern.causal:
            return masks.LocalMask(shape, (pattern.window - 1, 0), 0)
        if len(pattern.layout) == 1 and pattern.length == size:
            return masks.LocalMask(shape, (pattern.window - 1, pattern.window - 1), 0)
    return masks.FullMask(shape) if pattern.full and pattern.length == size else Seen(pattern, size)


def splash(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segment: jax.Array | None,
    pattern: Pattern,
    *,
    scale: float,
    soft_cap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Compute attention [B,T,H,K] with a float32 softmax: any T (padded to whole blocks), any pattern, grouped heads.

    Padded queries get zeros.

    interpret: run the kernel's body in plain JAX, for tests without a TPU.
    """
    T, H = q_BTHK.shape[1:3]
    block = block_size(T, pattern.full)
    size = -(-T // block) * block
    # One kernel for the whole backward pass computes five products instead of seven, but writes the queries' gradient once for
    # each block of keys.
    fused = size <= 2 * block
    kernel: Any = kernels.make_splash_mha(
        masks.MultiHeadMask([mask_of(pattern, size)] * H),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=None if fused else block,
            block_kv_dq=None if fused else block,
            use_fused_bwd_kernel=fused,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=KERNEL,
        interpret=interpret,
    )
    blocks = pattern.tiles(block, size // block)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, size - T)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
    q, k, v = (pad(x).transpose(0, 2, 1, 3) for x in (q_BTHK * scale, k_BSGK, v_BSGK))
    ids = None if segment is None else kernels.SegmentIds(pad(segment), pad(segment))
    # A compiled kernel does not say how much it computes; its scope does, for `launch.py plan`.
    with jax.named_scope(f"blocks_{blocks.sum()}_of_{blocks.size}"):
        out = jax.vmap(kernel)(q, k, v, ids)
    out = out.transpose(0, 2, 1, 3)[:, :T]
    # To splash, padding is a segment of its own. Here it must see nothing, and must not reach a gradient.
    return out if segment is None else jnp.where((segment != 0)[:, :, None, None], out, jnp.zeros((), out.dtype))
