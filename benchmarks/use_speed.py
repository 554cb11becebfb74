"""Using a model, measured: answers beside transformers' pipelines, a server under load, and search in a million vectors.

    pip install torch transformers 'unimodal[serve,search]'   # torch and transformers for `pipelines` alone
    taskset -c 0 python benchmarks/use_speed.py pipelines --cpu_time [--batch=16] [--rounds=5]
    python benchmarks/use_speed.py server [--model=vit|gpt] [--clients=32] [--requests=512]
    python benchmarks/use_speed.py flood [--clients=10000]
    python benchmarks/use_speed.py search [--rows=1000000] [--size=64] [--queries=200]

pipelines: a ViT (22M) with and without a head and a wav2vec 2.0 with CTC (12M), initialised at random by transformers, saved,
and loaded by both. Both get the paths of the same files, JPEGs of the embedded emoji and recordings of the embedded speech, and
decode them. An embedding is one pooled vector on both sides, and stays an array. Both have one thread for each core that
the program may use. They take turns; rates are of whole calls, by the clock or, with --cpu_time, by seconds of CPU, for which
the program should have one core. Before that their answers are compared.
server: one model, over HTTP on this machine: one client that waits for each answer, then many at once. The ViT's products keep
a CPU as busy for one picture as for many; a GPT (25M) that writes 16 ids reads its weights once for all rows of a batch.
flood: as many requests as there are clients, all at once, to the same server: how many of each status, and does it live?
search: vectors that lie near a random subspace of 16 dimensions, as embeddings do; recall is against all inner products.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import io
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import in_turns

import unimodal
from unimodal.data import open_source
from unimodal.use.index import append
from unimodal.use.preparation import byte_tokenizer

PICTURES, RECORDINGS = 64, 32


def pictures(folder: Path) -> list[str]:
    """JPEG files of 256 by 256 pixels."""
    source = open_source("embedded:emoji", "train")
    folder.mkdir()
    for i in range(PICTURES):
        image = Image.open(io.BytesIO(source[i]["image"])).convert("RGB").resize((256, 256))
        image.save(folder / f"{i}.jpg", quality=90)
    return [str(folder / f"{i}.jpg") for i in range(PICTURES)]


def recordings(folder: Path) -> list[str]:
    """WAV files of some seconds, 16 kHz."""
    import soundfile

    source = open_source("embedded:speech", "train")
    folder.mkdir()
    for i in range(RECORDINGS):
        audio, rate = soundfile.read(io.BytesIO(source[i]["audio"]), dtype="float32")
        soundfile.write(folder / f"{i}.wav", np.resize(audio, 3 * rate), rate)
    return [str(folder / f"{i}.wav") for i in range(RECORDINGS)]


def raw(path: str) -> dict[str, Any]:
    """A recording as the pipeline takes it where there is no ffmpeg, by which it reads files."""
    import soundfile

    audio, rate = soundfile.read(path, dtype="float32")
    return {"raw": audio, "sampling_rate": rate}


def vit(folder: Path, head: bool = True) -> None:
    """With 1,000 classes, or without a head: then it pools."""
    import transformers as t

    shape = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    config = t.ViTConfig(**shape, num_labels=1000)
    (t.ViTForImageClassification(config) if head else t.ViTModel(config)).save_pretrained(folder)
    t.ViTImageProcessor().save_pretrained(folder)


def ctc(folder: Path) -> None:
    import transformers as t

    vocabulary = {"<pad>": 0, "|": 1, **{chr(97 + i): i + 2 for i in range(26)}}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = t.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), pad_token="<pad>", unk_token="<pad>")
    shape = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
    config = t.Wav2Vec2Config(**shape, conv_dim=[256] * 7, vocab_size=len(vocabulary), pad_token_id=0)
    t.Wav2Vec2ForCTC(config).save_pretrained(folder)
    t.Wav2Vec2Processor(t.Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)


def gpt(folder: Path) -> None:
    """GPT-2's shape, 25M parameters, over bytes."""
    import transformers as t

    t.GPT2LMHeadModel(t.GPT2Config(n_embd=512, n_layer=8, n_head=8, vocab_size=264)).save_pretrained(folder)
    byte_tokenizer(folder)


