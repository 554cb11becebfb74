"""MAE: rebuild the pixels of hidden patches from a few visible ones (He 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx

from unimodal.answers import with_gaps_filled
from unimodal.data.blocks import Images, Inputs, columns, noise
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Batch, Evaluation, Shown
from unimodal.evaluation.reconstruction import Reconstruction, better_guess, picture_rows
from unimodal.evaluation.samples import Sample
from unimodal.layers import Embedding, Linear
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, masked_pixels, restored, visible_first
from unimodal.tokenizers.image import patchify, position_table
from unimodal.tokens import tokens


@dataclass(frozen=True)
class Mae:
    """Masked autoencoding of images: the backbone sees the visible patches only, a light decoder all places."""

    name: str = "mae"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images()  # the pictures
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "image"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # the encoder, one of the config's backbones
    decoder_backbone: str = "decoder"  # another, narrower and shallower, which is of no use after training
    mask_ratio: float = 0.75  # share of the patches that is hidden
    normalise: bool = True  # predict each patch less its mean, over its standard deviation

    answers = with_gaps_filled

    def inputs(self, model: Model) -> Inputs:
        c = model.tokenizers[self.tokenizer].config
        return columns(self.source, self.images.part(c.image_size, c.channels), noise(math.prod(c.grid)))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        wide, narrow = (model.backbones[name].config.width for name in (self.backbone, self.decoder_backbone))
        c = model.tokenizers[self.tokenizer].config
        if c.stride is not None or c.plain_registers:
            raise UsageError(f"tasks.{self.name}: {self.tokenizer} must have no stride and no plain_registers")
        return {
            "decoder_embed": Linear((wide,), (narrow,), ("embed", "hidden"), rngs=rngs),
            "decoder_mask": Embedding(1, narrow, axes=("place", "embed"), rngs=rngs),
            "decoder_position": position_table(c, narrow, rngs=rngs),
            "patches": Linear((narrow,), (c.patch**2 * c.channels,), ("embed", "classes"), rngs=rngs),
        }

    def predict(self, model: Model, batch: Batch, key: jax.Array | None = None) -> dict[str, Any]:
        """The `pixels` of every patch and what is `predicted` for them [B,T,P], and which of them are `masked` [B,T]."""
        tokenizer, heads = model.tokenizers[self.tokenizer], model.heads[self.name]
        inner, outer = (None, None) if key is None else (jax.random.fold_in(key, i) for i in (1, 2))
        keep, rank = visible_first(batch["noise"], self._visible(batch["noise"].shape[1]))
        hidden, _ = model.backbones[self.backbone](tokenizer(batch["image"], key=inner, keep=keep), key=key)
        mask, places = (heads[name].table.get_value() for name in ("decoder_mask", "decoder_position"))
        x = restored(heads["decoder_embed"](hidden), mask[0], rank, first := tokenizer.config.registers)
        placed = tokens(x + places.astype(x.dtype)[None], modality="image")
        x, _ = model.backbones[self.decoder_backbone](placed, key=outer)
        pixels = patchify(batch["image"], tokenizer.config.patch)
        return {"pixels": pixels, "predicted": heads["patches"](x[:, first:]), "masked": rank >= keep.shape[1]}

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        found = self.predict(model, batch, key)
        losses, _ = masked_pixels(found["predicted"], found["pixels"], found["masked"], normalise=self.normalise)
        return losses.mean(), {}

    def evaluations(self) -> dict[str, Evaluation]:
        made = Reconstruction(
            inputs=self.inputs,
            predict=self.predict,
            batch_size=self.batch_size,
            against=partial(better_guess, normalise=self.normalise),
            show=self.samples,
            patch=lambda model: model.tokenizers[self.tokenizer].config.patch,
            normalise=self.normalise,
        )
        return {self.name: made}

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        grid = model.tokenizers[self.tokenizer].config.grid
        found = jax.jit(self.predict)(model, {name: shown.batch[name] for name in ("image", "noise")})
        return [*picture_rows(**found, grid=grid, to_uint8=self.images.to_uint8, normalise=self.normalise)]

    def _visible(self, patches: int) -> int:
        """Count the patches that the encoder sees. Raises UsageError where that would be none or all."""
        count = int(patches * (1 - self.mask_ratio))
        if not 0 < count < patches:
            raise UsageError(f"tasks.{self.name}.mask_ratio leaves {count} of {patches} patches visible")
        return count
