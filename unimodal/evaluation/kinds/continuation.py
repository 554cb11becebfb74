"""Continuation: how well does a language model go on after a prompt? (as LAMBADA and GSM8K ask)"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal import data
from unimodal.data.around import NO_ID
from unimodal.data.blocks import Inputs, Part, Texts, columns
from unimodal.data.encoders import Encoder, encoder_for
from unimodal.data.spec import ArraySpec
from unimodal.data.values import read_all
from unimodal.errors import UsageError
from unimodal.evaluation.answers import METRICS, Answered
from unimodal.evaluation.evaluation import Measured, Reader, Shown, on_own_data
from unimodal.evaluation.likelihood import likelihood_rows
from unimodal.evaluation.samples import Sample, TextSample
from unimodal.generate import Sampling, generate
from unimodal.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """Bits per byte of what really follows a prompt, and how often the model writes just that.

    The prompt is the text of a record, and what follows is in the column `reference`. Without that column a text is cut:
    its first `prompt` ids are the prompt, the next `steps` follow. Answers are compared without the blanks around them,
    up to EOS or `stop`; where neither ends an answer, id by id as far as the reference goes. A reference that does not end
    within `steps` ids counts as wrong.
    """

    name: str = "continuation"  # given by the config
    source: str  # a data source, see `data.sources`
    task: str = "gpt"  # the task of the config whose head `language` writes
    tokenizer: str = "text"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    texts: Texts = Texts()  # the prompts; `length` is not used
    reference: str = ""  # the column of what should follow; "": the rest of the text
    packed: bool = False  # the model was trained on documents between BOS and EOS
    prompt: int = 64  # ids of the prompt, at most; its beginning is cut off where there are more
    steps: int = 32  # ids of what follows, at most
    stop: str = ""  # a text that ends an answer, such as a line break
    score: str = "bits per byte"  # the main metric: bits per byte, or exact match
    temperature: float = 0.0  # of what is written; 0: always the likeliest id
    batch_size: int = 32  # examples at a time
    every: int = 0  # steps between evaluations during training; 0: only at its end

    def __post_init__(self) -> None:
        where = f"evaluations.{self.name}"
        if self.score not in METRICS:
            raise UsageError(f"{where}.score must be one of {', '.join(METRICS)}, but is {self.score!r}")
        if self.prompt < 1 or self.steps < 1:
            raise UsageError(f"{where}: prompt and steps must be 1 or more, but are {self.prompt} and {self.steps}")

    @property
    def metric(self) -> str:
        return self.score

    @property
    def higher_is_better(self) -> bool:
        return self.score == "exact match"

    def inputs(self, model: Model) -> Inputs:
        """`prompt` [prompt] and its true `length`; `ids` [prompt+steps] of both, the `segment` of real ids, and in
        `bytes` the size of each id that is to be foretold, 0 elsewhere; and whether the answer is `whole`."""
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        encoder, row = encoder_for(self.texts.encoder, vocabulary), self.prompt + self.steps
        ids, places = (ArraySpec((n,), np.int32, 0, vocabulary) for n in (self.prompt, row))
        spec = {"prompt": ids, "length": ArraySpec((), np.int32, 1, self.prompt + 1), "ids": places}
        spec |= {"foretold": ArraySpec((row,), np.float32), "bytes": ArraySpec((row,), np.int32, 0, 8)}
        spec |= {"whole": ArraySpec((), np.int32, 0, 2)}

        def make(texts: tuple[str, str | None], _rng: np.random.Generator, _training: bool) -> dict[str, Any]:
            ids, follows, sizes, whole = self._ids(encoder, *texts)
            return {**self._row(encoder, ids, follows, sizes), "whole": np.int32(whole)}

        return columns(self.source, Part(spec, self._read, make))

    def _read(self, record: Mapping[str, Any]) -> tuple[str, str | None]:
        """The prompt, and what should follow, or None where the text is to be cut."""
        other = dataclasses.replace(self.texts, column=self.reference)
        return self.texts.text(record), other.text(record) if self.reference else None

    def _ids(
        self, encoder: Encoder, text: str, reference: str | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Ids of the prompt, those that follow, the bytes of these, and whether they are the whole answer."""
        ids, sizes = encoder.counted(text)
        begin = [i for i in (encoder.BOS,) if self.packed and i != NO_ID]
        if reference is None:
            # A short text is cut in its middle, so that something follows.
            half = min(self.prompt - len(begin), max(1, len(ids) // 2))
            follows, sizes, ids, whole = ids[half:][: self.steps], sizes[half:][: self.steps], ids[:half], True
        else:
            follows, sizes, whole = self._follows(encoder, reference)
        return np.concatenate([begin, ids]).astype(np.int32)[-self.prompt :], follows, sizes, whole

    def _follows(self, encoder: Encoder, reference: str) -> tuple[np.ndarray, np.ndarray, bool]:
        """The first `steps` ids of a reference, their bytes, and whether its answer ends among them."""
        ids, sizes = encoder.counted(reference)
        whole = len(ids) <= self.steps or bool(self.stop) and self.stop in encoder.decode(ids[: self.steps])
        if self.packed and encoder.EOS != NO_ID:
            ids, sizes = np.append(ids, encoder.EOS), np.append(sizes, 0)
        return ids[: self.steps], sizes[: self.steps], whole

    def _row(self, encoder: Encoder, ids: np.ndarray, follows: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
        if not len(ids):
            raise UsageError(f"evaluations.{self.name}: a prompt of {self.source} is empty")
        start, end, row = len(ids), len(ids) + len(follows), self.prompt + self.steps
        foretold = np.zeros(row, np.float32)
        foretold[start:end] = 1
        whole, bytes_ = np.concatenate([ids, follows]), np.concatenate([np.zeros(start), sizes])
        return {
            "prompt": data.fit_length(ids, self.prompt, pad_id=encoder.PAD).astype(np.int32),
            "length": np.int32(start),
            "ids": data.fit_length(whole, row, pad_id=encoder.PAD).astype(np.int32),
            "foretold": foretold,
            "bytes": data.fit_length(bytes_, row).astype(np.int32),
        }

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Count the likelihood of what follows (see `likelihood_rows`), and write ids [B,steps], as `made`."""
        head = model.heads[self.task]["language"] if "language" in model.heads.get(self.task, {}) else None
        if head is None:
            raise UsageError(f"evaluations.{self.name}.task={self.task!r} has no head `language` that could write")
        tokenizer, backbone = model.tokenizers[self.tokenizer], model.backbones[self.backbone]
        hidden, _ = model.hidden(self.tokenizer, self.backbone, batch["ids"], causal=True)
        # Each place foretells the id after it.
        targets, weights, sizes = (jnp.roll(batch[name], -1, axis=1) for name in ("ids", "foretold", "bytes"))
        factors, chunk = head.factors(hidden, tokenizer.table), self.prompt + self.steps
        counted = likelihood_rows(factors, targets, weights, sizes, chunk=chunk)
        encoder, prompt = self.texts.opened, (batch["prompt"], batch["length"])
        options: dict[str, Any] = dict(steps=self.steps, sampling=Sampling(temperature=self.temperature))
        options |= dict(stop=(encoder.EOS,) if self.packed and encoder.EOS != NO_ID else (), fill=encoder.PAD)
        made = generate(backbone, tokenizer, head, *prompt, jax.random.key(0), **options)
        return {**counted, "made": made, **{name: batch[name] for name in ("ids", "length", "whole")}}

    @property
    def answered(self) -> Answered:
        """The evaluation itself."""
        return Answered(
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            **on_own_data(self),
            against=self.baseline,
            matches=self.matches,
        )

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        return self.answered.measure(model, reader, limit=limit)

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        return self.answered.value_of(sums)

    def answer(self, ids: np.ndarray) -> str:
        """The text of ids up to EOS or `stop`, as it is compared."""
        encoder = self.texts.opened
        ends = np.flatnonzero(ids == encoder.EOS) if self.packed else np.zeros(0, int)
        text = encoder.decode(ids[: ends[0]] if len(ends) else ids)
        return (text.split(self.stop)[0] if self.stop else text).strip()

    def compared(self, ids: np.ndarray) -> str | tuple[int, ...]:
        """An answer as it is compared: its text where something ends it, else its ids."""
        return self.answer(ids) if self.stop or (self.packed and self.reference) else tuple(int(i) for i in ids)

    def matches(self, made: np.ndarray, truth: np.ndarray) -> bool:
        """True if the model wrote exactly the reference."""
        return _same(self.compared(made), self.compared(truth))

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        """For exact match the commonest answer of training, where there are answers; else the untrained model."""
        if self.score == "exact match" and self.reference:
            encoder, answers = self.texts.opened, dict[str, list[str | tuple[int, ...] | None]]()
            for split in ("train", "validation"):
                read = read_all(data.open_source(self.source, split), self._read)
                found = (self._follows(encoder, str(reference)) for _, reference in read)
                answers[split] = [self.compared(ids) if whole else None for ids, _, whole in found]
            common = Counter(answer for answer in answers["train"] if answer not in (None, ())).most_common(1)
            right = [
                bool(common) and answer is not None and _same(common[0][0], answer) for answer in answers["validation"]
            ]
            return float(np.mean(right)), "the commonest answer"
        return untrained["value"], "the untrained model"

    def samples(self, model: Model, shown: Shown) -> Sequence[Sample]:
        """Prompts with what the model wrote after them, and what really follows."""
        encoder, found = self.texts.opened, []
        for made, ids, start, count in zip(*(shown.rows[n] for n in ("made", "ids", "length", "tokens")), strict=True):
            prompt, truth = ids[:start], ids[start : start + int(count)]
            again = (("steps", self.steps), ("temperature", self.temperature))
            found.append(TextSample(*(encoder.decode(part) for part in (prompt, made, truth)), again=again))
        return found


def _same(made: str | tuple[int, ...], truth: str | tuple[int, ...]) -> bool:
    """Compare texts as a whole, and ids as far as the truth goes. Nothing is no continuation."""
    return made == truth if isinstance(truth, str) else bool(truth) and made[: len(truth)] == truth
