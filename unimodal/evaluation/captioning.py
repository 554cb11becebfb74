"""Captions: how like the true ones are those that a model writes, and how well does it foresee the true ones?"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from unimodal import data
from unimodal.data.blocks import Captions, Images
from unimodal.data.transcripts import list_of_words
from unimodal.data.values import read_all
from unimodal.evaluation.evaluation import Batch, Evaluation, Predict, Rows, Shown, Streamed
from unimodal.evaluation.samples import ImageSample, Sample
from unimodal.evaluation.summed import Summed
from unimodal.model import Model
from unimodal.objectives import example_sum, position_cross_entropy


def foreseen(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """Sums over each caption's tokens: `nats`, `correct` and `tokens` [B] float32. logits [B,T,V]; the others [B,T]."""
    found = position_cross_entropy(logits, targets)
    sums = {"nats": found.nats, "correct": found.correct, "tokens": jnp.ones_like(weights)}
    return {name: example_sum(value, weights) for name, value in sums.items()}


def token_accuracy(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of a caption's tokens, its end included, that are foreseen from the picture and the true tokens before;
    and the same after another example's picture, which says how much the picture is used. Sums are over examples."""
    right = {name: float(sums[f"{name}correct"] / sums["tokens"]) for name in ("", "other_")}
    nats = float(sums["nats"] / sums["tokens"])
    return {
        "value": right[""] if math.isfinite(nats) else math.nan,
        "after_another_picture": right["other_"],
        "nats_per_token": nats,
    }


def prefix_accuracy(source: str, texts: Captions) -> Callable[[Mapping[str, float]], tuple[float, str]]:
    """The baseline of a captioner that sees no picture: each token of validation is foreseen as the commonest one that
    follows the longest beginning, or the longest of the last few tokens, that training has too."""

    def against(_untrained: Mapping[str, float]) -> tuple[float, str]:
        encoder = texts.opened
        rows = {
            split: [texts.row(encoder, text) for text in _captions(source, split, texts)]
            for split in ("train", "validation")
        }
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for context, target in (pair for row in rows["train"] for pair in _contexts(row, texts.pad)):
            for known in context:
                counts[known][target] += 1
        best = {known: found.most_common(1)[0][0] for known, found in counts.items()}
        hits = [
            target == next(best[known] for known in context if known in best)
            for row in rows["validation"]
            for context, target in _contexts(row, texts.pad)
        ]
        return float(np.mean(hits)), "the likeliest token without the picture"

    return against


def _contexts(row: np.ndarray, pad: int) -> list[tuple[list[tuple[int, ...]], int]]:
    """Each target of `caption_targets` with what stands before it, from the whole beginning down to nothing."""
    length = int((row != pad).sum())
    ids = [-1, *(int(i) for i in row[:length]), *([pad] if pad >= 0 and length < len(row) else [])]
    found = []
    for t in range(1, len(ids)):
        shorter = [tuple(ids[max(0, t - n) : t]) for n in (5, 4, 3, 2, 1)]
        found.append(([tuple(ids[:t]), *shorter, ()], ids[t]))
    return found


def _captions(source: str, split: str, texts: Captions) -> Iterator[str]:
    """The captions of a split, one after another, so that no pictures are held."""
    return read_all(data.open_source(source, split), texts.text)


def likeness(written: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """`bleu` (Papineni 2002) and `chrf` (Popović 2015) of all captions together, 0 … 100, by sacrebleu, `cider` by
    `cider_d`, and `exact`, the share that is equal: all without regard to case."""
    lower = ([text.lower() for text in written], [[text.lower() for text in true]])
    return {
        "bleu": float(BLEU(effective_order=True).corpus_score(*lower).score),
        "chrf": float(CHRF().corpus_score(*lower).score),
        "cider": cider_d(written, true),
        "exact": float(np.mean([a == b for a, b in zip(*(lower[0], lower[1][0]), strict=True)])),
    }


def cider_d(written: Sequence[str], true: Sequence[str], longest: int = 4, width: float = 6.0) -> float:
    """CIDEr-D of captions with one reference each, 0 … 10 (Vedantam 2015, equations 1, 2, 4 and 5).

    For n of 1 to `longest`: the cosine between how often each n-gram stands in both captions, where one counts the less the
    more references have it, and no more often than the reference has it. Captions whose lengths differ count less, as a
    Gaussian of `width` words says. Captions of fewer than four words cannot reach 10. There is no small library for it.
    """
    pairs = [tuple(_grams(text, longest) for text in pair) for pair in zip(written, true, strict=True)]
    known = Counter(gram for _, reference in pairs for gram in reference)
    rarity = {gram: math.log(len(pairs) / count) for gram, count in known.items()}
    found = []
    for counts in pairs:
        ours, theirs = ({g: c * rarity.get(g, math.log(len(pairs))) for g, c in count.items()} for count in counts)
        lengths = [sum(c for g, c in count.items() if len(g) == 1) for count in counts]
        near = math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * width**2))
        for n in range(1, longest + 1):
            norms = [math.sqrt(sum(v * v for g, v in vector.items() if len(g) == n)) for vector in (ours, theirs)]
            common = sum(min(v, theirs[g]) * theirs[g] for g, v in ours.items() if len(g) == n and g in theirs)
            found.append(near * common / (norms[0] * norms[1]) if all(norms) else 0.0)
    return 10 * float(np.mean(found))


