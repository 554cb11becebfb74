"""Sound on the host: bytes or arrays to a waveform, and wav2vec 2.0's span masks."""

from __future__ import annotations

import functools
import io
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import soundfile

from unimodal.errors import RecordError, UsageError

logger = logging.getLogger(__name__)


_PIECE = 1 << 16  # samples that are summed in float32
MOST_RATE = 1_000_000
"""Samples a second, at most: the filter that resamples holds twenty values for each."""
MOST_SAMPLES = 1 << 30
"""Samples of one sound, all its channels together, at most: four gigabytes, or three hours at 44.1 kHz in stereo."""
_MOST_CHANNELS = 8  # in arrays, where more of them than samples would be an array that lies on its side


def decode_audio(
    data: bytes | np.ndarray, rate: int, *, name: str = "audio", found_rate: int | None = None
) -> np.ndarray:
    """Sound as float32 mono `[samples]` at `rate` Hz; full scale is [-1, 1].

    Reads what libsndfile reads: wav, flac, Ogg Vorbis and Opus, mp3; or an array, see `to_mono`, recorded at
    `found_rate`. Whole numbers are scaled to full scale; floats stay as they are, also those beyond it. Channels are
    averaged and other rates resampled; that is logged, once. Sound without a single sample stays empty.

    Raises RecordError, naming `name`, when the bytes are not sound, for samples that are not finite or beyond 2³¹, for
    more than MOST_SAMPLES, and for a rate beyond MOST_RATE; UsageError for one that is missing.
    """
    if isinstance(data, np.ndarray):
        if found_rate is None:
            raise UsageError(f"{name}: its samples come without a rate; say it under 'rate', or by tfds:NAME?rate=HZ")
        mono, channels, bounded = to_mono(data, name), data.shape[1] if data.ndim == 2 else 1, False
    else:
        mono, found_rate, channels, bounded = _read(data, name)
    if channels > 1:
        _say_once(f"sound of {channels} channels is averaged to one")
    try:
        made = resample(mono, found_rate, rate)
    except UsageError as error:
        raise RecordError(f"{name}: {error}") from None
    if found_rate != rate and len(mono):
        _say_once(f"sound of {found_rate} Hz is resampled to {rate} Hz")
    elif bounded:
        return made
    peak = float(np.maximum(made.max(initial=0.0), -made.min(initial=0.0)))
    if not peak <= 2.0**31:  # nor if it is not a number
        raise RecordError(f"{name}: it has samples that are not finite, or far beyond full scale (a peak of {peak:g})")
    if peak > 2.0:
        _say_once("sound of floats reaches beyond twice full scale, which is 1; it is taken as it is")
    return made


def decode_sound(record: Mapping[str, Any], rate: int) -> dict[str, Any]:
    """The record with its "audio" as float32 mono at `rate` Hz and that "rate"; its id is named if that fails."""
    found = record.get("rate")
    return {**record, "audio": decode_audio(record["audio"], rate, name=record["id"], found_rate=found), "rate": rate}


class _File(io.BytesIO):
    def __repr__(self) -> str:
        """As libsndfile's errors name it: without the address, equal damage has equal reasons."""
        return "the file"

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Stay at the start where a damaged file leads before it: an exception would be printed, from C, and no more."""
        return super().seek(max(0, offset) if whence == io.SEEK_SET else offset, whence)


def sound_rate(data: bytes, name: str) -> int:
    """Samples a second, as the header says. Raises RecordError when the bytes are not sound."""
    # Two common headers say it at a fixed place; libsndfile takes a tenth of a decoder's time to say the same.
    if data[:4] == b"RIFF" and data[8:16] == b"WAVEfmt " and (rate := int.from_bytes(data[24:28], "little")):
        return rate
    if data[:5] == b"fLaC\0" and (rate := int.from_bytes(data[18:21], "big") >> 4):
        return rate
    return _header(data, name)[1]


def sound_length(data: bytes | np.ndarray, rate: int, name: str, found_rate: int | None = None) -> int:
    """Count the samples that `decode_audio` gives at `rate` Hz. Only the header is read."""
    frames, found = (len(data), found_rate or rate) if isinstance(data, np.ndarray) else _header(data, name)
    return math.ceil(frames * rate / found)


def _header(data: bytes, name: str) -> tuple[int, int]:
    """Samples of each channel, and the rate."""
    try:
        found = soundfile.info(_File(data))
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise RecordError(f"{name} is not a sound libsndfile can read") from error
    return found.frames, found.samplerate


def _read(data: bytes, name: str) -> tuple[np.ndarray, int, int, bool]:
    """The channels' mean, the rate, the number of channels, and whether samples cannot be beyond full scale."""
    try:
        with soundfile.SoundFile(_File(data)) as file:
            rate, channels, subtype = file.samplerate, file.channels, file.subtype
            if file.frames * channels > MOST_SAMPLES:  # a header may promise any number
                raise RecordError(f"{name}: sound of more than {MOST_SAMPLES:,} samples; cut it into pieces")
            # Scale samples of 16 bits here: libsndfile takes five times as long, for the same numbers (not of FLAC).
            dtype = "int16" if subtype == "PCM_16" and file.format != "FLAC" else "float32"
            # In one go: soundfile seeks after every read, which for lossy formats is not exact.
            samples = file.read(dtype=dtype, always_2d=True)
            if dtype == "int16":
                samples = np.multiply(samples, np.float32(2**-15), dtype=np.float32)
    except UsageError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise RecordError(f"{name}: not a sound libsndfile can read ({' '.join(str(error).split())})") from error
    # A shorter file than its header says leaves a view of a larger array, which would live as long as the samples.
    whole = samples if samples.base is None else samples.copy()
    bounded = subtype.startswith("PCM_") or subtype in ("ULAW", "ALAW")
    return whole.reshape(-1) if channels == 1 else whole.mean(axis=1), rate, channels, bounded


