"""Makes the embedded speech set: some minutes of recorded Russian with transcripts and time marks, as Ogg Opus.

    python tools/make_speech.py raw/ [--out unimodal/data/embedded/speech]

Re-running gives the same records: the one random field of the container, the Ogg stream's serial number, is
replaced by a hash of the utterance's name.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
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
PAUSE = "pau"
MARGIN = 60  # milliseconds of pause that a phrase keeps on either side
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
        text = match["text"].replace("+", "").strip()
        marks = phones(voice / "lab" / f"{match['id']}.lab")
        known = {"phones": marks, "phrases": phrases(marks, text)}
        records.append({"id": match["id"], "audio": audio, "rate": RATE, "text": text, **known})
    found = sum(len(record["phrases"]) for record in records)
    print(f"{len(records)} utterances, {seconds / 60:.2f} minutes, {found} phrases")
    return records


def phones(path: Path) -> list[list[Any]]:
    """[start, end, phone] in milliseconds, of lines "END_IN_SECONDS COLOUR PHONE" after a "#"."""
    marks, start = [], 0
    for line in path.read_text("ascii").splitlines():
        if len(fields := line.split()) == 3:
            end = round(1000 * float(fields[0]))
            marks.append([start, end, fields[2]])
            start = end
    return marks


def phrases(marks: list[list[Any]], text: str) -> list[list[Any]]:
    """[start, end, text] in milliseconds: what stands between commas, where it is spoken between pauses.

    Phrases and the runs of phones between pauses are laid side by side in order, one with one, several phrases with one
    run or one phrase with several runs, so that letters and phones agree in number as well as they can. Nothing is
    returned for an utterance in which a phrase and its run differ by more than a fourth and three.
    """
    runs: list[tuple[int, int, int]] = []  # start, end, phones
    for pause, group in itertools.groupby(marks, key=lambda mark: mark[2] == PAUSE):
        if not pause and (run := list(group)):
            runs.append((run[0][0], run[-1][1], len(run)))
    parts = [part.strip() for part in re.split(r"[,.:!?]+(?:\s*-(?=\s))?|\s-\s", text) if part.strip(" -")]
    sizes = [sum(c.isalpha() and c not in "ьъЬЪ" for c in part) for part in parts]

    @functools.cache
    def best(i: int, j: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Least disagreement of parts[i:] and runs[j:], and how many of each are taken together."""
        if i == len(parts) and j == len(runs):
            return 0, ()
        found = (10**6, ())
        for a, b in [(1, 1), *((a, 1) for a in range(2, 6)), *((1, b) for b in range(2, 4))]:
            if i + a <= len(parts) and j + b <= len(runs):
                letters, heard = sum(sizes[i : i + a]), sum(run[2] for run in runs[j : j + b])
                if abs(letters - heard) <= 3 + heard / 4:
                    cost, rest = best(i + a, j + b)
                    found = min(found, (abs(letters - heard) + cost, ((a, b), *rest)))
        return found

    made, i, j = [], 0, 0
    for a, b in best(0, 0)[1]:
        before = runs[j - 1][1] if j else 0
        after = runs[j + b][0] if j + b < len(runs) else marks[-1][1]
        # A little of the pauses around, but never more than half, which is the neighbour's.
        start = max(runs[j][0] - MARGIN, (before + runs[j][0]) // 2)
        end = min(runs[j + b - 1][1] + MARGIN, (runs[j + b - 1][1] + after) // 2)
        made.append([start, end, " ".join(parts[i : i + a])])
        i, j = i + a, j + b
    return made


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