def apart(what: str, mine: Any, others: Any) -> str:
    """How far the answers of both are from each other."""
    if what == "transcripts":
        equal = [a["transcript"] == b["text"] for a, b in zip(mine, others, strict=True)]
        return f"{sum(equal)} of {len(equal)} are equal"
    if what == "embeddings of pictures":
        vectors = np.concatenate([vector.numpy() for vector in others])
        cosines = (mine * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1)
        return f"cosines of {cosines.min():.6f} at least"
    there = [{each["label"]: each["score"] for each in row} for row in others]
    equal = [a["class"] == max(b, key=b.__getitem__) for a, b in zip(mine, there, strict=True)]
    far = [abs(p - b[c]) for a, b in zip(mine, there, strict=True) for c, p in a["classes"].items() if c in b]
    return f"{sum(equal)} of {len(equal)} first classes are equal, probabilities differ by {np.max(far):.1e} at most"


def run_pipelines(options: argparse.Namespace) -> None:
    import torch
    import transformers as t

    cores = len(os.sched_getaffinity(0))  # XLA has as many threads
    torch.set_num_threads(cores)
    t.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, sounds = pictures(folder / "pictures"), recordings(folder / "sounds")
        vit(folder / "vit")
        vit(folder / "encoder", head=False)
        ctc(folder / "ctc")
        seen, encoder, heard = (unimodal.load(folder / kind) for kind in ("vit", "encoder", "ctc"))
        pipe = lambda task, kind: t.pipeline(task, model=str(folder / kind), batch_size=options.batch)  # noqa: E731
        classify, features = pipe("image-classification", "vit"), pipe("image-feature-extraction", "encoder")
        transcribe = pipe("automatic-speech-recognition", "ctc")
        asked: dict[str, Any] = dict(batch_size=options.batch)
        vectors: dict[str, Any] = dict(pool=True, return_tensors=True)
        cases: dict[str, tuple[list[str], Callable[[], Any], Callable[[], Any]]] = {
            "classes of pictures": (images, lambda: seen.predict(images, **asked), lambda: classify(images)),
            "embeddings of pictures": (
                images,
                lambda: encoder.embed(images, **asked),
                lambda: features(images, **vectors),
            ),
            "transcripts": (sounds, lambda: heard.predict(sounds, **asked), lambda: transcribe(list(map(raw, sounds)))),
        }
        clock, seconds = (time.process_time, "of CPU") if options.cpu_time else (time.perf_counter, "by the clock")
        print(f"torch {torch.__version__}, transformers {t.__version__}; {cores} threads each; seconds {seconds}")
        rows = ["| what | unimodal, a second | pipeline, a second | times as fast |", "|---|---|---|---|"]
        for what, (files, here, there) in cases.items():
            print(f"{what}: {apart(what, here(), there())}", flush=True)
            times = in_turns({"here": here, "there": there}, options.rounds, clock=clock)
            rates = [len(files) / found.median for found in times.values()]
            rows.append(f"| {what} | {rates[0]:.1f} | {rates[1]:.1f} | {times['there'].over(times['here'])} |")
            print(rows[-1], flush=True)
        print("\n" + "\n".join(rows))