def to_mono(samples: np.ndarray, name: str) -> np.ndarray:
    """An array [samples] or [samples,channels] as float32 [samples], the channels' mean.

    int16 and int32 are divided by 2¹⁵ and 2³¹. So is int64, in which TFDS and numpy hold numbers of 16 bits, by 2¹⁵.
    Raises UsageError, naming `name`, for another shape or dtype, and for int64 of more than 16 bits.
    """
    found = f"{samples.dtype}{list(samples.shape)}"
    if samples.ndim == 2 and (samples.shape[0] <= samples.shape[1] or samples.shape[1] > _MOST_CHANNELS):
        raise UsageError(f"{name} should be [samples] or [samples,channels], but is {found}; transpose it?")
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fi" or samples.dtype.itemsize == 1:
        wanted = "floats in [-1, 1], int16 or int32, [samples] or [samples,channels]"
        raise UsageError(f"{name} should be {wanted}, but is {found}")
    if samples.dtype.kind == "i":
        full = 2.0**31 if samples.dtype.itemsize == 4 else 2.0**15
        if samples.dtype.itemsize == 8 and samples.size and not -full <= samples.min() <= samples.max() < full:
            raise UsageError(f"{name}: int64 samples of more than 16 bits; give them as int32 or float32")
        samples = samples / full
    samples = samples.astype(np.float32)
    return samples if samples.ndim == 1 else samples.mean(axis=1)


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s (said once)", text)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """float32 `[n]` at `from_rate` to `[ceil(n * to_rate / from_rate)]` at `to_rate`, polyphase with anti-aliasing.

    Raises UsageError for a rate that is no whole number from 1 to MOST_RATE, and for a result beyond MOST_SAMPLES.
    """
    for rate in (from_rate, to_rate):
        if not (1 <= rate <= MOST_RATE and rate == int(rate)):
            raise UsageError(f"a rate of {rate} Hz; expected a whole number from 1 to {MOST_RATE}")
    if from_rate == to_rate or not len(samples):
        return samples
    if len(samples) * to_rate > MOST_SAMPLES * from_rate:
        raise UsageError(f"{len(samples)} samples at {from_rate} Hz are more than {MOST_SAMPLES:,} at {to_rate} Hz")
    # Here and not above: scipy.signal takes most of a second to import, and 16 kHz data never needs it.
    from scipy.signal import resample_poly

    from_rate, to_rate = int(from_rate), int(to_rate)
    common = math.gcd(from_rate, to_rate)
    return resample_poly(samples, to_rate // common, from_rate // common).astype(np.float32)


def normalize(samples: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the whole of `samples`, float32; silence stays finite (variance + 1e-7)."""
    if not len(samples):
        return samples
    centred = samples - samples.mean()
    # No array of squares; and sums of pieces, as one long sum in float32 drifts (8e-5 in ten minutes of 16 kHz).
    pieces = (centred[i : i + _PIECE] for i in range(0, len(centred), _PIECE))
    variance = np.float32(sum(float(np.dot(piece, piece)) for piece in pieces) / len(centred))
    return np.divide(centred, np.sqrt(variance + np.float32(1e-7)), out=centred)


def crop_or_pad(samples: np.ndarray, length: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
    """`[length]` samples and how many of them are real: longer sound is cropped, shorter is padded with zeros.

    The crop starts at a uniformly drawn place, or at the beginning when `rng` is None.
    """
    spare = len(samples) - length
    start = int(rng.integers(0, spare + 1)) if rng is not None and spare > 0 else 0
    kept = samples[start : start + length]
    if len(kept) == length:
        return kept, length
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
