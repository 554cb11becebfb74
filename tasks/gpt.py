"""GPT: predict the next token (Radford 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.data.blocks import Inputs, Texts
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation, Shown
from unimodal.evaluation.likelihood import bigram, bits_per_byte, likelihood_rows
from unimodal.evaluation.samples import Sample, TextSample
from unimodal.evaluation.summed import Summed
from unimodal.generate import Sampling, generate
from unimodal.heads import LanguageModel
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, Metrics, TaskMetrics, causal_lm, chunked_causal_lm, next_token_targets


@dataclass(frozen=True)
class Gpt:
    """Causal language modelling on rows of ids: windows of long documents, or whole documents packed together."""

    name: str = "gpt"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:book"  # a data source, see `data.sources`
    texts: Texts = Texts()  # the texts
    packed: bool = False  # rows hold whole documents with their BOS and EOS, which do not see each other
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

    @property
    def length(self) -> int:
        """Ids in a row."""
        return self.texts.length

    def inputs(self, model: Model) -> Inputs:
        vocabulary = self._vocabulary(model)
        spec = {"ids": self.texts.spec(vocabulary), "bytes": data.ArraySpec((self.length,), np.int32, 0, 8)}
        if self.packed:
            place = data.ArraySpec((self.length,), np.int32, 0, self.length)
            spec |= {"segment": data.ArraySpec((self.length,), np.int32, 1, 2), "position": place}

        def dataset(split: str) -> data.Dataset:
            encoder = data.encoder_for(self.texts.encoder, vocabulary)
            documents = self.texts.open(self.source, split)
            if self.packed:
                count, pad = self._document_bytes, encoder.PAD
                return data.packed_rows(documents, self._document, self.length, pad_id=pad, count=count)
            row: dict[str, Any] = dict(random=split == "train", pad_id=encoder.PAD, count=encoder.byte_counts)
            return data.text_windows(documents, encoder.encode, self.length, **row)

        return Inputs(spec, dataset)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"language": LanguageModel(width, self._vocabulary(model), tied=self.tied, rngs=rngs)}

    def logits(self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """[B,T,V]."""
        return model.heads[self.name]["language"](
            self.hidden(model, batch, key), model.tokenizers[self.tokenizer].table
        )

    def hidden(self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """[B,T,D]. Windows are padded at their end only, which causal attention never looks at."""
        tokenizer = model.tokenizers[self.tokenizer]
        where = {name: batch[name] for name in ("segment", "position")} if self.packed else {}
        limit = tokenizer.config.max_length
        if self.packed and limit is not None and self.length > limit:
            raise UsageError(f"text of {self.length} tokens is longer than the position table, max_length={limit}")
        inner = None if key is None else jax.random.fold_in(key, 1)
        return model.backbones[self.backbone](tokenizer(batch["ids"], causal=True, key=inner, **where), key=key)[0]

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        ids, segment = batch["ids"], self._segment(batch)
        if self.chunk:
            _, sums = self._chunked(model, self.hidden(model, batch, key), ids, segment)
        else:
            _, sums = causal_lm(self.logits(model, batch, key), ids, segment, z_loss=self.z_loss)
        accuracy = Mean(sums["correct"], sums["tokens"])
        return Mean(sums["objective"], sums["tokens"]), {"accuracy": accuracy}

    def evaluations(self) -> dict[str, Evaluation]:
        encoder = self.texts.opened
        ways = (self._document, self._document_bytes) if self.packed else (encoder.encode, encoder.byte_counts)
        likelihood = Summed(
            metric="bits per byte",
            higher_is_better=False,
            inputs=self.inputs,
            predict=self.predict,
            finish=bits_per_byte,
            batch_size=self.batch_size,
            against=bigram(self.source, self.texts, *ways),
            show=self.samples,
        )
        return {self.name: likelihood}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        hidden, table = self.hidden(model, batch), model.tokenizers[self.tokenizer].table
        factors = model.heads[self.name]["language"].factors(hidden, table)
        targets, weights = next_token_targets(batch["ids"], self._segment(batch))
        sizes = jnp.roll(batch["bytes"], -1, axis=1)  # of the id after each
        return likelihood_rows(factors, targets, weights, sizes, chunk=self.chunk or self.length)

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        encoder, batch = self.texts.opened, shown.batch
        first = batch["segment"] == 1 if self.packed else batch["ids"] != encoder.PAD
        whole = first.sum(axis=1) >= (4 if self.packed else self.length)  # of packed rows, the first document
        ids, sizes = batch["ids"][whole][:4], first[whole][:4].sum(axis=1)
        if not len(ids):
            return []
        half, stop = self.length // 2, (encoder.EOS,) if self.packed and encoder.EOS != data.NO_ID else ()
        made = continue_text(
            model,
            (self.backbone, self.tokenizer, self.name),
            ids[:, :half],
            np.minimum(sizes // 2, half),
            half,
            Sampling(temperature=0.7, top_p=0.95),
            stop,
            encoder.PAD,
        )
        return [
            TextSample(*(encoder.decode(part) for part in (row[: size // 2], new, row[size // 2 : size])))
            for row, size, new in zip(ids, sizes, made, strict=True)
        ]

    def _chunked(
        self, model: Model, hidden: jax.Array, ids: jax.Array, segment: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        x, kernel, bias = model.heads[self.name]["language"].factors(hidden, model.tokenizers[self.tokenizer].table)
        return chunked_causal_lm(x, kernel, ids, segment, chunk=self.chunk, bias_V=bias, z_loss=self.z_loss)

    def _vocabulary(self, model: Model) -> int:
        return model.tokenizers[self.tokenizer].config.vocabulary

    def _segment(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        return batch["segment"] if self.packed else (batch["ids"] != self.texts.pad).astype(jnp.int32)

    def _document(self, text: str) -> np.ndarray:
        """A document of a packed row, with where it begins and ends; nothing of a text without any ids."""
        begins, ends = self._ends()
        ids = self.texts.opened.encode(text)
        return np.concatenate([begins, ids, ends]).astype(np.int32) if len(ids) else ids

    def _document_bytes(self, text: str) -> np.ndarray:
        """The bytes of each id of `_document`: where it begins and ends is no text."""
        begins, ends = self._ends()
        sizes = self.texts.opened.byte_counts(text)
        return (
            np.concatenate([np.zeros(len(begins)), sizes, np.zeros(len(ends))]).astype(np.int32)
            if len(sizes)
            else sizes
        )

    def _ends(self) -> tuple[list[int], list[int]]:
        """What stands before and after a document, as far as the vocabulary has it."""
        encoder = self.texts.opened
        ends = [i for i in (encoder.EOS,) if i != data.NO_ID]
        return [i for i in (encoder.BOS,) if i != data.NO_ID and i not in ends], ends


def continue_text(
    model: Model,
    parts: tuple[str, str, str],
    prompt: np.ndarray,
    lengths: np.ndarray,
    steps: int,
    sampling: Sampling,
    stop: tuple[int, ...] = (),
    fill: int = 0,
) -> np.ndarray:
    """Ids [B,steps] that the model writes after prompts [B,T], of which `lengths` [B] are real; `fill` after a stop id.

    parts: the names of the backbone, of the tokenizer and of the task whose head writes.
    """
    backbone, tokenizer, head = parts
    run = jax.jit(partial(generate, steps=steps, sampling=sampling, stop=stop, fill=fill))
    made: tuple[Any, ...] = (model.backbones[backbone], model.tokenizers[tokenizer], model.heads[head]["language"])
    return np.asarray(run(*made, jnp.asarray(prompt), jnp.asarray(lengths, jnp.int32), jax.random.key(0)))
