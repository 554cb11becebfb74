"""A ledger of plain arrays: what is stored, what is refused, and that nothing is lost. Long form: benchmarks/ledger.py."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny

from unimodal.command import ledger as command
from unimodal.errors import UsageError
from unimodal.ledger import Commit, Draft, Ledger, Manifest, arithmetic, changes, compare, exchange, manifest
from unimodal.ledger.git import MovedError
from unimodal.ledger.ledger import parse_address
from unimodal.ledger.locks import held
from unimodal.ledger.upkeep import gc, verify

RNG = np.random.default_rng(0)
BASE = {
    "parameters.trunk": RNG.normal(size=(40, 30)).astype(np.float32),
    "parameters.head": RNG.normal(size=(30, 5)).astype(np.float32),
    "parameters.scale": np.float32(1.5),
    "kept.count": np.arange(4, dtype=np.int32),
}


def commit(ledger: Ledger, arrays: Mapping[str, Any], message: str = "weights", branch: str = "main") -> Commit:
    with ledger.writing():
        tensors = ledger.add((name, np.asarray(array), ()) for name, array in arrays.items())
        return ledger.record(Draft(Manifest(tensors), {"config.json": b"{}"}), message, branch)


def moved(arrays: Mapping[str, Any], seed: int, *names: str, size: float = 0.1) -> dict[str, Any]:
    """The arrays with those of `names` changed."""
    rng = np.random.default_rng(seed)
    step = {n: rng.normal(size=np.shape(arrays[n])).astype(np.float32) * np.float32(size) for n in names}
    return {n: a + step[n] if n in step else a for n, a in arrays.items()}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger")


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*manifest.DTYPES.values()], ids=[*manifest.DTYPES])
def test_every_type_comes_back_bit_for_bit(ledger: Ledger, dtype: np.dtype) -> None:
    arrays = {"x": RNG.integers(0, 2, (3, 4)).astype(dtype), "none": np.zeros((0, 3), dtype), "one": np.ones((), dtype)}
    made = commit(ledger, arrays)
    for name, array in arrays.items():
        back = made.read(name)
        assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


def test_files_are_safetensors_named_by_their_hash(ledger: Ledger) -> None:
    from safetensors.numpy import load_file

    made = commit(ledger, BASE)
    for name, entry in made.manifest.tensors.items():
        file = ledger.store.file(entry.chunks[0])
        assert hashlib.sha256(file.read_bytes()).hexdigest() == entry.chunks[0]
        np.testing.assert_array_equal(load_file(file)["tensor"], BASE[name])


def test_a_large_tensor_lies_in_parts_and_pays_for_those_that_changed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "CHUNK", 1000)
    table = RNG.normal(size=(100, 25)).astype(np.float32)  # 100 bytes a row
    first = commit(ledger, {"table": table})
    assert len(first.manifest.tensors["table"].chunks) == 10
    table = table.copy()
    table[55] += 1
    second = commit(ledger, {"table": table})
    np.testing.assert_array_equal(second.read("table"), table)
    assert len(second.manifest.chunks() - first.manifest.chunks()) == 1


def test_ten_commits_that_change_a_head_cost_a_trunk_and_ten_heads(ledger: Ledger) -> None:
    arrays: dict[str, Any] = {f"parameters.trunk{i}": RNG.normal(size=(128, 128)).astype(np.float32) for i in range(8)}
    arrays |= {"parameters.head": RNG.normal(size=(128, 64)).astype(np.float32)}
    for seed in range(10):
        commit(ledger, arrays := moved(arrays, seed, "parameters.head"))
    trunk, head = 8 * 128 * 128 * 4, 128 * 64 * 4
    everything = sum(path.stat().st_size for path in ledger.path.rglob("*") if path.is_file())
    assert everything <= 1.1 * (trunk + 10 * head)
    assert verify(ledger).faults == []


def test_a_history_is_git_s_own(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = commit(ledger, BASE, "first\n\nand why")
    said = subprocess.run(
        ["git", "-C", str(ledger.git.folder), "log", "-1", "--format=%H %s|%b", "main"], capture_output=True, text=True
    )
    assert said.stdout.strip() == f"{made.id} first|and why"
    assert made.subject == "first" and made.message == "first\n\nand why" and made.json("config.json") == {}
    # Without a name that git knows, or can guess, commits have an author all the same.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    (tmp_path / ".gitconfig").write_text("[user]\n  useConfigOnly = true\n")
    assert commit(ledger, moved(BASE, 1, "parameters.head")).author == "unimodal"
    (tmp_path / ".gitconfig").write_text("[user]\n  name = Ada\n  email = ada@example.org\n")
    assert commit(ledger, moved(BASE, 2, "parameters.head")).author == "Ada"


def test_tensors_may_lie_in_a_bucket(tmp_path: Path) -> None:
    import fsspec

    ledger = Ledger.create(tmp_path / "ledger", tensors="memory://weights")
    made = commit(ledger, BASE)
    np.testing.assert_array_equal(made.read("parameters.trunk"), BASE["parameters.trunk"])
    assert verify(ledger).faults == [] and Ledger(ledger.path).store.listed() == ledger.store.listed()
    chunk = made.manifest.tensors["parameters.head"].chunks[0]
    system = fsspec.filesystem("memory")
    path = f"/weights/{chunk[:2]}/{chunk}.safetensors"
    system.pipe_file(path, system.cat_file(path)[:-1])
    assert verify(ledger).faults == [
        f"memory://weights/{chunk[:2]}/{chunk}.safetensors is damaged: it is not what its name says; parameters.head of "
        f"commit {made.short} is in it"
    ]
    system.rm_file(path)
    with pytest.raises(UsageError, match="is missing; parameters.head"):
        made.read("parameters.head")
    with pytest.raises(UsageError, match="is a bucket, in which others may be writing"):
        gc(ledger)
    with pytest.raises(UsageError, match="cannot open gs2://x: give a folder, gs://… or s3://…"):
        Ledger.create(tmp_path / "other", tensors="gs2://x")
    assert not (tmp_path / "other").exists()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_slips_are_one_line(ledger: Ledger, tmp_path: Path) -> None:
    commit(ledger, BASE)
    ledger.branch("speech", "main")
    other = commit(ledger, {**BASE, "parameters.head": np.zeros((30, 6), np.float32)}, branch="other")
    third = commit(ledger, {n: a for n, a in BASE.items() if n != "parameters.scale"}, branch="third")
    slips = {
        "is no ledger; `ledger init": lambda: Ledger(tmp_path),
        "is a ledger already": lambda: Ledger.create(ledger.path),
        "is not empty": lambda: Ledger.create(tmp_path),
        "has no branch, tag or commit 'spech'; did you mean speech?": lambda: ledger.commit("spech"),
        "has no branch, tag or commit '--all'": lambda: ledger.commit("--all"),
        "has no branch, tag or commit 'mian'; did you mean main?": lambda: changes.revert(ledger, "main", "mian"),
        "has a branch 'speech' already": lambda: ledger.branch("speech", "main"),
        "'a b' is no name of a branch; 'a-b' would be": lambda: ledger.branch("a b", "main"),
        "a commit needs a message": lambda: commit(ledger, BASE, " "),
        "parameters.head is float32[30, 5] in commit": lambda: changes.merge(
            ledger, ["other"], "main", changes.Merging("mean")
        ),
        "parameters.scale is float32[] in commit": lambda: changes.merge(
            ledger, ["third"], "main", changes.Merging("mean")
        ),
        "are not different commits": lambda: changes.merge(ledger, ["speech"], "main", changes.Merging("mean")),
        "no merge method 'tied'; did you mean ties?": lambda: changes.Merging("tied"),
        "keep must be above 0": lambda: changes.Merging("ties", keep=0),
        "is the first one: it changed nothing": lambda: changes.revert(ledger, "main", "main"),
        "'ledger:here' should be ledger:PATH@REF": lambda: parse_address("ledger:here"),
        "has no parameters.hed; did you mean parameters.head?": lambda: other.read("parameters.hed"),
        "which safetensors does not have": lambda: ledger.add([("x", np.zeros(2, np.complex64), ())]),
    }
    for words, slip in slips.items():
        with pytest.raises(UsageError, match=".") as caught:
            slip()
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no common ancestor; give --base"):
        changes.merge(ledger, [third.id], "main", changes.Merging("ties"))


# --- what changed -----------------------------------------------------------------------------------------------------


def test_changes_have_norm_cosine_and_rank(ledger: Ledger) -> None:
    first = commit(ledger, BASE)
    low = np.outer(RNG.normal(size=40), RNG.normal(size=30)) + np.outer(RNG.normal(size=40), RNG.normal(size=30))
    later = {**BASE, "parameters.trunk": (BASE["parameters.trunk"] + low).astype(np.float32)}
    later = moved(later, 1, "parameters.head", size=0.01)
    later["new"] = np.zeros(3, np.float32)
    trunk, head, new = compare.changes(first, commit(ledger, later))
    assert (trunk.name, head.name, new.kind) == ("parameters.trunk", "parameters.head", "added")
    for change in (trunk, head):
        a, b = (x[change.name].astype(np.float64) for x in (BASE, later))
        assert change.norm == pytest.approx(np.linalg.norm(b - a), rel=1e-6)
        assert change.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-6)
        assert change.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)
        singular = np.linalg.svd(b - a, compute_uv=False)
        share = singular / singular.sum()
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum()
        assert change.rank == pytest.approx(np.exp(entropy), rel=1e-3)
    assert 1 < (trunk.rank or 0) <= 2.01


def test_effective_rank_of_known_matrices() -> None:
    assert compare.effective_rank(np.eye(7)) == pytest.approx(7)
    assert compare.effective_rank(np.outer(np.arange(1, 5.0), np.arange(1, 9.0))) == pytest.approx(1)
    assert compare.effective_rank(np.zeros((3, 3))) == 0
    assert compare.effective_rank(np.arange(5.0)) is None


# --- arithmetic, against the papers' formulas in plain numpy ------------------------------------------------------------


def test_task_arithmetic_and_mean_by_hand() -> None:
    base, a, b = (RNG.normal(size=(6, 7)) for _ in range(3))
    np.testing.assert_allclose(arithmetic.mean([base, a, b]), np.mean([base, a, b], axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        arithmetic.task_arithmetic(base, [a, b], 0.4), base + 0.4 * ((a - base) + (b - base)), rtol=1e-12
    )
    np.testing.assert_allclose(arithmetic.moved(base, a, b, -0.3), base - 0.3 * (a - b), rtol=1e-12)
    half = base.astype(ml_dtypes.bfloat16)
    assert arithmetic.mean([half, half]).dtype == half.dtype


def ties_by_hand(base: np.ndarray, tensors: list[np.ndarray], keep: float, scale: float) -> np.ndarray:
    """Algorithm 1 of Yadav 2023, number by number."""
    trimmed = []
    for tensor in tensors:
        vector = (tensor - base).reshape(-1)
        order = np.argsort(-np.abs(vector), kind="stable")[: round(keep * vector.size)]
        kept = np.zeros_like(vector)
        kept[order] = vector[order]
        trimmed.append(kept)
    out = np.zeros(base.size)
    for i in range(base.size):
        total = sum(v[i] for v in trimmed)
        same = [v[i] for v in trimmed if v[i] != 0 and np.sign(v[i]) == np.sign(total)]
        out[i] = np.mean(same) if same else 0.0
    return base + scale * out.reshape(base.shape)


@pytest.mark.parametrize("keep", [0.2, 0.5, 1.0])
def test_ties_by_hand(keep: float) -> None:
    base, *tensors = (RNG.normal(size=(13, 9)) for _ in range(4))
    least = [arithmetic.kept_from(lambda t=t: [arithmetic.delta(t, base)], keep) for t in tensors]
    found = arithmetic.ties(base, tensors, least, 0.7)
    np.testing.assert_allclose(found, ties_by_hand(base, tensors, keep, 0.7), rtol=1e-12)


def test_the_threshold_is_exact_over_all_tensors() -> None:
    parts = [RNG.normal(size=n).astype(np.float32) * s for n, s in ((1000, 1.0), (3, 50.0), (500, 0.01))]
    whole = np.sort(np.abs(np.concatenate(parts)))[::-1]
    for share in (0.001, 0.2, 0.77, 1.0):
        count = round(share * whole.size)
        assert arithmetic.kept_from(lambda: parts, share) == whole[count - 1]
    assert arithmetic.kept_from(lambda: parts, 1e-9) == np.inf


def test_fisher_mean_by_hand() -> None:
    tensors, fishers = [RNG.normal(size=(4, 5)) for _ in range(3)], [RNG.random((4, 5)) for _ in range(3)]
    top = sum(f * t for f, t in zip(fishers, tensors, strict=True))
    np.testing.assert_allclose(arithmetic.fisher_mean(tensors, fishers), top / sum(fishers), rtol=1e-12)
    nothing = [np.zeros((4, 5))] * 3
    np.testing.assert_allclose(arithmetic.fisher_mean(tensors, nothing), np.mean(tensors, axis=0), rtol=1e-12)


def test_conflicts_by_hand() -> None:
    base = np.zeros(6)
    a, b = np.array([1, -1, 1, 0, 2, 0.0]), np.array([-1, -1, 1, 1, -3, 0.0])
    assert arithmetic.conflict(base, [a, b]) == (4, 2)


# --- commits made of commits ----------------------------------------------------------------------------------------------


def test_reverting_the_last_commit_gives_the_one_before(ledger: Ledger) -> None:
    first = commit(ledger, BASE)
    bad = commit(ledger, moved(BASE, 1, "parameters.trunk", "parameters.head"), "worse")
    size = len(ledger.store.listed()[0])
    back = changes.revert(ledger, bad.id, "main")
    assert back.manifest.tensors == first.manifest.tensors and back.parents == (bad.id,)
    assert len(ledger.store.listed()[0]) == size  # and no byte was written
    assert back.manifest.made == {"revert": bad.id, "scale": -1.0} and "worse" in back.subject
    with pytest.raises(UsageError, match="changes no weight"):
        changes.cherry_pick(ledger, back.id, "main", scale=0.0)


def test_reverting_an_earlier_commit_keeps_what_came_after(ledger: Ledger) -> None:
    commit(ledger, BASE)
    bad_arrays = moved(BASE, 1, "parameters.trunk")
    bad = commit(ledger, bad_arrays)
    later = moved(bad_arrays, 2, "parameters.trunk", "parameters.head")
    commit(ledger, later)
    back = changes.revert(ledger, "main~1", "main")
    wide = {n: np.asarray(a, np.float64) for n, a in later.items()}
    expected = wide["parameters.trunk"] - (bad_arrays["parameters.trunk"].astype(np.float64) - BASE["parameters.trunk"])
    np.testing.assert_array_equal(back.read("parameters.trunk"), expected.astype(np.float32))
    np.testing.assert_array_equal(back.read("parameters.head"), later["parameters.head"])
    np.testing.assert_array_equal(back.read("kept.count"), BASE["kept.count"])
    again = changes.cherry_pick(ledger, bad.id, "main")
    # Rounded twice to float32, at the size of what was added.
    np.testing.assert_allclose(again.read("parameters.trunk"), later["parameters.trunk"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", changes.METHODS)
def test_merges_of_branches(ledger: Ledger, method: str) -> None:
    commit(ledger, BASE)
    ledger.branch("other", "main")
    ours = moved(BASE, 1, "parameters.trunk", "parameters.head")
    theirs = {**moved(BASE, 2, "parameters.trunk"), "kept.count": np.zeros(4, np.int32)}
    head = commit(ledger, ours)
    other = commit(ledger, theirs, branch="other")
    fishers = [{n: RNG.random(np.shape(a)) for n, a in BASE.items()} for _ in range(2)]
    how = changes.Merging(method, 0.8, 0.5, fishers if method == "fisher" else ())
    made, conflicts = changes.merge(ledger, ["other"], "main", how)
    assert made.parents == (head.id, other.id)
    # Counts and queues stay those of the branch that is merged into.
    np.testing.assert_array_equal(made.read("kept.count"), BASE["kept.count"])
    name = "parameters.trunk"
    base, a, b = (np.asarray(x[name], np.float64) for x in (BASE, ours, theirs))
    assert [c.name for c in conflicts] == [name]
    assert conflicts[0].opposite == int((np.sign(a - base) * np.sign(b - base) < 0).sum())
    if method == "ties":
        weights = [n for n in BASE if n.startswith("parameters")]
        flat = lambda arrays: np.concatenate([np.asarray(arrays[n], np.float64).reshape(-1) for n in weights])  # noqa: E731
        expected = ties_by_hand(flat(BASE), [flat(ours), flat(theirs)], 0.5, 0.8)
        found = np.concatenate([made.read(n).reshape(-1) for n in weights])
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        return
    fa, fb = (f[name] for f in fishers)
    expected = {
        "mean": (a + b) / 2,
        "task_arithmetic": base + 0.8 * ((a - base) + (b - base)),
        "fisher": (fa * a + fb * b) / (fa + fb),
    }[method]
    np.testing.assert_allclose(made.read(name), expected, rtol=1e-6)


def test_averages_are_merged_by_the_fishers_of_their_parameters(ledger: Ledger) -> None:
    averaged = {**BASE, "ema.values.trunk": BASE["parameters.trunk"] + 1}
    commit(ledger, averaged)
    ledger.branch("other", "main")
    both = [moved(averaged, seed, "parameters.trunk", "ema.values.trunk") for seed in (1, 2)]
    commit(ledger, both[0])
    commit(ledger, both[1], branch="other")
    fishers = [{"parameters.trunk": RNG.random((40, 30)) + 0.1} for _ in range(2)]
    made, _ = changes.merge(ledger, ["other"], "main", changes.Merging("fisher", fishers=fishers))
    weights = [f["parameters.trunk"] for f in fishers]
    for name in ("parameters.trunk", "ema.values.trunk"):
        expected = np.average([np.asarray(a[name], np.float64) for a in both], axis=0, weights=weights)
        np.testing.assert_allclose(made.read(name), expected, rtol=1e-6)


def test_a_merge_is_of_the_commits_whose_fishers_were_measured(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "parameters.trunk"
    commit(ledger, BASE)
    ledger.branch("other", "main")
    both = [moved(BASE, seed, name) for seed in (1, 2)]
    measured = [commit(ledger, both[0]).id, commit(ledger, both[1], branch="other").id]
    weights = [RNG.random((40, 30)) + 0.1 for _ in range(2)]
    moves = ["other"]

    def fishers(_: Any, commits: Any, batches: int) -> list[dict[str, np.ndarray]]:
        commit(ledger, moved(BASE, 3, name), branch=moves.pop())  # a run commits meanwhile
        return [{name: weights[measured.index(one.id)]} for one in commits]

    monkeypatch.setattr(command, "fishers", fishers)
    words = ["merge", str(ledger.path), "other", "--method=fisher", "--evaluate=false"]
    assert command.run_ledger(words, "unimodal") == 0
    made = ledger.commit("main")
    assert made.parents == tuple(measured) and "Merge other into main" in capsys.readouterr().out
    expected = np.average([np.asarray(a[name], np.float64) for a in both], axis=0, weights=weights)
    np.testing.assert_allclose(made.read(name), expected, rtol=1e-6)
    moves.append("main")
    measured[:] = [made.id, ledger.resolve("other")]
    with pytest.raises(MovedError, match="has moved meanwhile"):
        command.run_ledger(words, "unimodal")


# --- two writers, and a gc among them ----------------------------------------------------------------------------------


def benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    """Processes that write, and are killed, are forked where JAX has started no threads."""
    command = [sys.executable, "-m", "benchmarks.ledger", *words]
    return subprocess.run(command, cwd=tiny.ROOT, env=tiny.environment(1), capture_output=True, text=True)


def test_writers_do_not_lose_each_other_s_commits() -> None:
    done = benchmark("writers", "--count=5")
    assert done.returncode == 0 and "4 writers, 20 commits: 0 lost, 0 faults" in done.stdout, done.stdout + done.stderr


def test_kills_leave_a_clean_ledger() -> None:
    done = benchmark("kills", "--count=5")
    assert done.returncode == 0 and re.search(r"5 kills: .* 0 lost; 0 faults", done.stdout), done.stdout + done.stderr


def test_a_merge_of_what_has_moved_is_refused(ledger: Ledger) -> None:
    head = commit(ledger, BASE)
    commit(ledger, moved(BASE, 1, "parameters.head"))
    with pytest.raises(MovedError, match="has moved meanwhile"):
        ledger.record(head.draft, "late", "main", on=head.id)


def test_gc_waits_for_writers(ledger: Ledger) -> None:
    with held(ledger.path, alone=False), pytest.raises(UsageError, match="another process writes"):
        gc(ledger, patience=0.1)


def test_gc_keeps_what_is_named(ledger: Ledger) -> None:
    commit(ledger, BASE)
    with ledger.writing():
        ledger.add([("lost", RNG.normal(size=100), ())])
    (ledger.store.folder or Path()).joinpath("ab").mkdir(exist_ok=True)
    (ledger.store.folder or Path()).joinpath("ab/half.writing").write_bytes(b"half")
    before = verify(ledger)
    assert (before.unnamed, before.torn, before.faults) == (1, 1, [])
    removed = gc(ledger)
    assert (removed.files, removed.torn) == (1, 1)
    after = verify(ledger)
    assert (after.unnamed, after.torn, after.faults, after.files) == (0, 0, [], len(BASE))


def test_gc_leaves_another_ledger_s_tensors_alone(ledger: Ledger, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    first = Ledger.create(tmp_path / "first", tensors=shared)
    made = commit(first, BASE)
    assert verify(first).foreign == [] and gc(first).files == 0
    for there in (shared, str(ledger.path / "tensors")):
        with pytest.raises(UsageError, match=r"belongs to another ledger, made in .*; give a folder of its own"):
            Ledger.create(tmp_path / "second", tensors=there)
        assert not (tmp_path / "second").exists()
    with pytest.raises(UsageError, match="belongs to another ledger"):
        exchange.push(first, str(ledger.path / "tensors"), git=str(tmp_path))
    # A ledger of before, which has no id, and a folder that does not say whose it is.
    second = Ledger.create(tmp_path / "second")
    (second.path / "ledger.json").write_text(json.dumps({"format": 1, "tensors": shared}))
    second = Ledger(second.path)
    with pytest.raises(UsageError, match="belongs to another ledger"):
        gc(second)
    owner = tmp_path / "shared" / "owner"
    owner.unlink()
    with pytest.raises(UsageError, match="may have tensors there; if none has, write .*/second into .*/shared/owner"):
        gc(second)
    with pytest.raises(UsageError, match="has tensors already, and no owner file"):
        Ledger.create(tmp_path / "third", tensors=shared)
    np.testing.assert_array_equal(made.read("parameters.trunk"), BASE["parameters.trunk"])
    owner.write_text(second.id)
    assert gc(second).files == len(BASE)
    (ledger.path / "tensors" / "owner").unlink()  # beside its history it is a ledger's own
    assert gc(ledger).files == 0


# --- damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "delete", "swap"])
def test_damage_is_named(ledger: Ledger, damage: str) -> None:
    made = commit(ledger, BASE)
    chunk = made.manifest.tensors["parameters.head"].chunks[0]
    file, content = ledger.store.file(chunk), bytearray(ledger.store.file(chunk).read_bytes())
    if damage == "flip":
        content[RNG.integers(len(content))] ^= 1 << RNG.integers(8)
    elif damage == "cut":
        content = content[: RNG.integers(len(content))]
    elif damage == "grow":
        content += b"\0"
    elif damage == "swap":
        content = bytearray(ledger.store.file(made.manifest.tensors["parameters.trunk"].chunks[0]).read_bytes())
    file.write_bytes(content)
    if damage == "delete":
        file.unlink()
    word = "is missing" if damage == "delete" else "is damaged"
    with pytest.raises(UsageError, match=word) as caught:
        made.read("parameters.head")
    assert "parameters.head" in str(caught.value) and chunk in str(caught.value)
    faults = verify(ledger).faults
    assert len(faults) == 1 and chunk in faults[0] and "parameters.head" in faults[0]


def test_a_torn_git_object_is_named_and_gc_removes_nothing(ledger: Ledger) -> None:
    commit(ledger, BASE)
    blob = ledger.git.text("rev-parse", "main:manifest.json")
    file = ledger.git.folder / "objects" / blob[:2] / blob[2:]
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-5])
    assert any(blob in fault for fault in verify(ledger).faults)
    count = len(ledger.store.listed()[0])
    with pytest.raises(UsageError):
        gc(ledger)
    assert len(ledger.store.listed()[0]) == count


def test_a_path_that_leads_out_of_the_folder_is_refused(ledger: Ledger) -> None:
    made = commit(ledger, BASE)
    blob = ledger.git.text("hash-object", "-w", "--stdin", given=b"evil")
    inner = ledger.git.text("mktree", given=f"100644 blob {blob}\tevil\n".encode())
    outer = ledger.git.text("mktree", given=f"040000 tree {inner}\t..\n".encode())
    ledger.git.move("refs/heads/main", ledger.git.commit_tree(outer, [made.id], "evil"), made.id, "evil")
    with pytest.raises(UsageError, match=r"has a file '\.\./evil', which leads out of its folder"):
        assert ledger.commit("main").names


def test_a_foreign_file_in_the_store_is_told(ledger: Ledger) -> None:
    commit(ledger, BASE)
    (ledger.path / "tensors" / "notes.txt").write_text("mine")
    assert verify(ledger).foreign == ["notes.txt"]


# --- push and pull -----------------------------------------------------------------------------------------------------------


def test_push_and_pull_carry_what_is_missing(ledger: Ledger, tmp_path: Path) -> None:
    commit(ledger, BASE)
    far = Ledger.create(tmp_path / "far", tensors=str(tmp_path / "elsewhere"))
    assert exchange.push(ledger, str(far.path)).files == len(BASE)
    commit(ledger, moved(BASE, 1, "parameters.head"))
    sent = exchange.push(ledger, str(far.path))
    assert (sent.files, sent.there) == (1, len(BASE))
    assert far.heads() == ledger.heads() and verify(far).faults == []
    near = Ledger.create(tmp_path / "near")
    assert exchange.pull(near, str(far.path)).files == len(BASE) + 1
    assert near.heads() == far.heads() and verify(near).faults == []
    # Both go on: what would lose commits is refused there, and stands beside the branch here.
    here, there = commit(near, moved(BASE, 2, "parameters.trunk")), commit(far, moved(BASE, 3, "parameters.trunk"))
    with pytest.raises(UsageError, match="pull and merge first"):
        exchange.push(near, str(far.path))
    exchange.pull(near, str(far.path))
    assert near.heads()["main"] == here.id and near.commit("origin/main").id == there.id
    changes.merge(near, ["origin/main"], "main", changes.Merging())
    exchange.push(near, str(far.path))
    assert far.heads() == near.heads()
    with pytest.raises(UsageError, match="has no branch 'nothing'"):
        exchange.pull(near, str(far.path), ["nothing"])


def test_damage_does_not_travel(ledger: Ledger, tmp_path: Path) -> None:
    made = commit(ledger, BASE)
    ledger.store.file(made.manifest.tensors["parameters.head"].chunks[0]).write_bytes(b"other")
    far = Ledger.create(tmp_path / "far")
    with pytest.raises(UsageError, match="is damaged"):
        exchange.push(ledger, str(far.path))
    assert far.heads() == {}


def test_what_was_cut_short_over_there_is_mended(ledger: Ledger, tmp_path: Path) -> None:
    made = commit(ledger, BASE)
    far = Ledger.create(tmp_path / "far")
    exchange.push(ledger, str(far.path))
    chunk = made.manifest.tensors["parameters.head"].chunks[0]
    for broken, mend in (
        (far, lambda: exchange.push(ledger, str(far.path))),
        (ledger, lambda: exchange.pull(ledger, str(far.path))),
    ):
        whole = broken.store.file(chunk).read_bytes()
        broken.store.file(chunk).write_bytes(whole[:-1])
        sent = mend()
        assert (sent.files, sent.bytes) == (1, len(whole))
        assert broken.store.file(chunk).read_bytes() == whole and verify(broken).faults == []
