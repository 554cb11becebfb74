"""Sound → waveforms or log-mel frames, as a checkpoint's preprocessor_config.json has them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unimodal.data.audio import decode_audio, normalize, resample, to_mono
from unimodal.data.spectrogram import kaldi_log_mel, log_mel
from unimodal.errors import UsageError
from unimodal.interop.describe import Fields

logger = logging.getLogger(__name__)
Sound = np.ndarray | Sequence[float] | str | Path


class AudioSteps(Protocol):
    @property
    def rate(self) -> int:
        """Samples a second that the checkpoint was trained on."""
        ...

    def __call__(self, waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Float32 waveforms at `rate`, of any lengths → audio and, where the model takes it, audio_mask."""
        ...


@dataclass(frozen=True)
class Waveforms:
    """Samples as they are (wav2vec 2.0, HuBERT) → audio [B,samples], padded at the end, and audio_mask.

    normalize: to zero mean and unit variance: each sound by itself if the model takes a mask, else the padded row, which
    then depends on the longest of the batch. So have the checkpoints without a mask always been fed; where it matters,
    give them one sound at a time.
    """

    rate: int  # samples in a second
    normalize: bool  # see above
    mask: bool  # the model takes one
    padding: float = 0.0  # value that fills up shorter sounds

    def __call__(self, waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        rows = [normalize(w) for w in waveforms] if self.normalize and self.mask else waveforms
        audio = np.full((len(rows), max(map(len, rows))), self.padding, np.float32)
        mask = np.zeros(audio.shape, np.int32)
        for i, row in enumerate(rows):
            audio[i, : len(row)], mask[i, : len(row)] = row, 1
        if self.mask:
            return {"audio": audio, "audio_mask": mask}
        return {"audio": np.stack([normalize(row) for row in audio]) if self.normalize else audio}


@dataclass(frozen=True)
class LogMel:
    """Whisper: exactly `samples` of sound, padded with silence or cut → audio [B,samples // hop,bins]."""

    rate: int  # samples in a second
    bins: int  # of the mel scale
    window: int  # samples of one Fourier transform
    hop: int  # samples from frame to frame
    samples: int  # of the whole input
    padding: float = 0.0  # value that fills up shorter sounds

    def __call__(self, waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        made = []
        for waveform in waveforms:
            if len(waveform) > self.samples:
                _say_cut(f"{self.samples / self.rate:g} s")
            row = np.full(self.samples, self.padding, np.float32)
            kept = waveform[: self.samples]
            row[: len(kept)] = kept
            made.append(log_mel(row, self.rate, bins=self.bins, window=self.window, hop=self.hop))
        return {"audio": np.stack(made)}


@dataclass(frozen=True)
class FilterBank:
    """The audio spectrogram transformer: `frames` of 10 ms, padded with zeros or cut, minus mean, over twice the
    deviation (Gong 2021, §2.1; None: neither) → audio [B,frames,bins]."""

    rate: int  # samples in a second
    bins: int  # of the mel scale
    frames: int  # of the whole input
    normal: tuple[float, float] | None  # mean and deviation of the log-mel values

    def __call__(self, waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        audio = np.zeros((len(waveforms), self.frames, self.bins), np.float32)
        for i, waveform in enumerate(waveforms):
            made = kaldi_log_mel(waveform, self.rate, bins=self.bins)
            if len(made) > self.frames:
                _say_cut(f"{self.frames} frames")
            audio[i, : len(made)] = made[: self.frames]
        if self.normal is not None:
            mean, deviation = self.normal
            audio = (audio - np.float32(mean)) / np.float32(2 * deviation)
        return {"audio": audio}


def _waveforms(fields: Fields) -> AudioSteps:
    fields.only("feature_size", 1)
    fields.only("padding_side", "right")
    return Waveforms(
        fields.get("sampling_rate", 16000),
        fields.get("do_normalize", True),
        fields.get("return_attention_mask", False),
        fields.get("padding_value", 0.0),
    )


def _log_mel(fields: Fields) -> AudioSteps:
    fields.only("dither", 0, 0.0)
    rate = fields.get("sampling_rate", 16000)
    return LogMel(
        rate,
        fields.get("feature_size", 80),
        fields.get("n_fft", 400),
        fields.get("hop_length", 160),
        fields.get("chunk_length", 30) * rate,
        fields.get("padding_value", 0.0),
    )


def _filter_bank(fields: Fields) -> AudioSteps:
    normal = fields.get("mean", -4.2677393), fields.get("std", 4.5689974)
    return FilterBank(
        fields.get("sampling_rate", 16000),
        fields.get("num_mel_bins", 128),
        fields.get("max_length", 1024),
        normal if fields.get("do_normalize", True) else None,
    )


EXTRACTORS: Mapping[str, Callable[[Fields], AudioSteps]] = {
    "Wav2Vec2": _waveforms,
    "Whisper": _log_mel,
    "AST": _filter_bank,
}


def to_waveforms(audio: Sound | Sequence[Sound], rate: int | None, wanted: int) -> list[np.ndarray]:
    """One sound or a list of them, as float32 mono at `wanted` Hz.

    A sound is samples [n], or [n, channels], whose channels are averaged; floats in [-1, 1], or int16 or int32, which are
    scaled to that; or a path of a file, which knows its own rate. An array [B,n] is B sounds.

    Raises UsageError without a `rate`, for sound that is empty, not finite or of another shape.
    """
    several = isinstance(audio, np.ndarray) and audio.ndim == 2
    if several and audio.shape[0] > audio.shape[1]:  # pyright: ignore[reportAttributeAccessIssue]
        raise UsageError(
            f"an array of sounds should be [B,samples], but is {_brief(audio)}; put one of many channels in a list"
        )
    if isinstance(audio, list | tuple):
        several = not (audio and isinstance(audio[0], int | float | np.number))
    sounds: Sequence[Any] = audio if several else [audio]  # pyright: ignore[reportAssignmentType]
    if not len(sounds):
        raise UsageError("audio is an empty list; give at least one sound")
    return [_to_waveform(sound, rate, wanted, f"audio {i}") for i, sound in enumerate(sounds)]


def _to_waveform(sound: Sound, rate: int | None, wanted: int, name: str) -> np.ndarray:
    if isinstance(sound, str | Path):
        path = Path(sound).expanduser()
        if not path.is_file():
            raise UsageError(f"{name}: there is no file {path}")
        return _checked(decode_audio(path.read_bytes(), wanted, name=str(path)), name)
    if rate is None or isinstance(rate, bool) or rate <= 0:
        raise UsageError(f"give audio with its rate: rate={wanted} (samples a second), or what it was recorded at")
    samples = _checked(to_mono(np.asarray(sound), name), name)
    if rate == wanted:
        return samples
    _say_resampled(rate, wanted)
    return resample(samples, rate, wanted)


def _checked(samples: np.ndarray, name: str) -> np.ndarray:
    if not samples.size:
        raise UsageError(f"{name} is empty: it has no samples")
    if not np.isfinite(samples).all():
        raise UsageError(f"{name} has samples that are not finite")
    return samples


def _brief(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}"


@functools.cache
def _say_resampled(rate: int, wanted: int) -> None:
    """Once for each pair of rates."""
    logger.warning("audio at %d Hz is resampled to %d Hz, the rate of the checkpoint", rate, wanted)


@functools.cache
def _say_cut(what: str) -> None:
    logger.warning("audio is longer than the %s that the checkpoint takes; the rest is cut off", what)
