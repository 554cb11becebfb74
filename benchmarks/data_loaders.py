"""Examples a second of our pipeline beside torch's DataLoader and WebDataset's reader, on the same files, in one process.

    pip install torch webdataset
    python benchmarks/data_loaders.py [--cases=jpeg,large,wav,flac,text,wds] [--workers=0] [--rounds=7]
    python benchmarks/data_loaders.py --scaling          # our worker processes, one and two
    python benchmarks/data_loaders.py --memory=50000     # batches, with the memory of the process as they go by

The two do the same work with the same libraries (Pillow, libsndfile, scipy): a random crop resized to 224², a mirror image,
floats; ten seconds of 16 kHz sound, normalised; rows of 1,024 bytes of packed documents. They take turns; the ratio is the median
of the rounds' ratios. Nothing decoded is kept. Without workers, seconds are those of the
processor, of one core.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from unimodal.data import cache, train_batches
from unimodal.data.blocks import Images, Labels, Sounds, Texts, columns
from unimodal.data.blocks.documents import document_rows
from unimodal.data.image import random_box

SIZE, RATE, SECONDS, LENGTH = 224, 16_000, 10, 1024
CROP = (0.25, 1.0)
CHANCE = np.random.default_rng(0)  # of torch's side; made once, as making one takes 19 µs


def picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Something that a JPEG of a photograph is about as large as: smooth, with some noise."""
    small = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8))


def write_pictures(folder: Path, count: int, height: int, width: int, copies: int = 16) -> list[Path]:
    """Pictures of two classes."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng, height, width).save(path, quality=90)
        made.append(path)
    return made + [linked(path, copy) for copy in range(1, copies) for path in made]


def linked(path: Path, copy: int) -> Path:
    """Another name of a file: sets are of thousands of files, which need not differ."""
    other = path.with_stem(f"{path.stem}-{copy}")
    other.hardlink_to(path)
    return other


def write_sounds(folder: Path, count: int, ending: str) -> list[Path]:
    """Ten seconds each of something like a voice."""
    rng, made = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        time_ = np.arange(SECONDS * RATE) / RATE
        wave = sum(np.sin(2 * np.pi * f * time_ + rng.random()) / f for f in rng.uniform(80, 3000, 8))
        sound = 0.3 * wave / np.abs(wave).max() + rng.normal(0, 0.005, len(time_))
        path = folder / f"{i:04}.{ending}"
        soundfile.write(path, sound.astype(np.float32), RATE, "PCM_16")
        made.append(path)
    return made + [linked(path, copy) for copy in range(1, 32) for path in made]


# ---- torch's side: what a careful user would write ----------------------------------------------------------------


class Pictures:
    """torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize, as its Pillow backend does them."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.made(self.paths[index].read_bytes()), index % 2

    @staticmethod
    def made(data: bytes) -> Any:
        """Encoded bytes → float tensor [3,H,W]."""
        import torch  # pyright: ignore[reportMissingImports]

        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
        left, top, right, bottom = random_box(image.height, image.width, CHANCE, scale=CROP)
        image = image.crop((round(left), round(top), round(right), round(bottom)))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(0.5).div_(0.5)


