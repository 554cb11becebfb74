"""A loaded checkpoint as one callable: tokenizers → backbones → outputs, as its description says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal.backbone import Backbone
from unimodal.errors import UsageError
from unimodal.generate import Sampling
from unimodal.heads import LogitScale
from unimodal.interop.describe import Description, Output, Tower
from unimodal.interop.stages import Context
from unimodal.interop.writing import write
from unimodal.model import tokenizer_module
from unimodal.tokens import Tokens

Embedded = tuple[Tokens, dict[str, jax.Array]]


@dataclass(frozen=True)
class Origin:
    """The origin of a checkpoint, and what goes back into a saved one unchanged.

    files: file name and its tensors, in order. unused: tensors that no parameter of ours reads; they stay in
    `directory` and are copied from there when the model is saved. fresh: parameters that no tensor filled.
    """

    directory: str  # that the checkpoint was read from
    config: str  # config.json as it stands
    files: tuple[tuple[str, tuple[str, ...]], ...] = ()  # file name and its tensors, in order
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()  # of tensors that are stored in another shape than ours
    unused: tuple[str, ...] = ()  # tensors that no parameter of ours reads; they are copied when the model is saved
    fresh: tuple[str, ...] = ()  # parameters that no tensor filled


class Pretrained(nnx.Module):
    """`tokenizers`, `backbones` and `heads` by name, as in `unimodal.model.Model`, and how they go together."""

    def __init__(self, description: Description, origin: Origin, *, rngs: nnx.Rngs):
        self.description, self.origin = description, origin
        towers = description.towers
        made = {t.name: tokenizer_module(t.kind).Tokenizer(t.tokenizer, t.backbone.width, rngs=rngs) for t in towers}
        self.tokenizers = nnx.Dict(made)
        self.backbones = nnx.Dict({t.name: Backbone(t.backbone, rngs=rngs) for t in towers})
        heads = {}
        for output in description.outputs:
            for stage in output.stages:
                heads |= stage.make(rngs)
        self.heads = nnx.Dict(heads)

    def __call__(
        self,
        *,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        text_types: jax.Array | None = None,
        image: jax.Array | None = None,
        audio: jax.Array | None = None,
        audio_mask: jax.Array | None = None,
        key: jax.Array | None = None,
        capture: Sequence[str] = (),
    ) -> dict[str, jax.Array]:
        """Run the towers whose input is given; wrap it in `jax.jit` for speed.

        text: ids [B,T] int; text_mask: [B,T], 0 at padding; text_types: sentence types [B,T]. image: pixels [B,H,W,C]
        float, normalised as the checkpoint expects (ids [B,T] where its pictures are ids). audio: waveform [B,samples],
        or log-mel frames [B,frames,bins] where the checkpoint reads those; audio_mask [B,samples], 0 at the padding at
        the end. key: turns dropout on. capture: "attention", "hidden" as in `Backbone`.

        Returns, where the checkpoint has them: hidden [B,T,D]; pooled [B,D]; logits (per token, per class, or [images,
        texts]); image_embedding and text_embedding [B,E] of unit length; logit_scale (); patches [B,P,pixels]
        (reconstructed); features, projected and quantised [B,T,·] (speech); attention [L,B,H,T,T] and
        layers [L,B,T,D] if captured. With several towers, what each has is called text_hidden, image_hidden, …; a tower
        that runs alone gives the plain names, too. Raises UsageError for an input that the checkpoint does not take.
        """
        arguments = {"text": text, "image": image, "audio": audio}
        masks = {"text": text_mask, "image": None, "audio": audio_mask}
        d = self.description
        taken = {tower.input for tower in d.towers}
        for name, value in arguments.items():
            if value is not None and name not in taken:
                raise UsageError(f"this checkpoint takes {' and '.join(sorted(taken))}, not {name}")
        running = [tower for tower in d.towers if arguments[tower.input] is not None]
        if not running:
            raise UsageError(f"give the model its input: {' or '.join(f'{name}=…' for name in sorted(taken))}")
        outputs: dict[str, jax.Array] = {}
        keys = [None] * len(running) if key is None else list(jax.random.split(key, len(running)))
        for tower, tower_key in zip(running, keys, strict=True):
            given = Given(arguments[tower.input], masks[tower.input], text_types, tower_key)
            self._run(tower, given, capture, outputs)
        return outputs if len(d.towers) == 1 else self._with_plain_names(running, outputs)

    def generate(
        self,
        *,
        steps: int,
        text: Any = None,
        text_mask: Any = None,
        image: Any = None,
        sampling: Sampling = Sampling(temperature=0.0),
        key: jax.Array | None = None,
        stop: tuple[int, ...] | None = None,
        fill: int = 0,
    ) -> np.ndarray:
        """Write at most `steps` ids after each row: [B,steps] int32, `fill` after a row's stop id.

        text, text_mask: prompts as a call takes them, padded at either end (`image` where a picture is ids). sampling:
        the likeliest ids by default; other kinds need a `key`. stop: None for the ids with which the checkpoint ends a
        text, () for none. Compiled once for all prompts that round up to the same power of two. Raises UsageError for a
        checkpoint that does not predict the next id, an empty prompt, unknown ids, and more ids than it has places.
        """
        ids = image if text is None else text
        if ids is None:
            raise UsageError("give the model its prompt: text=…")
        return write(self, ids, text_mask, key, steps=steps, sampling=sampling, stop=stop, fill=fill)

    def _run(self, tower: Tower, given: Given, capture: Sequence[str], outputs: dict[str, jax.Array]) -> None:
        """Add what one tower computes."""
        tokenizer = self.tokenizers[tower.name]
        embedded, found = EMBED[tower.kind](tokenizer, tower, given)
        hidden, captured = self.backbones[tower.name](embedded, key=given.key, capture=capture)
        names = {"hidden": "layers", "attention": "attention"}
        found |= {"hidden": hidden, **{names[name]: value for name, value in captured.items()}}
        prefix = "" if len(self.description.towers) == 1 else f"{tower.name}_"
        outputs |= {prefix + name: value for name, value in found.items()}
        context = Context(self.heads, tokenizer, given.value, embedded.segment, outputs)
        for output in self.description.outputs:
            if output.tower == tower.name:
                self._add(output, context, prefix, outputs)

    def _add(self, output: Output, context: Context, prefix: str, outputs: dict[str, jax.Array]) -> None:
        starts = (output.start,) if isinstance(output.start, str) else output.start
        starts = tuple(name if name in outputs else prefix + name for name in starts)
        if any(name not in outputs for name in (*starts, *output.needs)):
            return
        x = outputs[starts[0]]
        for other in starts[1:]:
            x = x + outputs[other]
        if len(starts) > 1:
            x = x / len(starts)
        for stage in output.stages:
            x = stage(x, context)
        outputs[output.name] = x

    def _with_plain_names(self, running: Sequence[Tower], outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        for head in (h for h in self.heads.values() if isinstance(h, LogitScale)):
            outputs["logit_scale"] = head.scale
        if len(running) == 1:
            prefix = f"{running[0].name}_"
            plain = ("hidden", "pooled", "layers", "attention")
            outputs |= {name: outputs[prefix + name] for name in plain if prefix + name in outputs}
        return outputs


@dataclass(frozen=True)
class Given:
    """One tower's input."""

    value: Any  # ids, pixels or samples
    mask: jax.Array | None  # [B,T], 0 for padding; None: all is real
    types: jax.Array | None  # [B,T] sentence types; None: none
    key: jax.Array | None  # turns dropout on


