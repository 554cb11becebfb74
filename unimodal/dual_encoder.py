"""Two modalities of each record, each made into one embedding: what contrastive tasks train and retrieval compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.answers import (
    IMAGE,
    SOUND,
    TEXT,
    Answer,
    Asked,
    embedding_answer,
    picture_row,
    sound_row,
    text_row,
    zero_shot_answer,
)
from unimodal.data.blocks import Images, Inputs, Part, Sounds, Texts, columns
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.evaluation import Shown, on_own_data
from unimodal.evaluation.retrieval import Retrieval
from unimodal.evaluation.samples import Sample
from unimodal.evaluation.show.found import found_samples
from unimodal.heads import Embed, Projection
from unimodal.model import Model
from unimodal.objectives import row_codes
from unimodal.tokens import lengths_of

MODALITIES = ("image", "text", "audio")
READS = {"image": IMAGE, "text": TEXT, "audio": SOUND}


@dataclass(frozen=True)
class DualEncoder:
    """Two modalities of each record in one space of embeddings. Equal texts are the same thing said."""

    name: str = "dual_encoder"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    pair: tuple[str, str] = ("image", "text")  # what is matched with what: two of image, text and audio
    images: Images = Images()  # the pictures
    texts: Texts = Texts(length=32)  # the captions
    sounds: Sounds = Sounds()  # the recordings
    batch_size: int = 32  # examples of one global batch
    size: int = 64  # of the embeddings
    image_head: Embed = Embed()  # from the hidden states of a picture to its embedding
    text_head: Embed = Embed()  # from the hidden states of a text to its embedding
    audio_head: Embed = Embed()  # from the hidden states of a recording to its embedding
    causal: bool = False  # whether a word sees only those before it
    fill: int | None = None  # the id that texts are filled up with, where their padding is seen; None: it is hidden
    image_tokenizer: str = "image"  # one of the config's tokenizers, by name; "": none, where no picture is read
    text_tokenizer: str = "text"  # likewise for texts
    audio_tokenizer: str = ""  # likewise for recordings
    image_backbone: str = "shared"  # one of the config's backbones, by name; "": none
    text_backbone: str = "shared"  # likewise for texts
    audio_backbone: str = ""  # likewise for recordings

    def __post_init__(self) -> None:
        if len(set(self.pair)) < 2 or not set(self.pair) <= set(MODALITIES):
            raise UsageError(f"{self.name}.pair must be two of {', '.join(MODALITIES)}, but is {', '.join(self.pair)}")
        for what, names in (("tokenizer", self.tokenizers), ("backbone", self.backbones)):
            for modality in self.pair:
                if not names[modality]:
                    raise UsageError(f"{self.name} reads {' and '.join(self.pair)}: {modality}_{what} must name one")

    def inputs(self, model: Model) -> Inputs:
        return columns(self.source, *(self.part(model, modality) for modality in self.pair))

    def part(self, model: Model, modality: str, column: str = "") -> Part:
        """What of an example a modality reads. column: another one than the task's own."""
        config, block = model.tokenizers[self.tokenizers[modality]].config, self.block(modality, column)
        if isinstance(block, Images):
            return block.part(config.image_size, config.channels)
        return block.part(config.vocabulary) if isinstance(block, Texts) else block.part()

    def block(self, modality: str, column: str = "") -> Images | Texts | Sounds:
        """The data block of a modality. column: another one than its own."""
        block = dict(image=self.images, text=self.texts, audio=self.sounds)[modality]
        return replace(block, column=column) if column else block

    def encoders(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The heads that make embeddings of hidden states, by modality."""
        how = dict(image=self.image_head, text=self.text_head, audio=self.audio_head)
        configs = {modality: model.backbones[self.backbones[modality]].config for modality in self.pair}
        sizes = {m: self.size if how[m].project else c.width for m, c in configs.items()}
        if len(set(sizes.values())) > 1:
            told = " and ".join(f"{m} embeddings have {size}" for m, size in sizes.items())
            raise UsageError(
                f"tasks.{self.name}: {told} numbers; without a projection they are as wide as the backbone"
            )
        return {m: Projection(c.width, self.size, how[m], c, rngs=rngs) for m, c in configs.items()}

    def embed(
        self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Unit embeddings [B,size] of the two modalities."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        first, second = (self.embed_one(model, m, batch, k) for m, k in zip(self.pair, keys, strict=True))
        return first, second

    def embed_one(
        self, model: Model, modality: str, batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> jax.Array:
        """Unit embeddings [B,size] of what one modality reads of a batch."""
        inner = None if key is None else jax.random.fold_in(key, 1)
        tokenizer, ids = model.tokenizers[self.tokenizers[modality]], None
        if modality == "image":
            tokens = tokenizer(batch["image"], key=inner)
        elif modality == "audio":
            tokens = tokenizer(batch["audio"], lengths=batch["length"], key=inner)
        else:
            lengths = lengths_of(batch["ids"], self.texts.pad) if self.fill is None else None
            ids = (
                batch["ids"]
                if self.fill is None
                else jnp.where(batch["ids"] == self.texts.pad, self.fill, batch["ids"])
            )
            tokens = tokenizer(ids, causal=self.causal, lengths=lengths, key=inner)
        hidden, _ = model.backbones[self.backbones[modality]](tokens, key=key)
        return model.heads[self.name][modality](hidden, tokens.segment, ids=ids)

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        """Embeddings of each modality; with names of classes, the likeliest of them, too."""
        rows = {modality: self._row(model, modality) for modality in self.pair}
        found = [embedding_answer(READS[m], rows[m], partial(self._embedded, m)) for m in self.pair]
        others = [modality for modality in self.pair if modality != "text"]
        if not asked.classes or len(others) != 1:
            return found
        named = [rows["text"]({"id": name, "text": asked.template.replace("{}", name)}) for name in asked.classes]
        zero_shot = zero_shot_answer(
            asked.classes,
            named,
            rows[others[0]],
            reads=READS[others[0]],
            embed_texts=partial(self._embedded, "text"),
            embed=partial(self._embedded, others[0]),
            chances=self.chances,
            top=asked.top,
        )
        return [zero_shot, *found]

    def chances(self, model: Model, similarity: jax.Array) -> jax.Array:
        """Similarities [...,N] of one thing with N others → probabilities [...,N]."""
        return jax.nn.softmax(similarity)

    def _embedded(self, modality: str, model: Model, batch: Mapping[str, jax.Array]) -> jax.Array:
        return self.embed_one(model, modality, batch)

    def _row(self, model: Model, modality: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        config, block = model.tokenizers[self.tokenizers[modality]].config, self.block(modality)
        if isinstance(block, Images):
            return picture_row(block, config)
        return text_row(block, config.vocabulary) if isinstance(block, Texts) else sound_row(block)

    def retrieval(self, chances: Callable[[Model, jax.Array], jax.Array]) -> Retrieval:
        """Finding the other half of each pair. chances: similarities [N] as the probabilities that samples show."""

        def show(model: Model, shown: Shown) -> list[Sample]:
            return found_samples(
                shown,
                data.open_source(self.source, "validation"),
                lambda similarity: np.asarray(chances(model, jnp.asarray(similarity))),
                draw={"image": self.images.read, "text": self.texts.text, "audio": self.sounds.read},
                pair=self.pair,
                rate=self.sounds.rate,
            )

        return Retrieval(
            **on_own_data(self),
            against=lambda _: (chance_recall(len(data.open_source(self.source, "validation")), 5), "chance"),
            show=show,
        )

    def same(self, batch: Mapping[str, jax.Array]) -> jax.Array | None:
        """[B], equal where the texts are; None where no text is read."""
        return row_codes(batch["ids"]) if "text" in self.pair else None

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        first, second = self.embed(model, batch)
        same = self.same(batch)
        return {"first": first, "second": second, **({} if same is None else {"same": same})}

    @property
    def tokenizers(self) -> dict[str, str]:
        """The tokenizer of each modality, by name."""
        return dict(image=self.image_tokenizer, text=self.text_tokenizer, audio=self.audio_tokenizer)

    @property
    def backbones(self) -> dict[str, str]:
        """The backbone of each modality, by name."""
        return dict(image=self.image_backbone, text=self.text_backbone, audio=self.audio_backbone)
