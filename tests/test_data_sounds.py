"""Sounds of every kind of file and array, against the same samples computed by hand; and what is refused."""

from __future__ import annotations

import logging
import struct
import tracemalloc

import numpy as np
import pytest

from unimodal.data import audio, decode_audio, decode_sound, resample, segments
from unimodal.errors import UsageError

RATE = 8000


def riff(body: bytes, code: int, channels: int, bits: int, rate: int = RATE) -> bytes:
    """A wav file, by hand: the chunks `fmt ` and `data`."""
    step = channels * bits // 8
    head = struct.pack("<HHIIHH", code, channels, rate, rate * step & 0xFFFFFFFF, step, bits)
    chunks = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def test_every_sample_format_is_scaled_to_full_scale() -> None:
    bytes8 = np.array([0, 64, 128, 192, 255], np.uint8)  # 8 bits are unsigned, 128 is silence
    np.testing.assert_array_equal(decode_audio(riff(bytes8.tobytes(), 1, 1, 8), RATE), (bytes8 - 128.0) / 128)
    int16 = np.array([-32768, -1, 0, 1, 32767], np.int16)
    np.testing.assert_array_equal(decode_audio(riff(int16.tobytes(), 1, 1, 16), RATE), int16 / 32768.0)
    int24 = np.array([-(2**23), -5, 0, 2**22, 2**23 - 1], np.int32)
    packed = b"".join(int(v).to_bytes(3, "little", signed=True) for v in int24)
    np.testing.assert_allclose(decode_audio(riff(packed, 1, 1, 24), RATE), int24 / 2.0**23, rtol=1e-7)
    int32 = int24 * 256
    np.testing.assert_allclose(decode_audio(riff(int32.tobytes(), 1, 1, 32), RATE), int32 / 2.0**31, rtol=1e-7)
    for kind in (np.float32, np.float64):
        floats = np.array([-4.5, -1, 0, 0.1, 3.25], kind)
        found = decode_audio(riff(floats.tobytes(), 3, 1, floats.itemsize * 8), RATE)
        np.testing.assert_array_equal(found, floats.astype(np.float32))


def test_mu_law_is_what_the_standard_says() -> None:
    # ITU-T G.711: sign, exponent, mantissa of the inverted byte; 14 bits, so 4 to the left of 16.
    codes = np.arange(256, dtype=np.uint8)
    flipped = (~codes).astype(int) & 0xFF
    exponent, mantissa = flipped >> 4 & 7, flipped & 15
    size = (((2 * mantissa + 33) << exponent) - 33) * 4
    expected = np.where(flipped & 0x80, -size, size) / 32768.0
    np.testing.assert_array_equal(decode_audio(riff(codes.tobytes(), 7, 1, 8), RATE), expected)


def test_channels_empty_sounds_and_high_rates() -> None:
    six = np.arange(30, dtype=np.int16).reshape(5, 6) * 1000
    np.testing.assert_allclose(decode_audio(riff(six.tobytes(), 1, 6, 16), RATE), six.mean(axis=1) / 32768, rtol=1e-6)
    for rate in (RATE, 44_100):
        assert decode_audio(riff(b"", 1, 2, 16), rate).shape == (0,)
    time = np.arange(19_200) / 192_000
    fast = np.sin(2 * np.pi * 300 * time).astype(np.float32)
    slow = decode_audio(riff(fast.tobytes(), 3, 1, 32, 192_000), 16_000)
    np.testing.assert_allclose(slow[50:-50], fast[::12][50:-50], atol=2e-3)


