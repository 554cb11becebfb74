"""A published checkpoint as a task that can be asked: what its outputs are decides what it can answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from unimodal.answers import (
    IMAGE,
    SOUND,
    TEXT,
    Answer,
    Asked,
    class_answer,
    embedding_answer,
    transcript_answer,
    zero_shot_answer,
)
from unimodal.answers.classes import ranked, value_answer
from unimodal.answers.texts import HOLE, guessed, written_after
from unimodal.data.audio import decode_audio
from unimodal.data.blocks.inputs import find_column
from unimodal.data.pictures import decode_image
from unimodal.data.text import text_of
from unimodal.errors import UsageError
from unimodal.generate import Sampling, generate
from unimodal.heads import LogitScale, pool
from unimodal.interop import Preprocessor, Pretrained, load_huggingface, load_preprocessor
from unimodal.interop.describe import Output, Tower
from unimodal.interop.stages import Dense, Last, MaskedVocabulary, Pool, Vocabulary
from unimodal.interop.writing import end_ids, writer
from unimodal.use.inputs import OBVIOUS

LONGEST = 4096  # ids of a text, for a model without a position table
KINDS = {"text": TEXT, "image": IMAGE, "audio": SOUND}


def published_task(
    directory: Path, mesh: Mesh | None, dtype: str | None
) -> tuple[Pretrained, str, Any, dict[str, Any]]:
    """The model of a directory, a name for what it does, the task, and its config.json. Raises UsageError as its parts do."""
    model = load_huggingface(directory, mesh=mesh, dtype=dtype)
    config = json.loads(model.origin.config)
    try:
        preprocessor = load_preprocessor(directory)
    except UsageError as error:  # weights alone can be embedded and exported, but not asked
        preprocessor = Preprocessor(str(directory), missing=dict.fromkeys(("text", "image", "audio"), str(error)))
    name = str(config.get("model_type", "published")).replace("-", "_")
    return model, name, PublishedTask(name, preprocessor, config), config


@dataclass(frozen=True)
class Characters:
    """Characters of a published CTC model, whose blank has been moved to the front."""

    shown: Mapping[int, str]  # the model's own class → its characters; others spell nothing
    blank: int  # the model's own class of the blank, which is its padding

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids without blanks, with one space between words."""
        own = (i - 1 if i <= self.blank else i for i in map(int, ids))
        return " ".join("".join(self.shown.get(i, "") for i in own).split())


