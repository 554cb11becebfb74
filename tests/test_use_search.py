"""Embeddings, an index over them, and the server: what is found, what survives a kill, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import used

import unimodal
from unimodal.command import main
from unimodal.command.use import one_task
from unimodal.errors import UsageError
from unimodal.training.alone import alone
from unimodal.use import index as index_module
from unimodal.use.answering import answered
from unimodal.use.index import append, open_index

starlette = pytest.importorskip("starlette", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = tiny.plain("clip", "vit")
    config["tokenizers"] = {name: config["tokenizers"][name] for name in ("text", "image")}
    used.workdir(folder, config)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return used.pictures(tmp_path_factory.mktemp("pictures"), 9)


def vectors(count: int, size: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    x = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return [{"id": str(i), "embedding": row} for i, row in enumerate(x)]


def test_an_index_is_exact_appendable_and_survives_a_kill(tmp_path: Path) -> None:
    rows = vectors(700)
    index = append(tmp_path / "a", rows[:300], {"model": "m"})
    # A kill leaves half of what it was adding behind what is counted.
    with (tmp_path / "a" / "vectors.f32").open("ab") as stream:
        stream.write(b"\1" * 50)
    with (tmp_path / "a" / "rows.jsonl").open("a") as stream:
        stream.write('{"id": "half')
    index = append(tmp_path / "a", rows[300:], {"model": "m"})
    at_once = append(tmp_path / "b", rows, {"model": "m"})
    for name in ("vectors.f32", "rows.jsonl", "about.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    query = rows[5]["embedding"]
    found = open_index(tmp_path / "a").nearest(query, 4)
    wanted = np.argsort(-np.stack([row["embedding"] for row in rows]) @ query)[:4]
    assert [row["id"] for row in found] == [str(i) for i in wanted] and found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert index.rows == at_once.rows == 700
    assert [row["row"] for row in found] == list(wanted) and at_once.row(699)["id"] == rows[699]["id"]
    spoilt = (tmp_path / "b" / "rows.jsonl").read_bytes().replace(b'{"id": "3"', b'{"id" : 3"')
    (tmp_path / "b" / "rows.jsonl").write_bytes(spoilt)
    with pytest.raises(UsageError, match=r"rows.jsonl: line 4 is damaged; make the index again"):
        open_index(tmp_path / "b").row(3)
    (tmp_path / "b" / "rows.jsonl").write_bytes(spoilt[:999])
    with pytest.raises(UsageError, match=r"rows.jsonl has \d+ lines for 700 vectors; make the index again"):
        open_index(tmp_path / "b").row(3)
    with pytest.raises(UsageError, match="holds vectors of 24 numbers, but the query has 7"):
        index.nearest(np.zeros(7), 3)
    with pytest.raises(UsageError, match="holds vectors of 24 numbers, but 0 has 8"):
        append(tmp_path / "a", vectors(1, 8), {"model": "m"})
    with pytest.raises(UsageError, match="was made by model m, not model other"):
        append(tmp_path / "a", rows[:1], {"model": "other"})
    # An index of an earlier version says less, and goes on as it is.
    old = {"model": "m", "task": None, "step": 3}
    append(tmp_path / "old", rows[:1], old)
    assert append(tmp_path / "old", rows[1:2], {**old, "task": "clip", "average": True, "dtype": None}).rows == 2
    assert open_index(tmp_path / "old").made_by == old
    with pytest.raises(UsageError, match="was made by step 3, not step 4"):
        append(tmp_path / "old", rows[:1], {**old, "step": 4})
    with pytest.raises(UsageError, match="is no index"):
        open_index(tmp_path)


def test_an_npy_file_that_failed_is_written_at_the_next_try(
    workdir: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out.npy"
    words = ["unimodal", "embed", str(workdir), str(pictures / "1.png"), "--task=clip", f"--out={out}"]
    for name in ("to_numpy", "without_embeddings"):
        out.unlink(missing_ok=True)
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemError):
            patch.setattr(f"unimodal.command.use.{name}", killed)
            main(words)
        capsys.readouterr()
        if name == "to_numpy":
            assert main([*words, "--dtype=bfloat16"]) == 2
            assert "was begun with another model or other flags" in capsys.readouterr().err
        # Killed before, the file is written now; killed behind, it is whole, and its rows too.
        assert main(words) == (0 if name == "to_numpy" else 2)
        assert "there already, and whole" in capsys.readouterr().err or name == "to_numpy"
        assert np.load(out).shape == (1, 16) and np.isfinite(np.load(out)).all()


def test_an_npy_file_of_something_else_stays(tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "mine.npy", np.arange(3))
    assert main(["unimodal", "embed", "run", "words", f"--out={tmp_path / 'mine.npy'}"]) == 2
    assert "mine.npy is there already, and whole" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "mine.npy"), np.arange(3))


def killed(*_: Any) -> None:
    raise SystemError


def test_many_rows_are_searched_by_a_graph(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("usearch", reason="the extra `search` is not installed")
    monkeypatch.setattr(index_module, "EXACT", 1000)
    rows = vectors(2000)
    index = append(tmp_path, rows, {})
    hits = 0
    for row in rows[:50]:
        near, exact = (index.nearest(row["embedding"], 10, exact=e) for e in (False, True))
        hits += len({one["id"] for one in near} & {one["id"] for one in exact})
        assert near[0]["id"] == row["id"] and near[0]["score"] == pytest.approx(exact[0]["score"], abs=1e-4)
    assert hits / 500 >= 0.95
    assert (tmp_path / "graph.usearch").exists()


def test_embed_index_search(workdir: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    index, out = tmp_path / "index", tmp_path / "out.npy"
    assert main(["unimodal", "index", str(workdir), str(pictures), f"--to={index}", "--task=clip"]) == 0
    assert "9 added" in (told := capsys.readouterr().err) and "broken.png: " in told
    assert main(["unimodal", "embed", str(workdir), str(pictures), f"--out={out}", "--task=clip"]) == 0
    made, names = np.load(out), [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert made.shape == (10, 16) and np.isnan(made[names.index(str(pictures / "broken.png"))]).all()
    capsys.readouterr()
    assert main(["unimodal", "search", str(index), f"--image={pictures / '3.png'}", "--top=2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0]["id"] == str(pictures / "3.png") and found[0]["score"] == pytest.approx(1, abs=1e-4)
    # A picture and words: the sum of both, of unit length.
    assert main(["unimodal", "search", str(index), f"--image={pictures / '3.png'}", "--text=but blue", "--top=9"]) == 0
    both = {row["id"]: row["score"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    loaded = unimodal.load(workdir)
    query = loaded.embed(pictures / "3.png", task="clip")[0] + loaded.embed("but blue", task="clip")[0]
    wanted = loaded.embed(pictures / "7.png", task="clip")[0] @ (query / np.linalg.norm(query))
    assert both[str(pictures / "7.png")] == pytest.approx(float(wanted), abs=1e-4)
    # Of texts clip alone makes embeddings; the index keeps its name, so that a picture can be looked for, too.
    assert main(["unimodal", "index", str(workdir), "red", "blue", f"--to={tmp_path / 'words'}"]) == 0
    assert main(["unimodal", "search", str(tmp_path / "words"), f"--image={pictures / '3.png'}", "--top=2"]) == 0
    assert open_index(tmp_path / "words").made_by["task"] == "clip" and capsys.readouterr().out.count("score") == 2
    several: Any = SimpleNamespace(answered_by={"vit", "bert"})
    with pytest.raises(UsageError, match=r"several tasks embed these inputs.*--task=bert\|vit"):
        list(one_task([{"id": "x"}], several))
    about = json.loads((index / "about.json").read_text())["made_by"]
    assert about == {"model": str(workdir), "task": "clip", "step": 0, "average": False, "dtype": None}
    for words, message in (
        (["search", str(index)], "say what is looked for"),
        (["search", str(index), "--text=x", "--task=vit"], "was made by task clip, not task vit"),
        (["search", str(pictures), "--text=x"], "is no index"),
        (["search", str(index), f"--image={pictures / 'broken.png'}"], "not an image"),
        (["index", str(workdir), str(pictures)], "say where the index is: --to=FOLDER"),
        (["index", str(workdir), str(pictures), f"--to={index}", "--task=vit"], "was made by"),
        (["embed", str(workdir), str(pictures), "--task=nothing"], "has no task 'nothing'"),
    ):
        assert main(["unimodal", *words]) == 2
        assert message in capsys.readouterr().err


def test_an_index_goes_on_after_a_kill(workdir: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    """What is counted is not embedded again; what was added before, or comes a second time, is added all the same."""
    from unimodal.command import use

    inputs = [*(str(pictures / f"{i}.png") for i in (*range(8), 3)), str(pictures / "broken.png")]
    words = ["unimodal", "index", str(workdir), *inputs, "--task=clip", "--batch=2"]
    for folder in ("a", "b"):
        assert main([*words, f"--to={tmp_path / folder}"]) == 0

    def until_killed(asking: Any, entries: Any) -> Iterator[Any]:
        yield from itertools.islice(answered(asking, entries), 7)
        killed()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(use, "append", partial(append, every=3))
        patch.setattr(use, "answered", until_killed)
        main([*words, f"--to={tmp_path / 'a'}"])
    assert open_index(tmp_path / "a").rows == 9 + 6
    capsys.readouterr()
    for folder, said in (("a", "6 are there; going on"), ("b", "")):
        assert main([*words, f"--to={tmp_path / folder}"]) == 0
        told = capsys.readouterr().err
        assert said in told and "9 added" in told
    a, b = (open_index(tmp_path / folder) for folder in "ab")
    assert dataclasses.replace(a, folder=b.folder) == b and a.rows == 18
    assert [a.row(i)["id"] for i in range(18)] == [b.row(i)["id"] for i in range(18)] == [*inputs[:9]] * 2
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5)


def test_two_commands_do_not_add_to_one_index(tmp_path: Path, capsys: Any) -> None:
    append(tmp_path, vectors(3), {})
    with alone(tmp_path):  # as another command does
        assert main(["unimodal", "index", "run", "words", f"--to={tmp_path}"]) == 2
        assert "is in use by process" in capsys.readouterr().err
    assert open_index(tmp_path).rows == 3


def test_a_search_for_no_words_is_told_so() -> None:
    from unimodal.use.serve.app import Refused, Server

    async def body() -> bytes:
        return b'{"text": " "}'

    index: Any = SimpleNamespace(made_by={})
    server = Server(SimpleNamespace(tasks={}), batcher=None, index=index)  # pyright: ignore[reportArgumentType]
    with pytest.raises(Refused, match="the text is empty"):
        asyncio.run(server.search(SimpleNamespace(headers={"content-type": "application/json"}, body=body)))


@pytest.fixture(scope="module")
def client(workdir: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("httpx")
    from starlette.testclient import TestClient

    from unimodal.use.serve.app import Server, make_app
    from unimodal.use.serve.batching import Batcher

    loaded = unimodal.load(workdir)
    folder = tmp_path_factory.mktemp("index")
    rows = [
        {"id": str(pictures / f"{i}.png"), "embedding": loaded.embed(pictures / f"{i}.png", task="clip")[0]}
        for i in (1, 2)
    ]
    index = append(folder, rows, {"model": str(workdir), "task": "clip"})
    server = Server(loaded, Batcher(loaded, batch_size=8), index)
    app = make_app(server, most=100_000, token=None, hosts=["localhost"])
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as found:
        yield found


def test_the_server_answers(client: Any, workdir: Path, pictures: Path) -> None:
    assert client.get("/health").json()["status"] == "ok"
    page = client.get("/")
    assert (
        "text/html" in page.headers["content-type"] and "default-src 'none'" in page.headers["content-security-policy"]
    )
    for name in ("page.js", "page.css"):
        assert f'"/{name}"' in page.text and client.get(f"/{name}").status_code == 200
    assert "http" not in page.text.replace("http-equiv", "")  # it needs no network
    offers = client.get("/v1/tasks").json()["tasks"]
    assert {"gives": "class", "reads": "image", "names": False} in offers["vit"]
    picture = (pictures / "1.png").read_bytes()
    said = client.post("/v1/predict", files={"file": ("a.png", picture)}, data={"task": "vit", "top": "3"}).json()
    ours = unimodal.load(workdir).predict(pictures / "1.png", task="vit", top=3)[0]
    assert said["classes"] == pytest.approx(ours["classes"], abs=1e-5)
    said = client.post("/v1/predict", files={"file": ("a.png", picture)}, data={"task": "clip", "classes": "a,b"})
    assert set(said.json()["classes"]) == {"a", "b"}
    said = client.post("/v1/predict", json={"text": "hello", "task": "clip"}).json()
    assert len(said["embedding"]) == 16
    found = client.post("/v1/search", files={"file": ("a.png", picture)}).json()["results"]
    assert found[0]["id"].endswith("1.png") and client.get(f"/v1/items/{found[0]['row']}").content == picture
    found = client.post("/v1/search", files={"file": ("a.png", picture)}, data={"text": "but blue"}).json()["results"]
    assert len(found) == 2 and found[0]["score"] < 1
    error = client.post("/v1/search", json={"text": "hello", "task": "vit"}).json()["error"]
    assert error == "the index was made by the task 'clip', so 'vit' cannot search it"
    # A name that is not UTF-8 is told as it is.
    said = client.post(
        "/v1/predict",
        content=b'{"text": "x", "task": "clip", "gives": "\\udcff"}',
        headers={"content-type": "application/json"},
    )
    assert said.status_code == 400 and "gives no \udcff, but" in said.json()["error"]
    assert 'unimodal_requests_total{status="200"}' in client.get("/metrics").text


def test_requests_that_come_together_are_answered_together(client: Any) -> None:
    def number(name: str) -> int:
        line = next(line for line in client.get("/metrics").text.splitlines() if line.startswith(name))
        return int(line.split()[-1])

    before, answers = number("unimodal_batches_total"), number("unimodal_answers_total")
    found: list[int] = []
    ask = lambda: found.append(client.post("/v1/predict", json={"text": "hello", "task": "clip"}).status_code)  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 24
    assert number("unimodal_answers_total") - answers == 24 and number("unimodal_batches_total") - before < 24


def malformed(pictures: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Requests, and the status that each deserves."""
    picture = (pictures / "1.png").read_bytes()
    post = "/v1/predict"
    yield post, dict(content=b"{", headers={"content-type": "application/json"}), 400
    yield post, dict(content=b"[" * 50_000, headers={"content-type": "application/json"}), 400
    yield post, dict(content=b"\xff\xfe", headers={"content-type": "application/json"}), 400
    yield post, dict(json=[1]), 400
    yield post, dict(json={"text": 3}), 400
    yield post, dict(json={"text": ""}), 400
    yield post, dict(json={"text": "x", "task": "../../etc/passwd"}), 400
    yield post, dict(json={"text": "x", "task": "vit"}), 400
    yield post, dict(json={"text": "x", "task": ["vit"]}), 400
    yield post, dict(json={"text": "x", "task": "clip", "top": "many"}), 400
    yield post, dict(json={"text": "x", "task": "clip", "top": 10**9}), 400
    yield post, dict(json={"text": "x", "task": "clip", "temperature": "nan"}), 400
    yield post, dict(json={"text": "x", "task": "clip", "seed": -1}), 400
    yield post, dict(json={"text": "x", "task": "clip", "gives": "gold"}), 400
    yield post, dict(json={"text": "x" * 200_000}), 413
    yield post, dict(content=b"x", headers={"content-type": "text/xml"}), 415
    yield post, dict(data={"task": "vit"}), 415
    yield post, dict(content=b"no form", headers={"content-type": "multipart/form-data"}), 400
    yield post, dict(content=b"--x\r\n", headers={"content-type": "multipart/form-data; boundary=x"}), 400
    for name in ("../../../etc/passwd", "a.exe", "\0.so", "a" * 300, "<script>alert(1)</script>"):
        yield post, dict(files={"file": (name, picture)}, data={"task": "vit"}), 415
    yield post, dict(files={"file": ("", picture)}, data={"task": "vit"}), 400
    yield post, dict(files={"file": ("a" * 9000 + ".png", picture)}, data={"task": "vit"}), 400
    yield post, dict(files={"file": ("../../a.png", picture[:60])}, data={"task": "vit"}), 400
    yield post, dict(files={"file": ("a.png", b"")}, data={"task": "vit"}), 400
    yield post, dict(files={"file": ("a.wav", picture)}, data={"task": "vit"}), 400
    yield post, dict(files=[("file", ("a.png", picture)), ("file", ("b.png", picture))], data={"task": "vit"}), 400
    yield post, dict(files={"file": ("a.png", b"x" * 200_000)}), 413
    numbers = ("top", "steps", "temperature", "top_p", "seed", "beam")
    bad: tuple[Any, ...] = (
        -1,
        "-7",
        "nan",
        "inf",
        "1e400",
        2**70,
        [],
        {"a": 1},
        "\0",
        "x" * 5000,
        "1;drop",
        "0x10",
        "1 2",
        ["1"],
    )
    for name in numbers:
        for value in bad:
            if (name, value) != ("temperature", 2**70):  # which is a number, and finite
                yield post, dict(json={"text": "x", "task": "clip", name: value}), 400
    for name in ("task", "gives", "template"):
        for value in (7, [], {"a": 1}, ["x"] * 300, True, "x" * 60_000):
            yield post, dict(json={"text": "x", "task": "clip", name: value}), 400
    for value in (7, {"a": 1}, True, [1, 2], [["a"]], [None], [f"class {i}" for i in range(300)]):
        yield post, dict(json={"text": "x", "task": "clip", "classes": value}), 400
    for number in range(40):  # pictures that are cut, or have a byte changed where it matters
        broken = picture[: len(picture) * number // 40] if number % 2 else picture[:12] + bytes(8) + picture[20:]
        yield post, dict(files={"file": (f"{number}.png", broken)}, data={"task": "vit"}), 400
    yield "/v1/search", dict(json={}), 400
    yield "/v1/search", dict(json={"text": "x", "task": "vit"}), 400


def test_malformed_requests_are_refused_in_one_line(client: Any, pictures: Path) -> None:
    everything = list(malformed(pictures))
    assert len(everything) > 180  # and the twenty or so below
    for path, request, status in everything:
        answer = client.post(path, **request)
        assert answer.status_code == status, (request, answer.status_code, answer.text[:200])
        assert set(answer.json()) == {"error"} and "\n" not in answer.json()["error"]
        assert "root:" not in answer.text
    for path in ("/v1/items/7", "/v1/items/..%2f..%2fetc%2fpasswd", "/../pyproject.toml", "/nothing", "/v1/items/-1"):
        assert client.get(path).status_code == 404
    assert client.get("/v1/predict").status_code == 405
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400
    assert client.post("/v1/predict", json={"text": "still there", "task": "clip"}).status_code == 200


def test_a_token_where_there_is_one(client: Any) -> None:
    from starlette.testclient import TestClient

    from unimodal.use.serve.limits import Guard

    found = TestClient(Guard(client.app.app, most=1000, token="secret"), base_url="http://localhost")
    assert found.get("/v1/tasks").status_code == 401 and found.get("/").status_code == 200
    assert found.get("/v1/tasks", headers={"authorization": "Bearer secreT"}).status_code == 401
    assert found.get("/v1/tasks", headers={"authorization": "Bearer secret"}).status_code == 200


def test_too_much_at_once_is_refused(client: Any) -> None:
    from starlette.testclient import TestClient

    from unimodal.use.serve.limits import Guard

    guard = Guard(client.app.app, most=1000, token=None)
    found = TestClient(guard, base_url="http://localhost")
    asked: Any = dict(json={"text": "hello", "task": "clip"})
    guard.held = guard.most_held  # as if others were on their way
    answer = found.post("/v1/predict", **asked)
    assert answer.status_code == 429 and "try again" in answer.json()["error"]
    assert guard.held == guard.most_held  # it has let go of what was its own
    guard.held = 0
    assert found.post("/v1/predict", **asked).status_code == 200 and guard.held == 0


def test_what_a_server_is_not_started_with(workdir: Path, tmp_path: Path, capsys: Any) -> None:
    made_by = {"model": str(workdir), "task": "clip", "step": 0, "average": False}
    others = ({"model": "/other"}, {"step": 7}, {"task": "gone"}, {"average": True})
    for i, other in enumerate(others):
        append(tmp_path / str(i), vectors(1, 16), {**made_by, **other})
    for words, message in (
        ([str(workdir), "--port=8123", f"--index={tmp_path / '0'}"], f"made by model /other, not model {workdir};"),
        ([str(workdir), "--port=8123", f"--index={tmp_path / '1'}"], "made by step 7, not step 0; take the same"),
        ([str(workdir), "--port=8123", f"--index={tmp_path / '2'}"], "has no task 'gone'"),
        ([str(workdir), "--port=8123", f"--index={tmp_path / '3'}"], "made by average True, not average False;"),
        ([], "usage: unimodal serve WORKDIR_OR_CHECKPOINT"),
        ([str(workdir), "--port=99999"], "--port must be from 1 to 65535"),
        ([str(workdir), f"--index={tmp_path}"], "is no index"),
        ([str(tmp_path), "--port=8123"], "no config.json"),
    ):
        assert main(["unimodal", "serve", *words]) == 2
        assert message in capsys.readouterr().err