class Recordings:
    """soundfile to floats, normalised as wav2vec 2.0's feature extractor does."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        samples, _ = soundfile.read(self.paths[index], dtype="float32")
        audio = torch.from_numpy(samples[: SECONDS * RATE])
        return (audio - audio.mean()) / torch.sqrt(audio.var(unbiased=False) + 1e-7), len(audio)


class Rows:
    """Rows that are packed already, each a dict of arrays, which DataLoader's default_collate stacks."""

    def __init__(self, rows: list[dict[str, np.ndarray]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.rows[index]


def theirs(dataset: Any, batch: int, workers: int) -> Iterator[Any]:
    """Endless batches of torch's DataLoader."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    options: dict[str, Any] = dict(batch_size=batch, shuffle=True, drop_last=True, num_workers=workers)
    loader = torch.utils.data.DataLoader(dataset, persistent_workers=workers > 0, **options)
    while True:
        yield from loader


def webdataset(shard: Path, batch: int) -> Iterator[Any]:
    """Endless batches of WebDataset's reader."""
    import torch  # pyright: ignore[reportMissingImports]
    import webdataset as wds  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    made = wds.WebDataset(str(shard), shardshuffle=False).shuffle(100).to_tuple("jpg", "cls")
    made = made.map_tuple(Pictures.made, lambda label: int(label)).batched(batch, partial=False)
    while True:
        yield from made


# ---- the cases ------------------------------------------------------------------------------------------------------


def pictures_of(folder: Path, height: int, width: int, workers: int) -> tuple[Iterator[Any], Iterator[Any], int]:
    paths = write_pictures(folder, 256, height, width)
    return ours_of_pictures(f"folder:{folder}", workers), theirs(Pictures(paths), 32, workers), 32


def ours_of_pictures(source: str, workers: int) -> Iterator[Any]:
    labels = Labels(classes=("a", "b"))
    made = columns(source, Images(crop=CROP, flip=0.5).part((SIZE, SIZE)), labels.part(source))
    return train_batches(made.dataset("train"), batch_size=32, seed=0, prefetch=False, workers=workers)


def sounds_of(folder: Path, ending: str, workers: int) -> tuple[Iterator[Any], Iterator[Any], int]:
    paths = write_sounds(folder, 64, ending)
    made = columns(f"folder:{folder}", Sounds(rate=RATE, seconds=SECONDS).part())
    ours = train_batches(made.dataset("train"), batch_size=16, seed=0, prefetch=False, workers=workers)
    return ours, theirs(Recordings(paths), 16, workers), 16


def texts_of(folder: Path, workers: int) -> tuple[Iterator[Any], Iterator[Any], int]:
    rng, folder = np.random.default_rng(0), folder / "texts"
    folder.mkdir(parents=True)
    lines = ("{" + f'"text": "{"word " * int(n)}"' + "}\n" for n in rng.integers(1, 190, 20_000))
    (folder / "train.jsonl").write_text("".join(lines))
    made = document_rows(f"jsonl:{folder}/train.jsonl", Texts(length=LENGTH), 264, packed=True).dataset("train")
    rows = [{n: a for n, a in made.source[i].items() if n != "id"} for i in range(len(made))]
    ours = train_batches(made, batch_size=32, seed=0, prefetch=False, workers=workers)
    return ours, theirs(Rows(rows), 32, workers), 32


def shards_of(folder: Path, workers: int) -> tuple[Iterator[Any], Iterator[Any], int]:
    paths, shard = write_pictures(folder / "files", 256, 375, 500, copies=8), folder / "train.tar"
    with tarfile.open(shard, "w") as tar:
        for i, path in enumerate(paths):
            tar.dereference = True
            tar.inodes.clear()  # pyright: ignore[reportAttributeAccessIssue]  # hard links as files of their own
            tar.add(path, f"{i:04}.jpg")
            label = tarfile.TarInfo(f"{i:04}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(str(i % 2).encode()))
    labels = Labels(classes=("0", "1"))
    source = f"wds:{shard}"
    made = columns(source, Images(crop=CROP, flip=0.5).part((SIZE, SIZE)), labels.part(source))
    ours = train_batches(made.dataset("train"), batch_size=32, seed=0, prefetch=False, workers=workers)
    return ours, webdataset(shard, 32), 32


CASES: dict[str, tuple[str, Callable[[Path, int], tuple[Iterator[Any], Iterator[Any], int]]]] = {
    "jpeg": ("JPEG 224² → 224²", lambda folder, workers: pictures_of(folder, 224, 224, workers)),
    "large": ("JPEG 500×375 → 224²", lambda folder, workers: pictures_of(folder, 375, 500, workers)),
    "photo": ("JPEG 4000×3000 → 224²", lambda folder, workers: photos_of(folder, workers)),
    "wav": ("10 s WAV", lambda folder, workers: sounds_of(folder, "wav", workers)),
    "flac": ("10 s FLAC", lambda folder, workers: sounds_of(folder, "flac", workers)),
    "text": ("packed text, 1,024", texts_of),
    "wds": ("JPEG 500×375 in a tar", shards_of),
}


def photos_of(folder: Path, workers: int) -> tuple[Iterator[Any], Iterator[Any], int]:
    paths = write_pictures(folder, 8, 3000, 4000, copies=64)
    labels, source = Labels(classes=("a", "b")), f"folder:{folder}?stratify=label"
    made = columns(source, Images(crop=CROP, flip=0.5).part((SIZE, SIZE)), labels.part(source))
    ours = train_batches(made.dataset("train"), batch_size=8, seed=0, prefetch=False, workers=workers)
    return ours, theirs(Pictures(paths), 8, workers), 8


def rate(batches: Iterator[Any], size: int, seconds: float, clock: Callable[[], float] = time.process_time) -> float:
    """Examples a second of this process's processor time, so that other work on the machine does not count; or by another
    clock, where other processes make them."""
    began, count = clock(), 0
    while clock() - began < seconds:
        next(batches)
        count += size
    return count / (clock() - began)


def compare(case: str, workers: int, rounds: int, seconds: float) -> None:
    name, make = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        ours, others, size = make(Path(folder), workers)
        for batches in (ours, others):
            for _ in range(2 + 4 * workers):
                next(batches)
        clock = time.perf_counter if workers else time.process_time
        pairs = [(rate(ours, size, seconds, clock), rate(others, size, seconds, clock)) for _ in range(rounds)]
        close = getattr(ours, "close", None)
        if close is not None and workers:
            close()
    ratios = sorted(a / b for a, b in pairs)
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    middle = statistics.median(ratios)
    print(f"| {name} | {mine:,.0f} | {other:,.0f} | {middle:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) |", flush=True)


def processor_seconds(pids: list[int]) -> float:
    """What processes have used of the processor so far, in user and system mode."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def scaling(rounds: int, seconds: float) -> None:
    """One and two worker processes, in turns: examples a second, and what the workers and this process spend on each."""
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), 256, 375, 500)
        found = []
        for _ in range(rounds):
            row = []
            for workers in (1, 2):
                batches: Any = ours_of_pictures(f"folder:{folder}", workers)
                for _ in range(4 * workers):
                    next(batches)
                pids = list(batches._pool._processes)
                before, own, began = processor_seconds(pids), time.process_time(), time.perf_counter()
                count = 0
                while time.perf_counter() - began < seconds:
                    next(batches)
                    count += 32
                spent = time.perf_counter() - began
                row += [count / spent, 1e3 * (processor_seconds(pids) - before) / count]
                row.append(1e3 * (time.process_time() - own) / count)
                batches.close()
            found.append(row)
            print(
                "1 worker {:,.0f} examples/s ({:.2f} + {:.2f} ms), 2 workers {:,.0f} ({:.2f} + {:.2f} ms)".format(*row)
            )
    one, worker, _, two, both, parent = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"wall {two / one:.2f}; on two cores of their own {2 * worker / (both + parent):.2f}", flush=True)


def memory(count: int) -> None:
    """Memory of this process while batches of small pictures go by; nothing is kept but what is in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(64):
            path = Path(folder) / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            picture(np.random.default_rng(i), 32, 32).save(path)
        source, labels = f"folder:{folder}", Labels(classes=("a", "b"))
        made = columns(source, Images(crop=CROP, flip=0.5).part((16, 16)), labels.part(source))
        batches = train_batches(made.dataset("train"), batch_size=4, seed=0)
        for i, _ in zip(range(1, count + 1), batches, strict=False):
            if i % (count // 10) == 0:
                now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
                print(f"batch {i:,}: {now:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help=f"among {', '.join(CASES)}")
    parser.add_argument("--workers", type=int, default=0, help="processes on either side (default: 0)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--scaling", action="store_true", help="one and two workers of ours")
    parser.add_argument("--memory", type=int, default=0, help="so many batches")
    given = parser.parse_args()
    cache.PROCESS.size = 0  # what is decoded once would not be measured
    if given.memory:
        return memory(given.memory)
    if given.scaling:
        return scaling(given.rounds, given.seconds)
    print("| | ours, examples/s | theirs | ratio |\n|---|---|---|---|")
    for case in given.cases.split(","):
        compare(case, given.workers, given.rounds, given.seconds)


if __name__ == "__main__":
    main()