@dataclass(frozen=True)
class PublishedTask:
    """Answers for the outputs of a checkpoint."""

    name: str  # its model_type
    preprocessor: Preprocessor  # strings, pictures and sounds as the checkpoint was trained with them
    config: Mapping[str, Any]  # its config.json

    def answers(self, model: Pretrained, asked: Asked) -> list[Answer]:
        towers = {tower.name: tower for tower in model.description.towers}
        outputs = {output.name: output for output in model.description.outputs}
        found: list[Answer] = []
        if "logits" in outputs and len(towers) == 1:
            (tower,) = towers.values()
            found += self._of_logits(model, tower, outputs["logits"], asked)
        if asked.classes:
            found += self._zero_shot(outputs, asked)
        for tower in towers.values():
            found.append(embedding_answer(KINDS[tower.input], self._row(tower), _embedding(tower, outputs)))
        return found

    def _of_logits(self, model: Pretrained, tower: Tower, output: Output, asked: Asked) -> list[Answer]:
        row, reads = self._row(tower), KINDS[tower.input]
        logits = lambda m, batch: m(**batch)["logits"]  # noqa: E731
        stages = output.stages
        if any(isinstance(stage, Vocabulary) for stage in stages):
            return [self._continuation(model, tower, asked)] if tower.causal and tower.input == "text" else []
        if any(isinstance(stage, MaskedVocabulary) for stage in stages):
            return [self._masked(row, logits, asked)]
        if output.start != "hidden" or any(isinstance(stage, Pool | Last) for stage in stages):
            return [self._classes(reads, self._labels(output), row, logits, asked.top)]
        if tower.input == "audio":
            return [self._transcript(row, tower, logits, asked.beam)]
        return [self._tokens(row, reads, logits, self._labels(output), asked)] if tower.input == "text" else []

    def _row(self, tower: Tower) -> Any:
        if tower.input == "text":
            most = (tower.tokenizer.max_length or LONGEST) - tower.first_position

            def row(record: Mapping[str, Any]) -> dict[str, Any]:
                return _filled(self.preprocessor(text=_text(record), max_length=most), most)
        elif tower.input == "image":
            return self._picture
        else:

            def row(record: Mapping[str, Any]) -> dict[str, Any]:
                found = record[find_column(record, "", OBVIOUS[SOUND], "a sound")]
                rate = self.preprocessor.rate
                audio = decode_audio(found, rate, name=str(record["id"]), found_rate=record.get("rate"))
                if not len(audio):
                    raise UsageError("the recording is empty")
                made = self.preprocessor(audio=audio, rate=rate)
                return _filled(made, None) if "audio_mask" in made else {n: v[0] for n, v in made.items()}

        return row

    def _picture(self, record: Mapping[str, Any]) -> dict[str, Any]:
        found = record[find_column(record, "", OBVIOUS[IMAGE], "a picture")]
        pixels = decode_image(found, name=str(record["id"]))
        return {name: value[0] for name, value in self.preprocessor(image=pixels).items()}

    def _labels(self, output: Output) -> list[str]:
        """id2label of config.json, or numbers where it has none."""
        said = self.config.get("id2label") or {}
        count = next((s.outputs for s in reversed(output.stages) if isinstance(s, Dense)), len(said))
        return [str(said.get(str(i), i)) for i in range(max(count, len(said)))]

    def _classes(self, reads: str, names: Sequence[str], row: Any, logits: Any, top: int) -> Answer:
        """Read the logits as the pipelines of transformers do, by problem_type and the number of labels."""
        kind = self.config.get("problem_type")
        if kind == "regression":
            return value_answer(reads, names, row, logits)
        alone = kind == "multi_label_classification" or len(names) == 1
        return class_answer(reads, names, row, logits, chances=jax.nn.sigmoid if alone else jax.nn.softmax, top=top)

    def _zero_shot(self, outputs: Mapping[str, Output], asked: Asked) -> list[Answer]:
        if not {"image_embedding", "text_embedding"} <= outputs.keys():
            return []
        sentences = [asked.template.replace("{}", name) for name in asked.classes]
        given = self.preprocessor(text=sentences)
        rows = [{name: value[i] for name, value in given.items()} for i in range(len(sentences))]
        see = self._picture

        def chances(model: Pretrained, similarity: jax.Array) -> jax.Array:
            scale = next(h for h in model.heads.values() if isinstance(h, LogitScale))
            # With a bias every pair was judged by itself (Zhai 2023, §3.2).
            return (jax.nn.softmax if scale.bias is None else jax.nn.sigmoid)(scale(similarity))

        texts = lambda m, batch: m(**batch)["text_embedding"]  # noqa: E731
        images = lambda m, batch: m(image=batch["image"])["image_embedding"]  # noqa: E731
        made = zero_shot_answer(
            asked.classes, rows, see, embed_texts=texts, embed=images, chances=chances, top=asked.top
        )
        return [made]

    def _continuation(self, model: Pretrained, tower: Tower, asked: Asked) -> Answer:
        ends, head, encoder = end_ids(model.origin), writer(model)[1], self.preprocessor.text
        more: dict[str, Any] = dict(stop=ends, fill=ends[0] if ends else 0)

        # The tokenizer cuts, so that a special token at the beginning stays.
        ending = replace(self.preprocessor, text=encoder and replace(encoder, cut_left=True))

        def read(record: Mapping[str, Any], most: int) -> np.ndarray:
            made = ending(text=_text(record), max_length=most)
            return made["text"][made.get("text_mask", np.ones_like(made["text"])) != 0]

        def write(model: Pretrained, prompt: Any, lengths: Any, keys: Any, steps: int, sampling: Sampling) -> jax.Array:
            parts: Any = (model.backbones[tower.name], model.tokenizers[tower.name], model.heads[head])
            run: Any = generate
            return run(*parts, prompt, lengths, keys, steps=steps, sampling=sampling, **more)

        return written_after(read, self._decode, tower.tokenizer.max_length or LONGEST, write, asked)

    def _masked(self, read: Any, logits: Any, asked: Asked) -> Answer:
        encoder = self.preprocessor.text
        mask = "" if encoder is None else _mask_token(encoder.tokenizer)
        hole = -1 if encoder is None else encoder.tokenizer.token_to_id(mask)

        def row(record: Mapping[str, Any]) -> dict[str, Any]:
            made = read({"id": record["id"], "text": _text(record).replace(HOLE, mask)})
            if not (made["text"] == hole).any():
                raise UsageError(f"nothing to guess: write {HOLE} in the place of each token")
            return made

        piece = lambda i: self._decode(np.asarray([i])) or str(i)  # noqa: E731
        return guessed(row, "text", hole, logits, asked, decode=self._decode, surface=piece)

    def _decode(self, ids: Any) -> str:
        return str(self.preprocessor.decode(ids))

    def _transcript(self, row: Any, tower: Tower, logits: Any, beam: int) -> Answer:
        characters = self._characters()

        def blank_first(model: Pretrained, batch: Mapping[str, jax.Array]) -> jax.Array:
            z, blank = logits(model, batch), characters.blank
            return jnp.concatenate([z[..., blank : blank + 1], z[..., :blank], z[..., blank + 1 :]], axis=-1)

        def frames(_: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            audio, mask = batch["audio"], batch.get("audio_mask")
            samples = jnp.full(len(audio), audio.shape[1], jnp.int32) if mask is None else (mask != 0).sum(axis=1)
            return tower.tokenizer.frames(samples.astype(jnp.int32))

        return transcript_answer(lambda: characters, row, blank_first, frames, beam=beam)

    def _characters(self) -> Characters:
        path = Path(self.preprocessor.directory) / "vocab.json"
        if not path.exists():
            raise UsageError(f"{path} is not there, so nobody knows what its classes spell")
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
        special = lambda piece: len(piece) > 1 and piece[0] in "<["  # noqa: E731
        shown = {int(i): " " if piece == "|" else str(piece) for piece, i in vocabulary.items() if not special(piece)}
        return Characters(shown, int(self.config.get("pad_token_id") or 0))

    def _tokens(self, row: Any, reads: str, logits: Any, names: Sequence[str], asked: Asked) -> Answer:
        def predict(model: Pretrained, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
            real, found = batch.get("text_mask", jnp.ones_like(batch["text"])), logits(model, batch)
            chance = (jax.nn.sigmoid if found.shape[-1] == 1 else jax.nn.softmax)(found.astype(jnp.float32))
            return {"ids": batch["text"], "real": real, "chance": chance}

        def say(found: Mapping[str, Any]) -> dict[str, Any]:
            places = np.flatnonzero(found["real"] != 0)
            piece = lambda k: self.preprocessor.decode(found["ids"][k : k + 1])  # noqa: E731
            told = [{"token": piece(k), **ranked(names, found["chance"][k], 1)} for k in places if piece(k)]
            return {
                "tokens": [{"token": t["token"], "class": t["class"], "probability": t["probability"]} for t in told]
            }

        return Answer("class of each token", reads, row, predict, say)


def _text(record: Mapping[str, Any]) -> str:
    text = text_of(dict(record), (find_column(record, "", OBVIOUS[TEXT], "a text"),))
    if not text.strip():
        raise UsageError("the text is empty")
    return text


def _embedding(tower: Tower, outputs: Mapping[str, Output]) -> Any:
    """Its embedding where the checkpoint has one, else what it pools, else the mean of the real tokens."""
    name = next(
        (n for n in (f"{tower.input}_embedding", "pooled") if n in outputs and outputs[n].tower == tower.name), ""
    )

    def embed(model: Pretrained, batch: Mapping[str, jax.Array]) -> jax.Array:
        call: Any = model
        found = call(**batch)
        return found[name] if name else pool(found["hidden"], "mean", _segment(batch, found["hidden"]))

    return embed


def _segment(batch: Mapping[str, jax.Array], hidden: jax.Array) -> jax.Array | None:
    mask = batch.get("text_mask")
    return mask if mask is not None and mask.shape[1] == hidden.shape[1] else None


def _filled(made: Mapping[str, Any], most: int | None) -> dict[str, Any]:
    """One row, padded at its end to a power of two, which the mask hides. Without a mask it stays as it is."""
    rows = {name: value[0] for name, value in made.items()}
    if not any(name.endswith("_mask") for name in rows):
        return rows
    size = len(next(iter(rows.values())))
    width = max(16, 1 << (size - 1).bit_length())
    width = size if most is not None and width > most else width
    return {name: np.concatenate([v, np.zeros(width - size, v.dtype)]) for name, v in rows.items()}


def _mask_token(tokenizer: Any) -> str:
    found = next((token for token in ("[MASK]", "<mask>") if tokenizer.token_to_id(token) is not None), None)
    if found is None:
        raise UsageError("its vocabulary has no [MASK] and no <mask>")
    return found