def test_arrays_are_sounds_where_their_rate_is_known() -> None:
    wave = np.array([-32768, 0, 16384, 32767], np.int16)
    for array in (wave, wave.astype(np.int64), wave.astype(np.int32) * 65536):
        np.testing.assert_array_equal(decode_audio(array, RATE, found_rate=RATE), wave / 32768.0)
    loud = np.array([0.5, -3.0], np.float64)
    record = decode_sound({"id": "a", "audio": loud, "rate": RATE, "text": "x"}, RATE)
    np.testing.assert_array_equal(record.pop("audio"), loud.astype(np.float32))
    assert record == {"id": "a", "rate": RATE, "text": "x"}
    stereo = np.array([[1, 3], [5, 7], [0, 2]], np.int16)
    np.testing.assert_array_equal(decode_audio(stereo, RATE, found_rate=RATE), np.array([2, 6, 1]) / 32768)
    half = decode_sound({"id": "a", "audio": np.zeros(100), "rate": 2 * RATE}, RATE)
    assert half["audio"].shape == (50,) and half["rate"] == RATE
    for array, rate, message in (
        (wave, None, "its samples come without a rate; say it under 'rate', or by tfds:NAME"),
        (wave.astype(np.int64) * 2, RATE, "int64 samples of more than 16 bits; give them as int32 or float32"),
        (stereo.T, RATE, "should be .* transpose it"),
        (np.zeros((2, 2, 2)), RATE, r"should be .* but is float64\[2, 2, 2\]"),
    ):
        with pytest.raises(UsageError, match=f"^gtzan/7:? {message}"):
            decode_sound({"id": "gtzan/7", "audio": array, "rate": rate}, RATE)


def test_samples_that_are_no_numbers_are_refused_by_name() -> None:
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        floats = np.zeros(4000, np.float32)
        floats[1234] = bad
        for rate in (RATE, 16_000):
            with pytest.raises(UsageError, match="^cry.wav: it has samples that are not finite, or far beyond"):
                decode_audio(riff(floats.tobytes(), 3, 1, 32), rate, name="cry.wav")


@pytest.mark.parametrize("rate", [2_147_483_647, 1_000_003, 0])
def test_a_rate_beyond_reason_takes_no_memory(rate: int) -> None:
    data = riff(bytes(2000), 1, 1, 16, rate)
    tracemalloc.start()
    with pytest.raises(UsageError, match="^long.wav: "):
        decode_audio(data, 16_000, name="long.wav")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    if rate:
        with pytest.raises(UsageError, match=f"^a rate of {rate} Hz; expected a whole number from 1 to 1000000"):
            resample(np.zeros(10, np.float32), rate, 16_000)


def test_lengths_beyond_reason_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="^a.wav: 67109 samples at 1 Hz are more than 1,073,741,824 at 16000 Hz"):
        decode_audio(riff(bytes(2 * 67_109), 1, 1, 16, 1), 16_000, name="a.wav")
    monkeypatch.setattr(audio, "MOST_SAMPLES", 1000)
    assert len(decode_audio(riff(bytes(2000), 1, 2, 16), RATE)) == 500
    with pytest.raises(UsageError, match="^a.wav: sound of more than 1,000 samples; cut it into pieces"):
        decode_audio(riff(bytes(2004), 1, 2, 16), RATE, name="a.wav")


def test_loud_floats_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    audio._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for peak in (1.5, 3.0, 4.0):
            decode_audio(np.array([peak, 0]), RATE, found_rate=RATE, name=str(peak))
    assert [record.message for record in caplog.records] == [
        "sound of floats reaches beyond twice full scale, which is 1; it is taken as it is (said once)"
    ]


def test_marks_that_cannot_be_cut_are_refused() -> None:
    def cut(*marks: object) -> list[dict[str, object]]:
        source = [{"id": "r", "audio": np.zeros(RATE, np.float32), "words": list(marks)}]
        found = segments(source, lambda record: record, "words", RATE)  # pyright: ignore[reportArgumentType]
        return [found[i] for i in range(len(found))]

    assert len(cut([0, 500, "a"], [500, 1000, "b"])) == 2
    for mark, message in (
        ([500, 400, "a"], "r: words: a mark from 500 to 400 ms; expected 0 ≤ start ≤ end"),
        ([-1, 400, "a"], "r: words: a mark from -1 to 400 ms"),
        ([0, 400], r"r: words: a mark should be \[start, end, text\], times in milliseconds, but is \[0, 400\]"),
        ("a", "r: words: a mark should be"),
        ([1500, 1600, "a"], r"r: the mark at 1500 ms lies behind its end \(8000 samples\)"),
    ):
        with pytest.raises(UsageError, match=f"^{message}"):
            cut(mark)
