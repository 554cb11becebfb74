"""Speech on the host: bytes to a waveform, and wav2vec 2.0's span masks."""

from __future__ import annotations

import functools
import io
import logging
import math

import numpy as np
import soundfile

from unimodal.errors import UsageError

logger = logging.getLogger(__name__)


def decode_audio(data: bytes, rate: int, *, name: str = "audio") -> np.ndarray:
    """Sound as float32 mono `[samples]` in [-1, 1] at `rate` Hz.

    Reads what libsndfile reads: wav, flac, Ogg Vorbis and Opus, mp3. Channels are averaged and other rates resampled;
    that is logged, once. Sound without a single sample stays empty.

    Raises UsageError, naming `name`, when the bytes are not sound.
    """
    try:
        samples, found_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise UsageError(f"{name}: not a sound libsndfile can read ({error})") from error
    if samples.shape[1] > 1:
        _say_once(f"sound of {samples.shape[1]} channels is averaged to one")
    if found_rate != rate:
        _say_once(f"sound of {found_rate} Hz is resampled to {rate} Hz")
    if not len(samples):
        return np.zeros(0, np.float32)
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    # Resampling and lossy codecs can overshoot full scale by a hair; the promise is [-1, 1].
    return np.clip(resample(mono, found_rate, rate), -1.0, 1.0)


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s (said once)", text)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """float32 `[n]` at `from_rate` to `[ceil(n * to_rate / from_rate)]` at `to_rate`, polyphase with anti-aliasing."""
    if from_rate == to_rate:
        return samples
    # Here and not above: scipy.signal takes most of a second to import, and 16 kHz data never needs it.
    from scipy.signal import resample_poly

    common = math.gcd(from_rate, to_rate)
    return resample_poly(samples, to_rate // common, from_rate // common).astype(np.float32)


def normalize(samples: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the whole of `samples`, float32; silence stays finite (variance + 1e-7)."""
    if not len(samples):
        return samples
    centred = samples - samples.mean(dtype=np.float64).astype(np.float32)
    return centred / np.sqrt(np.mean(np.square(centred)) + np.float32(1e-7))


def crop_or_pad(samples: np.ndarray, length: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
    """`[length]` samples and how many of them are real: longer sound is cropped, shorter is padded with zeros.

    The crop starts at a uniformly drawn place, or at the beginning when `rng` is None.
    """
    spare = len(samples) - length
    start = int(rng.integers(0, spare + 1)) if rng is not None and spare > 0 else 0
    kept = samples[start : start + length]
    out = np.zeros(length, dtype=samples.dtype)
    out[: len(kept)] = kept
    return out, len(kept)


def span_mask(
    frames: int,
    rng: np.random.Generator,
    probability: float,
    length: int,
    min_masks: int = 0,
    valid: int | None = None,
) -> np.ndarray:
    """Which frames wav2vec 2.0 masks: bool `[frames]` (Baevski et al. 2020, section 3.1).

    `probability` is the expected number of masked frames *if spans never overlapped*, as a share of the valid frames:
    `probability * valid / length` span starts are drawn without replacement, each masking `length` frames. That is
    Hugging Face's `mask_time_prob` and fairseq's `mask_prob`. The paper's p is the share of frames that are starts,
    p = probability / length: its p = 0.065 with M = 10 is `probability=0.65`. Spans may overlap, so about
    1 - exp(-probability) of the frames end up masked: 0.48 for 0.65.

    Args:
      frames: length of the result.
      probability: as above, in [0, 1].
      length: frames per span (the paper's M).
      min_masks: lower bound on the number of spans, as far as they fit.
      valid: frames that are not padding (default all). Spans lie wholly inside `[0, valid)`.

    The number of starts is rounded up or down at random, so that its expectation is exact, and never exceeds
    `valid // length` (nor the number of places a span can start). Raises UsageError for a length below 1, a
    probability outside [0, 1], or `valid` outside `[0, frames]`.
    """
    valid = frames if valid is None else valid
    if length < 1:
        raise UsageError(f"span length must be at least 1 frame, found {length}")
    if not 0.0 <= probability <= 1.0:
        raise UsageError(f"span probability must be in [0, 1], found {probability}")
    if not 0 <= valid <= frames:
        raise UsageError(f"valid frames must be in 0 … {frames}, found {valid}")
    mask = np.zeros(frames, dtype=bool)
    spans = int(probability * valid / length + rng.random())
    spans = min(max(spans, min_masks), valid // length)
    if spans == 0:
        return mask
    starts = rng.choice(valid - length + 1, spans, replace=False)
    mask[(starts[:, None] + np.arange(length)).reshape(-1)] = True
    return mask
