"""GPT: predict the next token (Radford 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.answers import Answer, Asked, continuation_answer
from unimodal.data.blocks import Inputs, Texts
from unimodal.data.blocks.documents import document_rows
from unimodal.data.filling import check_fit
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Batch, Evaluation, on_own_data
from unimodal.evaluation.likelihood import bigram, bits_per_byte, likelihood_rows
from unimodal.evaluation.show.texts import continued_texts
from unimodal.evaluation.summed import Summed
from unimodal.heads import LanguageModel
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, causal_lm, chunked_causal_lm, next_token_targets


@dataclass(frozen=True)
class Gpt:
    """Causal language modelling on rows of ids: windows of long documents, or whole documents packed together."""

    name: str = "gpt"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:book"  # a data source, see `data.sources`
    texts: Texts = Texts()  # the texts
    packed: bool = False  # rows hold whole documents with their BOS and EOS, which do not see each other
    # How they are packed: first_fit (the oldest row with room), or best_fit (the longest first, into the fullest row).
    fit: str = "first_fit"
    batch_size: int = 16  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "text"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    z_loss: float = 0.0  # weight of the square of the logits' log-sum (Chowdhery 2022, §5); 0: none
    chunk: int = 0  # positions of a row whose logits exist at a time, for large vocabularies and long rows; 0: all
    tied: bool = True  # the embedding table serves as output weights, too

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise UsageError(f"tasks.{self.name}.chunk must be 0 (all logits at once) or more, but is {self.chunk}")
        check_fit(self.fit, f"tasks.{self.name}.fit")
        if self.fit != "first_fit" and not self.packed:
            raise UsageError(
                f"tasks.{self.name}.fit={self.fit} is for packed documents: set tasks.{self.name}.packed=True"
            )

    def inputs(self, model: Model) -> Inputs:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        return document_rows(self.source, self.texts, vocabulary, packed=self.packed, fit=self.fit)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width, text = model.backbones[self.backbone].config.width, model.tokenizers[self.tokenizer].config
        return {"language": LanguageModel(width, text.vocabulary, tied=self.tied, rngs=rngs)}

    def hidden(self, model: Model, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """[B,T,D]. Windows are padded at their end only, which causal attention never looks at."""
        where = {name: batch[name] for name in ("segment", "position")} if self.packed else {}
        limit = model.tokenizers[self.tokenizer].config.max_length
        if self.packed and limit is not None and self.texts.length > limit:
            raise UsageError(
                f"text of {self.texts.length} tokens is longer than the position table, max_length={limit}"
            )
        return model.hidden(self.tokenizer, self.backbone, batch["ids"], key=key, causal=True, **where)[0]

    def logits(self, model: Model, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """[B,T,V]."""
        hidden, table = self.hidden(model, batch, key), model.tokenizers[self.tokenizer].table
        return model.heads[self.name]["language"](hidden, table)

    def factors(self, model: Model, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The factors of the logits (see `heads.LanguageModel.factors`)."""
        return model.heads[self.name]["language"].factors(hidden, model.tokenizers[self.tokenizer].table)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        text = batch["ids"], self._segment(batch)
        if self.chunk:
            x, kernel, bias = self.factors(model, self.hidden(model, batch, key))
            options: dict[str, Any] = dict(chunk=self.chunk, bias_V=bias, z_loss=self.z_loss)
            _, sums = chunked_causal_lm(x, kernel, *text, **options)
        else:
            _, sums = causal_lm(self.logits(model, batch, key), *text, z_loss=self.z_loss)
        metrics: dict[str, jax.Array | Mean] = {"accuracy": Mean(sums["correct"], sums["tokens"])}
        if self.packed:
            metrics["filled"] = (batch["segment"] != 0).astype(jnp.float32).mean()  # the share that is no padding
        return Mean(sums["objective"], sums["tokens"]), metrics

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        return [continuation_answer(self, model, asked, packed=self.packed)]

    def evaluations(self) -> dict[str, Evaluation]:
        parts = self.backbone, self.tokenizer, self.name
        likelihood = Summed(
            metric="bits per byte",
            higher_is_better=False,
            **on_own_data(self),
            finish=bits_per_byte,
            against=bigram(self.source, self.texts, packed=self.packed),
            show=continued_texts(self.texts, parts, packed=self.packed),
        )
        return {self.name: likelihood}

    def predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        factors = self.factors(model, self.hidden(model, batch))
        targets, weights = next_token_targets(batch["ids"], self._segment(batch))
        sizes = jnp.roll(batch["bytes"], -1, axis=1)  # of the id after each
        return likelihood_rows(factors, targets, weights, sizes, chunk=self.chunk or self.texts.length)

    def _segment(self, batch: Batch) -> jax.Array:
        return batch["segment"] if self.packed else (batch["ids"] != self.texts.pad).astype(jnp.int32)