def _grams(text: str, longest: int) -> Counter[tuple[str, ...]]:
    """How often each run of up to `longest` words stands in a text, without case and punctuation."""
    # In one spelling: a letter with its accent may be one character or two.
    words = list_of_words(unicodedata.normalize("NFC", text))
    return Counter(tuple(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))


@dataclass
class Written:
    """Keeps the captions that were written, best of each beam, and the true ones."""

    texts: Captions  # how captions are read and spelt
    source: Any  # the records of the split
    written: list[str] = field(default_factory=list)  # captions of the model
    true: list[str] = field(default_factory=list)  # captions of the records
    has_nan: bool = False  # some score was NaN

    def add(self, rows: Rows) -> None:
        for ids, score, place in zip(rows["written"], rows["score"], rows["index"], strict=True):
            self.written.append(self.texts.opened.decode(ids[0]))
            self.true.append(self.texts.text(self.source[int(place)]))
            self.has_nan |= bool(np.isnan(score[0]))

    def score(self) -> dict[str, float]:
        found = likeness(self.written, self.true)
        return {"value": math.nan if self.has_nan else found["chrf"], **found}


@dataclass(frozen=True, kw_only=True)
class Captioning(Streamed):
    """Captions written after the picture alone, against always writing training's commonest caption.

    `predict` gives ids `written` [B,beams,T], best first and filled up with padding, and their log-probabilities `score`
    [B,beams]. The value is chrF, which compares letters; BLEU, in the details, goes up to as many words as captions have.
    """

    source: str  # a data source, see `data.sources`
    texts: Captions  # the captions
    images: Images  # the pictures
    metric: str = "chrF"  # letters in common, from 0 to 100
    higher_is_better: bool = True  # direction
    # untrained score → baseline; replaced as training is read
    against: Callable[[Mapping[str, float]], tuple[float, str]] = lambda _: (0.0, "nothing")

    def tally(self) -> Written:
        return Written(self.texts, data.open_source(self.source, "validation"))

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        train, true = ([*_captions(self.source, s, self.texts)] for s in ("train", "validation"))
        commonest = max(sorted(Counter(train).items()), key=lambda item: item[1])[0]
        return likeness([commonest] * len(true), true)["chrf"], "the commonest caption"

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        source, found = data.open_source(self.source, "validation"), []
        for row, place in enumerate(shown.index):
            record, chances = source[int(place)], np.exp(shown.rows["score"][row])
            beams = zip(shown.rows["written"][row], chances, strict=True)
            best = tuple((self.texts.opened.decode(ids), float(p)) for ids, p in beams)[:4]
            found.append(ImageSample(self.images.read(record), best, self.texts.text(record), note="captions by beam"))
        return found


def caption_evaluations(
    name: str,
    source: str,
    images: Images,
    texts: Captions,
    foresee: Predict,
    write: Callable[[Model, jax.Array], tuple[jax.Array, jax.Array]],
    **shared: Any,
) -> dict[str, Evaluation]:
    """Two questions of a captioner: NAME, how many tokens of true captions it foresees, and NAME_captions, what it writes.

    foresee: gives the sums of `foreseen`, and `other_correct` after another example's picture. write: pictures [B,H,W,C] →
    captions' ids [B,beams,T], best first, and their log-probabilities [B,beams]. shared: `inputs` and `batch_size`.
    """

    def written(model: Model, batch: Batch) -> dict[str, jax.Array]:
        return dict(zip(("written", "score"), write(model, batch["image"]), strict=True))

    accuracy = Summed(
        metric="token accuracy",
        higher_is_better=True,
        predict=foresee,
        finish=token_accuracy,
        against=prefix_accuracy(source, texts),
        **shared,
    )
    captions = Captioning(predict=written, source=source, texts=texts, images=images, **shared)
    return {name: accuracy, f"{name}_captions": captions}
