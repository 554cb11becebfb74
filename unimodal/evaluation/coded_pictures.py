"""Pictures from their codes: how far are they from what they were, and how many codes are in use?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data.blocks import Images
from unimodal.evaluation.evaluation import Batch, Shown
from unimodal.evaluation.samples import PictureRow, Sample
from unimodal.evaluation.summed import Summed
from unimodal.model import Model


def coded_pictures(images: Images, tokenizer: str, **shared: Any) -> Summed:
    """Mean squared error of pixels in [0, 1], from the likeliest or nearest codes of each picture, against giving every
    picture the mean picture of the split. shared: `inputs` and `batch_size`.

    Details: the error over the variance of all pixels, the perplexity of the codes' use over the split, and the share of
    codes that occur.
    """

    def predict(model: Model, batch: Batch) -> dict[str, jax.Array]:
        found, image = model.tokenizers[tokenizer], batch["image"].astype(jnp.float32)
        features = found.features(image)
        codes = found.nearest(features).reshape(image.shape[0], -1)
        pixels = found.pixels(codes)
        # A model that is NaN still has codes, and pixels within bounds.
        has_nan = jnp.where(jnp.isnan(features).any(axis=(1, 2, 3)), jnp.nan, 0.0)
        return {
            "error": jnp.square(pixels - image).mean(axis=(1, 2, 3)) + has_nan,
            "use": jax.nn.one_hot(codes, found.config.vocabulary).mean(axis=1),
            "pixel": image,
            "square": jnp.square(image),
            "shown": jnp.round(255 * jnp.nan_to_num(pixels)).astype(jnp.uint8),
        }

    def finish(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        mean = {name: sums[name] / sums["examples"] for name in ("error", "use", "pixel", "square")}
        use, variance = mean["use"], mean["square"].mean() - mean["pixel"].mean() ** 2
        return {
            "value": float(mean["error"]),
            "of_variance": float(mean["error"] / variance),
            "code_perplexity": float(np.exp(-(use * np.log(np.maximum(use, 1e-30))).sum())),
            "codes_used": float((use > 0).mean()),
            "mean_picture": float((mean["square"] - mean["pixel"] ** 2).mean()),
        }

    def show(model: Model, shown: Shown) -> list[Sample]:
        pairs = zip(shown.batch["image"], shown.rows["shown"], strict=True)
        return [PictureRow((("the picture", images.to_uint8(true)), ("from its codes", made))) for true, made in pairs]

    return Summed(
        metric="mean squared error",
        higher_is_better=False,
        predict=predict,
        finish=finish,
        ratio=("error", "examples"),
        against=lambda untrained: (untrained["mean_picture"], "the mean picture"),
        show=show,
        **shared,
    )