def _embed_text(tokenizer: Any, tower: Tower, given: Given) -> Embedded:
    ids = jnp.asarray(given.value)
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UsageError(f"{tower.input} should be ids [B,T] of whole numbers, but is {ids.dtype}{list(ids.shape)}")
    ids, limit = ids.astype(jnp.int32), tower.tokenizer.max_length
    if limit is not None and ids.shape[1] + tower.first_position > limit:
        most = limit - tower.first_position
        raise UsageError(
            f"{tower.input} of {ids.shape[1]} tokens is longer than the {most} places of the position table"
        )
    if given.mask is not None and not tower.masked:
        raise UsageError(
            f"this checkpoint pools the last place of a row, padding or not, and was trained without a mask: leave out "
            f"{tower.input}_mask, and pad to the {limit} places of its position table"
        )
    segment = None if given.mask is None else (jnp.asarray(given.mask) != 0).astype(jnp.int32)
    position = None
    if segment is not None and tower.skip_padding:
        position = jnp.maximum(jnp.cumsum(segment, axis=1) - 1, 0)
    if tower.pad_id is not None:
        real = (ids != tower.pad_id).astype(jnp.int32)
        position = jnp.where(real == 1, jnp.cumsum(real, axis=1) - 1 + tower.first_position, tower.pad_id)
    types = given.types if tower.tokenizer.types else None
    made = tokenizer(ids, causal=tower.causal, segment=segment, position=position, types=types, key=given.key)
    return made, {}


def _embed_image(tokenizer: Any, tower: Tower, given: Given) -> Embedded:
    pixels = jnp.asarray(given.value)
    if tower.input == "audio":  # a spectrogram [B,frames,bins] seen as a picture whose rows are the bins
        pixels = pixels.swapaxes(1, 2)[..., None]
    if pixels.ndim != 4:
        raise UsageError(f"image should be pixels [B,H,W,C], but has the shape {list(pixels.shape)}")
    return tokenizer(pixels, key=given.key), {}


def _embed_audio(tokenizer: Any, tower: Tower, given: Given) -> Embedded:
    waveform = jnp.asarray(given.value)
    if waveform.ndim != 2:
        raise UsageError(f"audio should be waveforms [B,samples], but has the shape {list(waveform.shape)}")
    features = tokenizer.features(waveform)
    lengths = None if given.mask is None else (jnp.asarray(given.mask) != 0).sum(axis=1, dtype=jnp.int32)
    return tokenizer.embed(features, lengths=lengths, key=given.key), {"features": features}


def _embed_spectrogram(tokenizer: Any, tower: Tower, given: Given) -> Embedded:
    return tokenizer(jnp.asarray(given.value), key=given.key), {}


# How each kind of tokenizer is called.
EMBED: Mapping[str, Callable[[Any, Tower, Given], Embedded]] = {
    "text": _embed_text,
    "image": _embed_image,
    "audio": _embed_audio,
    "spectrogram": _embed_spectrogram,
}
