"""Pictures with what the model sees in them: their likeliest classes, and where it looks."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data.blocks import Images, Labels
from unimodal.data.sources import open_source
from unimodal.evaluation.evaluation import Shown
from unimodal.evaluation.samples import AttentionMap, ImageSample, Sample
from unimodal.model import Model


def classified_pictures(
    source: str, images: Images, labels: Labels, tokenizer: str, backbone: str
) -> Callable[[Model, Shown], list[Sample]]:
    """Show the likeliest classes of pictures, and where the last layer of a backbone looks in the first of them.

    Rows: what `classification.guesses` gives. The batch has the pictures under `image`; of
    rows of patches no attention is shown.
    """

    def show(model: Model, shown: Shown) -> list[Sample]:
        names, records = labels.names(source), open_source(source, "validation")
        found: list[Sample] = []
        for i, place in enumerate(shown.index):
            record = records[int(place)]
            best = tuple(
                (names[int(k)], float(p)) for k, p in zip(shown.rows["best"][i], shown.rows["chance"][i], strict=True)
            )
            note, truth = str(record.get("name", record["id"])), names[int(shown.rows["label"][i])]
            found.append(ImageSample(images.read(record), best, truth, note=note))
        if "image" not in shown.batch:  # rows of patches, which have proportions of their own
            return found
        return [*found, attention_in(model, shown.batch["image"][:1], images, tokenizer, backbone)]

    return show


def attention_in(model: Model, image: np.ndarray, images: Images, tokenizer: str, backbone: str) -> AttentionMap:
    """Attention of the last layer in a picture [1,H,W,C], averaged over queries, for each head."""
    parts = model.backbones[backbone], model.tokenizers[tokenizer]
    _, out = jax.jit(lambda b, t, x: b(t(x), capture=("attention",)))(*parts, jnp.asarray(image))
    config = parts[1].config
    weights = np.asarray(out["attention"][-1, 0], np.float32)[:, :, config.registers :]
    return AttentionMap("last layer", images.to_uint8(image[0]), None, weights, grid=config.grid_of(*image.shape[1:3]))
