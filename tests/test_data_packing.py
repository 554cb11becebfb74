"""Several examples in one row: each equals itself alone, none sees another, and rows are as full as they are said to be."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from unimodal.data import LEDGER, column, open_source, pack, train_batches, write_array_record
from unimodal.data.blocks import Sounds
from unimodal.data.blocks.packed_speech import PackedSpeech
from unimodal.data.blocks.patches import fitted_grid, joined_row, picture_tokens
from unimodal.data.blocks.speech import TranscribedSpeech
from unimodal.data.blocks.transcripts import Transcripts
from unimodal.data.filling import Packing, filled
from unimodal.errors import UsageError
from unimodal.objectives import causal_lm
from unimodal.packed import picture_logits, picture_rows
from unimodal.tokenizers.audio import Recordings


@pytest.mark.parametrize("most", [0, 3])
def test_rows_hold_everything_once_and_best_fit_leaves_least(most: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, 400).tolist()
    rows = {fit: filled(lengths, 64, most=most, fit=fit) for fit in ("first_fit", "best_fit")}
    for found in rows.values():
        assert sorted(place for row in found for place in row) == [i for i, n in enumerate(lengths) if n]
        assert max(sum(lengths[i] for i in row) for row in found) <= 64
        assert not most or max(map(len, found)) <= most
    # First fit by its definition, row after row.
    slowly: list[list[int]] = []
    for i, n in enumerate(lengths):
        room = [r for r in slowly if sum(lengths[j] for j in r) + n <= 64 and (not most or len(r) < most)]
        if n:
            (room[0] if room else slowly.append([]) or slowly[-1]).append(i)
    assert rows["first_fit"] == slowly
    assert len(rows["best_fit"]) < len(rows["first_fit"]) or most
    if not most:
        assert sum(lengths) / (64 * len(rows["best_fit"])) > 0.95
    with pytest.raises(UsageError, match="a length of 65 does not fit into a row of 64"):
        filled([65], 64)
    with pytest.raises(UsageError, match="pack.fit must be first_fit or best_fit, but is 'worst'"):
        Packing(fit="worst")


def test_best_fit_keeps_documents_whole() -> None:
    rng = np.random.default_rng(1)
    documents = [rng.integers(8, 264, size) for size in rng.integers(0, 50, 300)]
    rows = {fit: list(pack(documents, 32, fit=fit)) for fit in ("first_fit", "best_fit")}
    share = {fit: np.mean([row["segment"] > 0 for row in found]) for fit, found in rows.items()}
    assert share["best_fit"] > 0.97 and share["best_fit"] >= share["first_fit"]
    pieces = lambda row: [row["ids"][row["segment"] == s].tobytes() for s in range(1, row["segment"].max() + 1)]  # noqa: E731
    wanted = sorted(d[s : s + 32].astype(np.int32).tobytes() for d in documents for s in range(0, len(d), 32))
    assert sorted(piece for row in rows["best_fit"] for piece in pieces(row)) == wanted
    for row in rows["best_fit"]:
        for s in range(1, row["segment"].max() + 1):
            assert row["position"][row["segment"] == s].tolist() == list(range((row["segment"] == s).sum()))


def test_packed_texts_have_the_losses_of_each_alone() -> None:
    experiment = tiny.build(tiny.plain("gpt", tasks__gpt__packed=True, tasks__gpt__fit="best_fit"))
    task, model = experiment.tasks[0], experiment.program.model(experiment.program.init())
    rng = np.random.default_rng(0)
    documents = [rng.integers(8, 264, size) for size in (9, 4, 3)]
    row = next(pack(documents, 16, fit="best_fit"))
    batch = {name: jnp.asarray(array[None]) for name, array in row.items()}

    @jax.jit
    def losses(batch: Any) -> jax.Array:  # of each token
        logits = task.logits(model, batch)
        nats = -jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
        return jnp.take_along_axis(nats, batch["ids"][:, 1:, None], axis=2)[..., 0]

    found, together = np.asarray(losses(batch))[0], 0.0
    for document in documents:
        alone = next(pack([document], 16))
        own = np.asarray(losses({name: jnp.asarray(array[None]) for name, array in alone.items()}))[
            0, : len(document) - 1
        ]
        segment = next(s for s in range(1, 4) if (row["segment"] == s).sum() == len(document))
        start = int(np.argmax(row["segment"] == segment))
        np.testing.assert_allclose(found[start : start + len(document) - 1], own, atol=1e-5, rtol=1e-5)
        together += own.sum()
    _, sums = causal_lm(task.logits(model, batch), batch["ids"], batch["segment"])
    np.testing.assert_allclose(sums["nats"], together, rtol=1e-5)


PICTURES = [
    (24, 16),
    (8, 32),
    (16, 16),
    (10, 7),
]  # heights and widths: no two alike, none the tokenizer's but the third


def image_model(**tokenizer: Any) -> Any:
    config = tiny.plain("vit", tasks__vit__labels=dict(count=10), backbones__shared__rope_theta=100.0)
    config["tokenizers"]["image"] |= dict(resize=True, registers=2, plain_registers=1, init_std=0.5, **tokenizer)
    experiment = tiny.build(config)
    return experiment.tasks[0], experiment.program.model(experiment.program.init())


@pytest.mark.parametrize("options", [{}, dict(antialias=True, norm=True), dict(positions=False)])
def test_each_picture_of_a_row_is_what_it_is_alone(options: dict[str, Any]) -> None:
    task, model = image_model(**options)
    rng, config = np.random.default_rng(0), model.tokenizers["image"].config
    grids = [fitted_grid(*size, 8, 4) for size in PICTURES]
    assert grids == [(2, 1), (1, 4), (2, 2), (1, 1)]
    pictures = [rng.standard_normal((8 * r, 8 * c, 3)).astype(np.float32) for r, c in grids]
    made = [picture_tokens(p, config.patch, 3) for p in pictures]
    row = joined_row(made, 26)
    batch = {name: jnp.asarray(array[None]) for name, array in row.items()}

    @jax.jit
    def hidden(model: Any, patches: jax.Array) -> jax.Array:
        tokens = model.tokenizers["image"].packed(
            patches, **{n: batch[n] for n in ("segment", "position", "register", "place")}
        )
        return model.backbones["shared"](tokens)[0]

    found, start = np.asarray(hidden(model, batch["patches"]))[0], 0
    for picture, grid in zip(pictures, grids, strict=True):
        alone, _ = model.hidden("image", "shared", jnp.asarray(picture[None]))
        stop = start + 3 + grid[0] * grid[1]
        np.testing.assert_allclose(found[start:stop], np.asarray(alone)[0], atol=2e-5, rtol=1e-5)
        start = stop
    # The gradient of one picture's hidden states by the patches of all others is exactly nothing.
    for segment in (1, 3):
        own = row["segment"] == segment
        slope = jax.grad(lambda x: jnp.square(hidden(model, x)[0][own]).sum())(batch["patches"])[0]  # noqa: B023
        assert not np.asarray(slope)[~own].any() and np.asarray(slope)[own & (row["register"] == 0)].any(axis=1).all()


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_packed_logits_are_those_of_each_alone(pooling: str) -> None:
    task, model = image_model()
    head = model.heads["vit"]["classify"]
    head.pooling = pooling
    head.linear.kernel.set_value(jax.random.normal(jax.random.key(0), head.linear.kernel.get_value().shape))
    packed = dataclasses.replace(task, pooling=pooling, pack=Packing(row=20, most=3))
    rng = np.random.default_rng(0)
    pictures = [rng.standard_normal((8 * r, 8 * c, 3)).astype(np.float32) for r, c in ((2, 1), (2, 2))]
    row = joined_row([picture_tokens(p, 8, 3) for p in pictures], 20)
    batch = {name: jnp.asarray(array[None]) for name, array in row.items()}
    found = np.asarray(picture_logits(packed, model, batch, count=3))[0]
    for logits, picture in zip(found, pictures, strict=False):
        alone = np.asarray(task.logits(model, jnp.asarray(picture[None])))[0]
        np.testing.assert_allclose(logits, alone, atol=1e-4, rtol=1e-4)
    batch["label"] = jnp.array([[1, 3, -1]])
    loss, metrics = packed.loss(model, batch, key=jax.random.key(0), step=jnp.int32(0))
    assert float(metrics["pictures"].total) == 2 and float(loss.count) == 2
    np.testing.assert_allclose(metrics["filled"], 12 / 20)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(40):
        place = root / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        height, width = rng.integers(6, 40, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(place)
    (root / "a" / "broken.png").write_bytes(b"no picture")
    return f"folder:{root}?bad=0.2"


def test_a_run_on_rows_of_pictures(photos: str, tmp_path: Path) -> None:
    change: dict[str, Any] = dict(source=photos, pack=dict(row=24, most=8), images=dict(crop=(0.5, 1.0), flip=0.5))
    config = tiny.plain("vit", steps=3, tasks__vit={**change, "batch_size": 2})
    run = tiny.train(config, tmp_path / "run")
    logged = run.metrics["vit"].values()
    assert np.mean([row["filled"] for row in logged]) > 0.6 and min(row["pictures"] for row in logged) >= 2
    task, model = run.experiment.tasks[0], run.experiment.model
    inputs = task.inputs(model)
    rows = [inputs.dataset("train").ordered()[i] for i in range(len(inputs.dataset("train")))]
    readable = [name for name in column(open_source(photos, "train"), "id") if "broken" not in name]
    assert sum(int((row["label"] >= 0).sum()) for row in rows) == len(readable)
    scored = task.evaluations()["vit"].inputs(model)
    assert scored.spec["label"].shape == () and scored.spec["patches"].shape[0] == 5
    assert len(scored.dataset("validation")) == len(task.open_split("validation"))
    result = task.evaluations()["vit"].measure(
        run.experiment.program.model(run.state), run.experiment.reader, limit=None
    )
    assert 0 <= result.score["value"] <= 1
    one = picture_rows(task, model).alone(task.open_split("train")[0])
    assert one["segment"].max() == 1 and one["patches"].shape == (5, 192)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(mixup=0.8), "pack goes without mixup"),
        (dict(patch_dropout=0.5), "pack goes without patch_dropout"),
        (dict(images=dict(resize=(8,))), r"pack goes without images\.resize"),
        (dict(pooling="attention"), "pack goes without pooling=attention"),
        (dict(pack=dict(row=3)), r"pack\.row=3 has no room for a picture of 5 tokens"),
        (dict(source="WEIGHED"), "weights of joined sources cannot be kept in rows of several"),
    ],
)
def test_what_rows_of_pictures_cannot_have(photos: str, change: dict[str, Any], said: str) -> None:
    plain = photos.removesuffix("?bad=0.2")
    source = f"{plain}?weight=1;{plain}/a?weight=2" if "source" in change else photos
    change = dict(pack=dict(row=32), labels=dict(classes=("a", "b"))) | change | dict(source=source)
    with pytest.raises(UsageError, match=said):
        experiment = tiny.build(tiny.plain("vit", tasks__vit=dict(batch_size=8, **change)))
        picture_rows(experiment.tasks[0], experiment.model)._dataset("train", 32, 4)


def test_best_fit_is_for_packed_documents() -> None:
    with pytest.raises(UsageError, match=r"fit=best_fit is for packed documents: set tasks\.gpt\.packed=True"):
        tiny.build(tiny.plain("gpt", tasks__gpt__fit="best_fit"))


LENGTHS = [1900, 700, 1240]  # samples


@pytest.mark.parametrize(
    "options", [{}, dict(conv_norm="layer", conv_bias=True), dict(position_layers=2)], ids=["group", "layer", "normed"]
)
def test_each_recording_of_a_row_is_what_it_is_alone(options: dict[str, Any]) -> None:
    config = tiny.plain("ctc")
    config["tokenizers"]["audio"] |= dict(kernels=(10, 3, 3), strides=(5, 2, 2), position_kernel=8, **options)
    experiment = tiny.build(config)
    model, rng = experiment.program.model(experiment.program.init()), np.random.default_rng(0)
    tokenizer, backbone = model.tokenizers["audio"], model.backbones["shared"]
    hop, frames = tokenizer.config.hop, tokenizer.config.frames
    sounds, starts = [rng.standard_normal(n).astype(np.float32) for n in LENGTHS], []
    row = np.zeros(4400, np.float32)
    start = 0
    for sound in sounds:
        starts.append(start)
        row[start : start + len(sound)] = sound
        start += -(-len(sound) // hop) * hop
    assert start < len(row)
    where = Recordings(jnp.array([[*starts, 0]], jnp.int32), jnp.array([[*LENGTHS, 0]], jnp.int32))
    silenced = jnp.asarray(rng.random((1, 4, 32)) < 0.2)

    @jax.jit
    def hidden(audio: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        tokens = tokenizer.embed(tokenizer.features(audio, where), recordings=where, silenced=silenced)
        return backbone(tokens)[0], tokens.segment

    found, segment = (np.asarray(x)[0] for x in hidden(jnp.asarray(row[None])))
    for i, (sound, start) in enumerate(zip(sounds, starts, strict=True)):
        alone = tokenizer.embed(tokenizer.features(jnp.asarray(sound[None])), silenced=silenced[:, i])
        wanted = np.asarray(backbone(alone)[0])[0]
        first = start // hop
        np.testing.assert_allclose(found[first : first + len(wanted)], wanted, atol=2e-5, rtol=1e-5)
        assert (segment == i + 1).sum() == len(wanted) == frames(len(sound))
        # Of one recording's hidden states by the others' embeddings the gradient is exactly nothing. By their samples it is
        # what a Fourier transform rounds, on a CPU.
        mine, weights = segment == i + 1, jnp.asarray(rng.standard_normal((len(segment), 32)).astype(np.float32))
        asked = jax.jit(
            lambda tokens, w, m: jax.grad(lambda x: (backbone(tokens.with_x(x))[0][0] * w * m).sum())(tokens.x)
        )
        tokens = tokenizer.embed(tokenizer.features(jnp.asarray(row[None]), where), recordings=where)
        slope = np.asarray(asked(tokens, weights, jnp.asarray(mine[:, None], jnp.float32)))[0]
        assert slope[mine].any(axis=1).all() and not slope[~mine].any()
        by_sample = jax.grad(lambda x: (hidden(x)[0][0] * weights)[mine].sum())(jnp.asarray(row[None]))[0]  # noqa: B023
        own = np.zeros(len(row), bool)
        own[start : start + len(sound)] = True
        assert np.abs(by_sample[~own]).max() < 1e-6 * np.abs(by_sample[own]).max()


def test_packed_transcripts_have_the_losses_of_each_alone(tmp_path: Path) -> None:
    change: dict[str, Any] = dict(
        sounds=dict(segments="phrases", seconds=2.4), transcripts=dict(characters=48), batch_size=2
    )
    config = tiny.plain(
        "ctc", steps=2, tasks__ctc={**change, "pack": dict(row=8, most=6), "mask": 0.3, "channel_mask": 0.2}
    )
    run = tiny.train(config, tmp_path / "run")
    rows = run.metrics["ctc"].values()
    assert all(row["filled"] > 0.6 and row["skipped"] == 0 for row in rows)
    task = dataclasses.replace(run.experiment.tasks[0], mask=0.0, channel_mask=0.0)
    model = run.experiment.program.model(run.state)
    packed = task.inputs(model).dataset("train")
    batch = {
        n: jnp.asarray(np.stack([packed.ordered()[i][n] for i in (0, 1)])) for n in ("audio", "start", "length", "text")
    }
    loss, metrics = task.loss(model, batch, key=jax.random.key(0), step=jnp.int32(0))
    total, c = 0.0, model.tokenizers["audio"].config
    for r, n in np.argwhere(np.asarray(batch["length"])):
        start, length = int(batch["start"][r, n]), int(batch["length"][r, n])
        one = {"audio": batch["audio"][r : r + 1, start : start + length], "length": batch["length"][r : r + 1, n]}
        alone = dataclasses.replace(task, pack=Packing())
        nats, _ = alone.loss(
            model, {**one, "text": batch["text"][r : r + 1, n]}, key=jax.random.key(0), step=jnp.int32(0)
        )
        total += float(nats.total)
        assert start % c.hop == 0
    np.testing.assert_allclose(float(loss.total), total, rtol=1e-5)
    names = " + ".join(str(packed.source[i]["id"]) for i in range(len(packed))).split(" + ")
    assert len(set(names)) == len(names) > 0.75 * len(task.single(model).dataset("train"))
    found = task.evaluations()["ctc"].measure(model, run.experiment.reader, limit=2)
    assert np.isfinite(found.score["value"])


def test_buckets_cut_batches_of_like_length(tmp_path: Path) -> None:
    change: dict[str, Any] = dict(
        sounds=dict(segments="phrases", seconds=2.4), transcripts=dict(characters=48), batch_size=4
    )
    plain = tiny.build(tiny.plain("ctc", tasks__ctc=change))
    cut = tiny.build(tiny.plain("ctc", tasks__ctc={**change, "buckets": (1.0, 1.6)}))
    epoch, seen = len(plain.tasks[0].inputs(plain.model).dataset("train")), []
    batches, sizes = cut.train_batches(cut.tasks[0]), set()
    made = [next(batches) for _ in range(-(-epoch // 4))]
    for batch in made:
        edge = batch["audio"].shape[1]
        sizes.add(edge)
        assert edge in (16_000, 25_600, 38_400) and batch["length"].max() <= edge
        assert batch["masked"].shape[1] == cut.model.tokenizers["audio"].config.frames(edge)
        seen += batch["id"].tolist()
    assert len(sizes) >= 2
    padding = lambda some: 1 - sum(b["length"].sum() for b in some) / sum(b["audio"].size for b in some)  # noqa: E731
    others = plain.train_batches(plain.tasks[0])
    assert padding(made) < padding([next(others) for _ in made]) - 0.1
    again = cut.train_batches(cut.tasks[0])  # from any place, without those before it
    again.set_state({"next_index": 7, "order": "seed and task"})
    assert [next(again)["id"].tolist() for _ in range(3)] == [batch["id"].tolist() for batch in made[7:10]]
    with pytest.raises(UsageError, match="pack and buckets are two ways to the same end"):
        tiny.build(tiny.plain("ctc", tasks__ctc={**change, "buckets": (1.0,), "pack": dict(row=8)}))
    with pytest.raises(UsageError, match=r"tasks\.ctc\.pack\.row=1 has no room for sounds\.seconds=2\.4"):
        tiny.build(tiny.plain("ctc", tasks__ctc={**change, "pack": dict(row=1)}))


def flac(samples: int, pitch: float) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, 0.1 * np.sin(np.arange(samples) * pitch), 8000, format="FLAC")
    return out.getvalue()


SAID = "abcdefghijklmnopqrstuvwxyz abc"


def speech(tmp_path: Path, torn: bytes, **options: Any) -> TranscribedSpeech:
    """Sixteen recordings of 4000 and 800 samples in turn. The last is torn, so that the first, a longer one, stands in for it."""
    LEDGER.clear()
    records = [
        {"id": f"r{i:02}", "audio": flac((4000, 800)[i % 2], 0.1 + 0.01 * i), "text": (SAID, SAID[:8])[i % 2]}
        for i in range(16)
    ]
    records[15]["audio"] = torn
    for split in ("train", "validation"):
        write_array_record(tmp_path / f"{split}.array_record", records)
    source, spoken = f"array_record:{tmp_path}?bad=0.5", Transcripts(characters=40)
    sounds = Sounds(rate=8000, seconds=0.6)
    return TranscribedSpeech("tasks.ctc", source, sounds, spoken, spoken.letters(source), **options)


def test_what_stands_in_is_not_cut_with_its_whole_transcript_in_a_bucket(tmp_path: Path) -> None:
    inputs = speech(tmp_path, b"fLaC", buckets=(0.15, 0.3)).inputs(lambda samples: samples // 16)
    batches = train_batches(inputs.dataset("train"), batch_size=4, seed=0, prefetch=False)
    made, left_out = [next(batches) for _ in range(64)], 0  # sixteen epochs
    for batch in made:
        edge = batch["audio"].shape[1]
        for audio, length, text in zip(batch["audio"], batch["length"], batch["text"], strict=True):
            there = int(np.flatnonzero(audio)[-1]) + 1, (text > 0).sum()
            assert not length or (length == there[0] and there in ((800, 8), (4000, 30)))
            left_out += not length
        assert batch["length"].dtype == np.int32 and batch["length"].max() <= edge
    assert {batch["audio"].shape[1] for batch in made} == {1200, 4800} and left_out == 16


def test_what_stands_in_has_a_place_of_a_row_if_there_is_room(tmp_path: Path) -> None:
    packed = PackedSpeech(speech(tmp_path, flac(800, 0.25)[:-300]), Packing(row=1.2), lambda n: n // 16, 16)
    dataset, found = packed.inputs.dataset("train"), []
    for i in range(len(dataset)):
        row, places = dataset[i], dataset.source[i]["places"]
        for place, start, length, text in zip(places, row["start"], row["length"], row["text"], strict=False):
            assert (length, (text > 0).sum()) == ((0, 0) if place == 15 else ((4000, 30), (800, 8))[place % 2])
            assert place != 15 or not row["audio"][start : start + 800].any()
            found.append(place)
    assert sorted(found) == list(range(16)) and {name for *_, name in LEDGER.found} == {"r15"}