@contextlib.contextmanager
def served(folder: Path, model: str) -> Iterator[int]:
    """`unimodal serve` of a model as a process of its own, on the port that it gives."""
    (gpt if model == "gpt" else vit)(folder / model)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "unimodal", "serve", str(folder / model), f"--port={port}"]
    with (folder / "log").open("w") as log, subprocess.Popen(words, stderr=log) as server:
        try:
            while not healthy(port):
                if server.poll() is not None:
                    raise SystemExit((folder / "log").read_text())
                time.sleep(0.2)
            yield port
        finally:
            server.terminate()


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("localhost", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def run_server(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name, served(Path(name), options.model) as port:
        if options.model == "vit":
            bodies, headers = [form(Path(path).read_bytes()) for path in pictures(Path(name) / "pictures")], KIND
        else:
            asked = [dict(text=f"Once upon a time, {i:4} years ago,", steps=16) for i in range(64)]
            bodies, headers = [json.dumps(one).encode() for one in asked], {"Content-Type": "application/json"}

        def ask(i: int) -> float:
            began = time.perf_counter()
            connection = http.client.HTTPConnection("localhost", port, timeout=120)
            connection.request("POST", "/v1/predict", bodies[i % len(bodies)], headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise SystemExit(f"{answer.status}: {answer.read().decode()}")
            answer.read()
            connection.close()
            return time.perf_counter() - began

        rates: dict[int, list[float]] = {1: [], options.clients: []}
        waits: dict[int, list[float]] = {1: [], options.clients: []}
        for number in range(options.rounds + 2):  # the first two are not counted: they compile
            for clients in rates:
                many = options.requests if clients > 1 else max(8, options.requests // 8)
                with ThreadPoolExecutor(clients) as pool:
                    began = time.perf_counter()
                    found = list(pool.map(ask, range(many)))
                    took = time.perf_counter() - began
                if number > 1:
                    rates[clients].append(many / took)
                    waits[clients] += found
    print("| clients | answers a second | median wait, ms | p95, ms |\n|---|---|---|---|")
    for clients, found in rates.items():
        middle, late = (1000 * np.percentile(waits[clients], q) for q in (50, 95))
        print(f"| {clients} | {np.median(found):.1f} | {middle:.0f} | {late:.0f} |")
    ratios = sorted(many / one for one, many in zip(*rates.values(), strict=True))
    print(
        f"{options.clients} clients get {np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times the answers"
    )


def run_flood(options: argparse.Namespace) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name, served(Path(name), "vit") as port:
        body = form(Path(pictures(Path(name) / "pictures")[0]).read_bytes())
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {KIND['Content-Type']}\r\n"
        request = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body

        async def ask() -> str:
            try:
                reader, writer = await asyncio.open_connection("localhost", port)
                writer.write(request)
                answer = await asyncio.wait_for(reader.read(), 300)
                writer.close()
                return answer.split(b" ", 2)[1].decode() if answer else "closed"
            except OSError as error:
                return type(error).__name__

        async def flood(count: int) -> list[str]:
            return list(await asyncio.gather(*(ask() for _ in range(count))))

        asyncio.run(flood(1))  # compiles
        began = time.perf_counter()
        found = Counter(asyncio.run(flood(options.clients)))
        took = time.perf_counter() - began
        after = asyncio.run(flood(1))
        print(f"{options.clients:,} at once: {dict(sorted(found.items()))} in {took:.0f} s; one after them: {after[0]}")


KIND = {"Content-Type": "multipart/form-data; boundary=b"}


def form(picture: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="p.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head + picture + b"\r\n--b--\r\n"


def run_search(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((16, options.size), np.float32)

    def vectors(count: int) -> np.ndarray:
        made = rng.standard_normal((count, 16), np.float32) @ plane
        made += 0.3 * rng.standard_normal(made.shape, np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        rows = ({"id": f"{i}.png", "embedding": v} for i, v in enumerate(vectors(options.rows)))
        index = append(name, rows, {"model": "none"}, every=10_000)
        written = time.perf_counter() - began
        queries = vectors(options.queries)
        began = time.perf_counter()
        index.nearest(queries[0], 10)
        made = time.perf_counter() - began
        waits, found = [], []
        for query in queries:
            began = time.perf_counter()
            found.append([row["row"] for row in index.nearest(query, 10)])
            waits.append(1000 * (time.perf_counter() - began))
        exact = [[row["row"] for row in index.nearest(query, 10, exact=True)] for query in queries]
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
        median, late = np.percentile(waits, (50, 95))
        print("| vectors | numbers | written, s | graph made, s | a search, ms | p95, ms | recall@10 |")
        print("|---|---|---|---|---|---|---|")
        print(
            f"| {options.rows:,} | {options.size} | {written:.0f} | {made:.0f} | {median:.2f} | {late:.2f} | {recall:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pipelines", "server", "flood", "search"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu_time", action="store_true", help="pipelines: seconds of CPU; run on one core by taskset")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--model", choices=("vit", "gpt"), default="vit")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    {"pipelines": run_pipelines, "server": run_server, "flood": run_flood, "search": run_search}[options.what](options)


if __name__ == "__main__":
    main()
