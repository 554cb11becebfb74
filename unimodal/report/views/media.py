"""Pictures and sounds as files inside the page."""

import base64
import io
import math
import struct
import wave
import zlib

import numpy as np

_PICTURE_SIDE = 112


def reduced(image: np.ndarray) -> np.ndarray:
    """Large pictures shrunk by a whole factor, by averaging; small ones as they are (the page enlarges them)."""
    fold = math.ceil(max(image.shape[:2]) / _PICTURE_SIDE)
    if fold == 1 or min(image.shape[:2]) < fold:
        return image
    rows, columns = image.shape[0] // fold, image.shape[1] // fold
    blocks = image[: rows * fold, : columns * fold].reshape(rows, fold, columns, fold, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def png_uri(pixels: np.ndarray) -> str:
    return data_uri("image/png", encode_png(pixels))


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 [H, W, 3] (RGB) or [H, W, 4] (RGBA): signature, IHDR, one IDAT, IEND (RFC 2083)."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    left = np.pad(rows, ((0, 0), (channels, 0)))[:, :-channels]
    packed = []
    for kind, content in ((0, rows), (1, rows - left)):  # filter "none" suits flat drawings, "sub" suits photographs
        lines = np.concatenate([np.full((height, 1), kind, np.uint8), content], axis=1)
        packed.append(zlib.compress(lines.tobytes(), 9))
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", min(packed, key=len)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def encode_wav(waveform: np.ndarray, rate: int) -> bytes:
    """A 16-bit mono WAV file of float [S] in [-1, 1]; what is louder is scaled down, what is not finite is silence."""
    values = np.nan_to_num(waveform, nan=0.0, posinf=0.0, neginf=0.0)
    loudest = max(1.0, float(np.abs(values).max(initial=0.0)))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes((values / loudest * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()
