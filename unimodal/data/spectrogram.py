"""Log-mel spectrograms on the host, in float64 inside: Whisper's, and Kaldi's as the spectrogram transformers use it."""

from __future__ import annotations

import functools
import math

import numpy as np

from unimodal.errors import UsageError


def log_mel(samples: np.ndarray, rate: int, *, bins: int = 80, window: int = 400, hop: int = 160) -> np.ndarray:
    """Compute Whisper's features (Radford 2022, §2.2): `[n]` samples in [-1, 1] → float32 `[n // hop, bins]`.

    Periodic Hann windows centred on every `hop`-th sample (the ends mirrored), power, area-normalised mel bands from 0
    to 8 kHz, log10, all that lies 8 (80 dB) below the loudest raised to there, and (x + 4) / 4.

    Raises UsageError for sound that is no longer than half a window.
    """
    if len(samples) <= window // 2:
        raise UsageError(f"{len(samples)} samples are too few for a spectrogram: more than {window // 2} are needed")
    mirrored = np.pad(samples.astype(np.float64), window // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = np.square(np.abs(np.fft.rfft(_frames(mirrored, window, hop)[: len(samples) // hop] * hann)))
    mel = np.log10(np.maximum(power @ _area_bands(rate, window, bins), 1e-10))
    return ((np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


def kaldi_log_mel(samples: np.ndarray, rate: int, *, bins: int = 128) -> np.ndarray:
    """Compute Kaldi's filter banks without dither: `[n]` samples → float32 `[frames, bins]`, natural logarithm.

    Symmetric Hann windows of 25 ms every 10 ms, as many as fit wholly; in each the mean is taken away and
    x[t] - 0.97·x[t-1] emphasises the treble; power over the next power of two; bands from 20 Hz to half the rate that
    are triangles on the mel scale 1127·ln(1 + f/700); at least 2⁻²³ before the logarithm.

    Raises UsageError for sound shorter than one window, and for a rate below 100 Hz.
    """
    window, hop = rate * 25 // 1000, rate // 100
    if hop < 1:
        raise UsageError(f"a rate of {rate} Hz is too low for a spectrogram of 10 ms: at least 100 is needed")
    if len(samples) < window:
        raise UsageError(f"{len(samples)} samples are too few for a spectrogram: one frame takes {window}")
    frames = _frames(samples.astype(np.float64), window, hop)
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - 0.97 * before) * np.hanning(window)
    size = 2 ** math.ceil(math.log2(window))
    power = np.square(np.abs(np.fft.rfft(frames, size)))
    return np.log(np.maximum(power @ _mel_bands(rate, size, bins), np.finfo(np.float32).eps)).astype(np.float32)


def _frames(samples: np.ndarray, window: int, hop: int) -> np.ndarray:
    """`[n]` → `[1 + (n - window) // hop, window]`, a view."""
    return np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]


def _triangles(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """`[F]` places and `[bins + 2]` edges → `[F, bins]`: band b rises from edges[b] to edges[b+1] and falls to edges[b+2]."""
    low, peak, high = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    rising, falling = (places[:, None] - low) / (peak - low), (high - places[:, None]) / (high - peak)
    return np.maximum(0.0, np.minimum(rising, falling))


@functools.lru_cache(maxsize=4)
def _area_bands(rate: int, size: int, bins: int, high: float = 8000.0) -> np.ndarray:
    """`[size // 2 + 1, bins]`: triangles in Hz of area one, edges even on Slaney's mel scale (Auditory Toolbox, 1998)."""
    # 15 mel are 1 kHz; linear below, 27 mel for each factor 6.4 above.
    top = 15.0 + 27.0 * math.log(high / 1000.0) / math.log(6.4) if high >= 1000.0 else high * 0.015
    mel = np.linspace(0.0, top, bins + 2)
    edges = np.where(mel < 15.0, mel / 0.015, 1000.0 * np.exp((mel - 15.0) * (math.log(6.4) / 27.0)))
    places = np.arange(size // 2 + 1) * (rate / size)
    return _triangles(places, edges) * (2.0 / (edges[2:] - edges[:-2]))[None, :]


@functools.lru_cache(maxsize=4)
def _mel_bands(rate: int, size: int, bins: int, low: float = 20.0) -> np.ndarray:
    """`[size // 2 + 1, bins]`: triangles of height one on the mel scale 1127·ln(1 + f/700), edges even on it."""

    def mel(frequency: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)

    edges = np.linspace(mel(low), mel(rate / 2), bins + 2)
    return _triangles(mel(np.arange(size // 2 + 1) * (rate / size)), edges)
