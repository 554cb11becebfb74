"""Similarity of texts: do those that people call alike, or that say the same, lie close together? (Reimers 2019, §4)"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from unimodal.data.blocks import Inputs, Part, Texts, columns
from unimodal.data.blocks.inputs import find_column
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec
from unimodal.data.transcripts import words_of
from unimodal.data.values import read_all
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Measured, Reader, Shown
from unimodal.evaluation.features import Pooled
from unimodal.evaluation.retrieval import Pairs
from unimodal.evaluation.samples import Sample, TextSample
from unimodal.evaluation.similarity import cosine, similarity_ranking, spearman
from unimodal.heads import Projection, unit_length
from unimodal.model import Model
from unimodal.objectives import row_codes
from unimodal.tokens import lengths_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity(Pooled):
    """Ranks pairs of texts by the cosine of their embeddings.

    With a column of `scores` that say how alike people found each pair, the metric is Spearman's correlation with them.
    Without, each text is to find its own partner among those of all other pairs, and the metric is recall@1.
    """

    tokenizer: str = "text"  # one of the config's tokenizers, by name
    texts: Texts = Texts()  # the first text, and how both are encoded
    second: str  # the column of the other text; "a+b" joins several
    scores: str = ""  # a column of numbers, larger for pairs that are more alike; "": find the partner instead
    head: str = ""  # what makes embeddings, as TASK.HEAD (sentence.embed, clip.text); "": pooled hidden states

    @property
    def metric(self) -> str:
        return "Spearman correlation" if self.scores else "recall@1"

    @property
    def higher_is_better(self) -> bool:
        return True

    def inputs(self, model: Model) -> Inputs:
        """Rows of ids, `first` and `second`, and `score` where there are scores."""
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        other = dataclasses.replace(self.texts, column=self.second)
        parts = [self.texts.part(vocabulary, "first"), other.part(vocabulary, "second")]
        if self.scores:
            spec = {"score": ArraySpec((), np.float32)}
            parts.append(Part(spec, self._score, lambda value, rng, training: {"score": np.float32(value)}))
        return columns(self.source, *parts)

    def _score(self, record: Mapping[str, Any]) -> float:
        value = record[find_column(record, self.scores, (), "a score")]
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise UsageError(f"record {record['id']!r}: {self.scores}={value!r} is no number")
        return score

    def embed(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unit embeddings `first` and `second` [B,D]; `same` [B], equal for the same text; and `score` [B] if there is one."""
        made = {side: self._embedding(model, batch[side]) for side in ("first", "second")}
        made["same"] = row_codes(batch["second"])  # partners that say the same are not each other's rivals
        return {**made, "score": batch["score"]} if self.scores else made

    def _embedding(self, model: Model, ids: jax.Array) -> jax.Array:
        lengths = lengths_of(ids, self.texts.pad)
        tokens = model.tokenizers[self.tokenizer](ids, causal=self.causal, lengths=lengths)
        if not self.head:
            return unit_length(self.pooled(model, tokens))
        return self._head(model)(self.hidden(model, tokens), tokens.segment, ids=ids)

    def _head(self, model: Model) -> Any:
        heads = ((f"{task}.{name}", head) for task, heads in model.heads.items() for name, head in heads.items())
        there = {name: head for name, head in heads if isinstance(head, Projection)}
        if self.head not in there:
            known = ", ".join(there) or "none"
            raise UsageError(f"evaluations.{self.name}.head={self.head!r} makes no embeddings; those that do: {known}")
        return there[self.head]

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        examples, pairs = reader.examples(self.inputs, model, "validation"), Pairs(1)
        scores: list[np.ndarray] = []
        for rows in reader.rows(self.embed, model, examples, self.batch_size, limit):
            pairs.add(rows)
            scores.append(rows["score"] if self.scores else np.zeros(len(rows["index"])))
        found = {name: pairs.all(name) for name in ("first", "second", "index")}
        shown = Shown(found["index"], {}, found, pairs)
        if not self.scores:
            return Measured(pairs.score(), shown)
        ranked = similarity_ranking(found["first"], found["second"], np.concatenate(scores))
        return Measured({"value": ranked["spearman"], "pearson": ranked["pearson"]}, shown)

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        """Counting shared words (or chance, where there are no scores), or the untrained model where that is better."""
        if self.scores:
            pairs = [*read_all(open_source(self.source, "validation"), self._read)]
            overlap, scores = np.array([_overlap(a, b) for a, b, _ in pairs]), np.array([score for *_, score in pairs])
            simple = spearman(overlap, scores), "shared words"
        else:
            simple = untrained["chance"], "chance"
        known = [pair for pair in (simple, (untrained["value"], "the untrained model")) if not np.isnan(pair[0])]
        return max(known, default=simple)  # the correlation of what is constant is NaN

    def samples(self, model: Model, shown: Shown) -> Sequence[Sample]:
        """The pairs that lie nearest and farthest."""
        records, cosines = open_source(self.source, "validation"), cosine(shown.rows["first"], shown.rows["second"])
        order = np.argsort(-cosines)
        found: list[Sample] = []
        for i in [*order[:3], *order[max(3, len(order) - 3) :]]:
            first, second, score = self._read(records[int(shown.index[i])])
            note = f"score {score:g}" if self.scores else ""
            found.append(TextSample(f"{first} | {second}", f"cosine {cosines[i]:.2f}", note=note))
        return found

    def _read(self, record: Mapping[str, Any]) -> tuple[str, str, float]:
        second = dataclasses.replace(self.texts, column=self.second)
        return self.texts.text(record), second.text(record), self._score(record) if self.scores else 0.0


def _overlap(first: str, second: str) -> float:
    """Share of the words of two texts that both have (Jaccard)."""
    a, b = words_of(first), words_of(second)
    return len(a & b) / max(1, len(a | b))
