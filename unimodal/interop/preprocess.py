"""Preprocessing for a checkpoint: strings, pictures and sounds → the arrays that `Pretrained` is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.configuration import nearest
from unimodal.data.tokenizer_files import NoTokenizer
from unimodal.errors import UsageError
from unimodal.interop.describe import Fields
from unimodal.interop.files import read_json
from unimodal.interop.load import resolve
from unimodal.interop.preprocess_audio import EXTRACTORS, AudioSteps, Sound, to_waveforms
from unimodal.interop.preprocess_image import PROCESSORS, ImageSteps, Picture, load_image
from unimodal.interop.preprocess_text import Strings, TextEncoder, load_text

_SUFFIXES = ("Fast", "Pil", "ImageProcessor", "FeatureExtractor")
# The processor of a family whose file does not name one.
_BY_MODEL_TYPE = {
    "vit": "ViT",
    "vit_mae": "ViT",
    "deit": "DeiT",
    "beit": "Beit",
    "clip": "CLIP",
    "siglip": "Siglip",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "imagegpt": "ImageGPT",
    "wav2vec2": "Wav2Vec2",
    "hubert": "Wav2Vec2",
    "whisper": "Whisper",
    "audio-spectrogram-transformer": "AST",
}


@dataclass(frozen=True)
class Preprocessor:
    """Call it with raw text, pictures or sound, and the model with what it gives: `model(**preprocessor(text="…"))`."""

    directory: str  # of the checkpoint
    text: TextEncoder | None = None  # encoder of texts; None: the checkpoint has none
    image: ImageSteps | None = None  # steps of a picture; None: none
    audio: AudioSteps | None = None  # steps of a sound; None: none
    missing: Mapping[str, str] = field(default_factory=dict)  # why one of them is None, by name

    def __call__(
        self,
        *,
        text: Strings | None = None,
        image: Picture | Sequence[Picture] | None = None,
        audio: Sound | Sequence[Sound] | None = None,
        rate: int | None = None,
        max_length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Numpy arrays by the names of the model's arguments, one row for each text, picture and sound.

        text: a string, or a list of strings and of pairs of strings (tuples). Shorter ones are padded, longer ones are
        cut only if max_length, in tokens with the special ones, is given. → text, text_mask, text_types (if the model
        has sentence types), int32 [B,T]. A model that was trained without a mask gets full-length rows and no mask.

        image: a picture of Pillow, uint8 [H,W,3], a path or encoded bytes, or a list of them. Transparency is laid over
        white. → image, float32 [B,H,W,3]; ids, int32 [B,H·W], where the model's pictures are ids.

        audio: samples [n] or [n,channels] (averaged), floats in [-1, 1], int16 or int32, or a path, or a list of them,
        or an array [B,n]. rate: of the samples, a must unless they come from files; sound at another rate than the
        checkpoint's is resampled, which is logged once. → audio, float32 [B,samples], or log-mel [B,frames,bins];
        audio_mask, int32 [B,samples], if the model takes one.

        Raises UsageError where the checkpoint has no such input, and for what cannot be read.
        """
        found: dict[str, np.ndarray] = {}
        if text is None and image is None and audio is None:
            raise UsageError("give the preprocessor something: text=…, image=… or audio=…")
        if text is not None:
            found |= self._need(self.text, "text")(text, max_length)
        if image is not None:
            found["image"] = self._need(self.image, "image")(image)
        if audio is not None:
            steps = self._need(self.audio, "audio")
            found |= steps(to_waveforms(audio, rate, steps.rate))
        return found

    @property
    def rate(self) -> int:
        """Samples in a second of the sound that the model takes. Raises UsageError where it takes none."""
        return self._need(self.audio, "audio").rate

    def decode(self, ids: Any) -> str | list[str]:
        """Ids [T] → a string, [B,T] → a list of strings, without the special tokens. Raises UsageError as for text."""
        return self._need(self.text, "text").decode(ids)

    def _need(self, part: Any, name: str) -> Any:
        if part is None:
            raise UsageError(self.missing.get(name, f"{self.directory} has no preprocessing of {name}"))
        return part


def load_preprocessor(path: str | Path) -> Preprocessor:
    """The preprocessing of the checkpoint in a directory (or of a hub name, as in `load_huggingface`).

    Pictures and sound as preprocessor_config.json (or processor_config.json) says; text through `tokenizers`, which
    `pip install 'unimodal[interop]'` brings, from tokenizer.json, vocab.txt, or vocab.json and merges.txt.

    Raises UsageError if the directory has neither, for an unknown kind of processor, and for damaged files.
    """
    directory = resolve(path)
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory; give that of a Hugging Face checkpoint")
    config = directory / "config.json"
    model = Fields(read_json(config) if config.exists() else {}, str(config))
    parts: dict[str, Any] = {}
    missing: dict[str, str] = {}
    parts |= load_steps(directory, model)
    # Go on without a tokenizer where pictures or sound can be prepared, and remember why.
    try:
        parts["text"] = load_text(directory, model)
    except NoTokenizer as error:
        if not parts:
            raise UsageError(f"{error}; and no preprocessor_config.json") from None
        missing["text"] = str(error)
    for name in ("image", "audio"):
        missing[name] = f"{directory} has no preprocessor_config.json that says how {name} is prepared"
    return Preprocessor(str(directory), **parts, missing=missing)


def load_steps(directory: Path, model: Fields) -> dict[str, ImageSteps | AudioSteps]:
    """The steps of "image" and "audio", as far as the directory says them; `model` is its config.json."""
    found: dict[str, ImageSteps | AudioSteps] = {}
    for section in _sections(directory):
        name = _processor(section, model)
        if name in PROCESSORS:
            found["image"] = load_image(name, section)
        else:
            found["audio"] = EXTRACTORS[name](section)
    return found


def _sections(directory: Path) -> list[Fields]:
    """The settings of each processor: a file of its own, or parts of processor_config.json."""
    own, joint = directory / "preprocessor_config.json", directory / "processor_config.json"
    found = [Fields(read_json(own), str(own))] if own.exists() else []
    if not found and joint.exists():
        whole = Fields(read_json(joint), str(joint))
        found = [whole.part(key) for key in ("image_processor", "feature_extractor") if whole.raw(key)]
    return found


def _processor(section: Fields, model: Fields) -> str:
    """Which of our processors. Raises UsageError for one that we have not."""
    known = [*PROCESSORS, *EXTRACTORS]
    said = section.raw("image_processor_type") or section.raw("feature_extractor_type")
    if said is None:
        kind = str(model.raw("model_type"))
        if kind in _BY_MODEL_TYPE:
            return _BY_MODEL_TYPE[kind]
        raise UsageError(f"{section.where} names no image_processor_type, and model_type {kind!r} has none of its own")
    name = str(said)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    if name not in known:
        raise UsageError(f"{section.where}: the processor {said!r} is not supported; {nearest(name, known)}")
    return name
