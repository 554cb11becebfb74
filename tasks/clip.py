"""CLIP: match images with their words, or any two modalities with each other (Radford 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from unimodal import dual_encoder
from unimodal.data.blocks import Images, Sounds, Texts
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Batch
from unimodal.heads import Embed, LogitScale
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, siglip, whole_batch


@dataclass(frozen=True)
class Clip:
    """Pairs of two modalities over the global batch: InfoNCE, or a sigmoid for each pair (SigLIP, Zhai 2023). Equal
    captions are not each other's negatives."""

    name: str = "clip"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    pair: tuple[str, str] = ("image", "text")  # what is matched with what: two of image, text and audio
    images: Images = Images()  # the pictures
    texts: Texts = Texts(length=32)  # the captions
    sounds: Sounds = Sounds()  # the recordings
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    image_tokenizer: str = "image"  # one of the config's tokenizers, by name; "": none, where no picture is read
    text_tokenizer: str = "text"  # likewise for texts
    audio_tokenizer: str = ""  # likewise for recordings
    image_backbone: str = "shared"  # one of the config's backbones, by name; "": none
    text_backbone: str = "shared"  # likewise for texts
    audio_backbone: str = ""  # likewise for recordings
    size: int = 64  # of the embeddings
    image_head: Embed = Embed()  # from the hidden states of a picture to its embedding
    text_head: Embed = Embed()  # from the hidden states of a text to its embedding
    audio_head: Embed = Embed()  # from the hidden states of a recording to its embedding
    causal: bool = False  # whether a word sees only those before it
    fill: int | None = None  # the id that texts are filled up with, where their padding is seen; None: it is hidden
    objective: str = "softmax"  # or sigmoid
    temperature: float = 0.07  # to start from; it is learned
    bias: float = -10.0  # of the sigmoid's logits, to start from; it is learned

    # What all tasks do that compare two modalities.
    inputs = dual_encoder.inputs
    part = dual_encoder.part
    block = dual_encoder.block
    embed = dual_encoder.embed
    embed_one = dual_encoder.embed_one
    predict = dual_encoder.predict
    answers = dual_encoder.answers
    evaluations = dual_encoder.evaluations

    def __post_init__(self) -> None:
        dual_encoder.check(self)
        if self.objective not in ("softmax", "sigmoid"):
            raise UsageError(f"{self.name}.objective must be softmax or sigmoid, but is {self.objective!r}")

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        # Radford 2021, §2.5 keeps the scale from going beyond 100; each pair by itself needs no such bound.
        options = dict(most=100.0) if self.objective == "softmax" else dict(bias=self.bias)
        return {**dual_encoder.encoders(self, model, rngs), "temperature": LogitScale(1 / self.temperature, **options)}

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        first, second = self.embed(model, batch, key)
        scale, judge = model.heads[self.name]["temperature"], clip if self.objective == "softmax" else siglip
        return whole_batch(judge, first, second, *scale.shared, ids_B=dual_encoder.same(self, batch)), {
            "scale": scale.scale
        }

    def chances(self, model: Model, similarity: jax.Array) -> jax.Array:
        """Similarities [...,N] of one thing with N others → probabilities [...,N]."""
        logits = model.heads[self.name]["temperature"](similarity)
        return jax.nn.softmax(logits) if self.objective == "softmax" else jax.nn.sigmoid(logits)
