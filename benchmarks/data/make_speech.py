"""Makes the embedded speech set: some minutes of recorded Russian with transcripts, as Ogg Opus.

    python benchmarks/data/make_speech.py raw/ [--out unimodal/data/embedded/speech]

Re-running gives the same records: the one random field of the container, the Ogg stream's serial number, is
replaced by a hash of the utterance's name.
"""

from __future__ import annotations

import argparse
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import soundfile

from unimodal.data.sources import write_array_record

VOICE = Path("usr/share/festival/voices/russian/msu_ru_nsh_clunits")
RATE = 16_000
MINUTES = 12.0
LAST = 200  # utterances are numbered in reading order; the first two hundred read one public-domain novel
COMPRESSION = 0.974  # libsndfile's scale from 0 (256 kbit/s) to 1 (6 kbit/s)
LINE = re.compile(r'\(\s*(?P<id>\S+)\s+"(?P<text>.*)"\s*\)')


def load(raw: Path) -> list[dict[str, Any]]:
    """Utterances in reading order until MINUTES are full."""
    voice = raw / "festvox-ru" / VOICE
    records: list[dict[str, Any]] = []
    seconds = 0.0
    for line in (voice / "etc" / "txt.done.data").read_text("utf-8").splitlines():
        match = LINE.fullmatch(line.strip())
        if match is None or int(match["id"].rsplit("_", 1)[1]) > LAST or seconds >= MINUTES * 60:
            continue
        samples, rate = soundfile.read(voice / "wav" / f"{match['id']}.wav", dtype="float32")
        assert rate == RATE and samples.ndim == 1, (match["id"], rate, samples.shape)
        seconds += len(samples) / rate
        audio = encode_opus(samples, serial=zlib.crc32(match["id"].encode()))
        records.append(
            {"id": match["id"], "audio": audio, "rate": RATE, "text": match["text"].replace("+", "").strip()}
        )
    print(f"{len(records)} utterances, {seconds / 60:.2f} minutes")
    return records


def encode_opus(samples: Any, serial: int) -> bytes:
    """float32 mono at RATE as Ogg Opus with the given stream serial number."""
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
    return with_serial(out.getvalue(), serial)


def with_serial(data: bytes, serial: int) -> bytes:
    """The same Ogg stream with another serial number in every page, checksums made anew (RFC 3533, section 6)."""
    pages = bytearray(data)
    start = 0
    while start < len(pages):
        assert pages[start : start + 4] == b"OggS", start
        segments = pages[start + 26]
        stop = start + 27 + segments + sum(pages[start + 27 : start + 27 + segments])
        struct.pack_into("<I", pages, start + 14, serial)
        struct.pack_into("<I", pages, start + 22, 0)
        struct.pack_into("<I", pages, start + 22, ogg_checksum(pages[start:stop]))
        start = stop
    return bytes(pages)


def _checksum_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ 0x04C11DB7 if value & 0x80000000 else value << 1
        table.append(value & 0xFFFFFFFF)
    return table


CHECKSUMS = _checksum_table()


def ogg_checksum(page: bytes | bytearray) -> int:
    """CRC-32 with polynomial 0x04c11db7, start 0, bits not reflected."""
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ CHECKSUMS[(value >> 24) ^ byte]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder that fetch.py filled")
    parser.add_argument("--out", type=Path, default=Path("unimodal/data/embedded/speech"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = load(arguments.raw)
    for name, wanted in (("train", False), ("validation", True)):
        chosen = [record for index, record in enumerate(records) if (index % 10 == 9) == wanted]
        count = write_array_record(arguments.out / f"{name}.array_record", chosen)
        print(f"{name}: {count} utterances, {sum(len(record['audio']) for record in chosen)} bytes of Opus")


if __name__ == "__main__":
    main()
