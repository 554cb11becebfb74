"""A flipped bit is never restored: it is one line that names an older checkpoint, if there is a whole one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
import toy

from unimodal.errors import StorageError, UsageError
from unimodal.training.checkpoint import Checkpoints, DamagedError, saved_steps
from unimodal.training.facts import facts_of, fault
from unimodal.training.keep import Keep
from unimodal.training.loop import LoopConfig
from unimodal.training.metrics import read_metrics


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of six steps with all its checkpoints, and its fingerprint."""
    workdir = tmp_path_factory.mktemp("saved")
    return workdir, toy.run(workdir, steps=6, keep_checkpoints=6)[1]


@pytest.fixture
def copy(saved: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


def facts_file(workdir: Path, step: int) -> Path:
    return workdir / "checkpoints" / str(step) / "facts" / "metadata"


def change(workdir: Path, step: int, spoil: Callable[[dict[str, Any]], None]) -> None:
    path = facts_file(workdir, step)
    facts = json.loads(path.read_text())
    spoil(facts)
    path.write_text(json.dumps(facts))


def rename(group: str) -> Callable[[dict[str, Any]], None]:
    def spoil(facts: dict[str, Any]) -> None:
        name = next(iter(facts[group]))
        facts[group][name[:-1] + chr(ord(name[-1]) ^ 1)] = facts[group].pop(name)

    return spoil


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a name among the hashes": (rename("hashes"), "hashes and shapes differ in what arrays there are"),
    "a name among the shapes": (rename("shapes"), "hashes and shapes differ in what arrays there are"),
    "the fingerprint": (
        lambda f: f.update(fingerprint="0" + f["fingerprint"][1:] + "1"),
        "the fingerprint is not that of",
    ),
    "a hash": (lambda f: f["hashes"].update({next(iter(f["hashes"])): 1}), "the fingerprint is not that of the hashes"),
    "a hash is a word": (lambda f: f["hashes"].update({next(iter(f["hashes"])): "1"}), "a hash is no whole number"),
    "a key": (lambda f: f.update(hasher=f.pop("hashes")), "they are not the facts of a checkpoint"),
    "the key of the digest": (lambda f: f.update(digesu=f.pop("digest")), "they are not the facts of a checkpoint"),
    "where the data is": (lambda f: f["iterators"]["toy"].update(k=7), "they do not match their digest"),
    "a shape": (lambda f: f["shapes"].update({next(iter(f["shapes"])): "int32[1]"}), "they do not match their digest"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_facts_are_named(what: str, copy: Path) -> None:
    spoil, line = SPOILT[what]
    change(copy, 6, spoil)
    with pytest.raises(DamagedError) as caught:
        toy.run(copy, steps=8)
    text = str(caught.value)
    assert text.startswith(f"checkpoint 6 is damaged: {line}") and "\n" not in text
    assert text.endswith("; that of step 5 is whole: --step=5 takes it")


def test_every_flipped_bit_of_the_facts_is_noticed(saved: tuple[Path, str]) -> None:
    text = facts_file(saved[0], 6).read_bytes()
    assert fault(json.loads(text)) is None
    good = json.loads(text)
    for place in range(0, len(text), 7):
        for bit in range(8):
            spoilt = bytearray(text)
            spoilt[place] ^= 1 << bit
            try:
                facts = json.loads(bytes(spoilt))
            except ValueError:
                continue
            assert fault(facts) is not None or facts == good, (place, bit)


def test_facts_without_a_digest_are_of_an_earlier_version() -> None:
    facts = facts_of({"a": 1}, {"a": "int32[]"}, {}, None)
    for name in ("digest", "score"):
        del facts[name]
    assert fault(facts) is None
    assert fault({**facts, "fingerprint": "0" * 16}) == "the fingerprint is not that of the hashes"


def test_a_run_goes_on_from_an_older_checkpoint(saved: tuple[Path, str], copy: Path) -> None:
    for step in (5, 6):
        change(copy, step, rename("hashes"))
    with pytest.raises(DamagedError, match="--step=4 takes it"):
        toy.run(copy)
    assert saved_steps(copy) == [1, 2, 3, 4, 5, 6]
    state, fingerprint, done = toy.run(copy, steps=6, from_step=4, keep_checkpoints=6)
    assert (int(state.step), fingerprint, done) == (6, saved[1], True)
    assert sorted(path.name for path in (copy / "set_aside").iterdir()) == ["5", "6"]
    assert [row["step"] for row in read_metrics(copy)] == [1, 2, 3, 4, 5, 6]
    checkpoints = Checkpoints(copy)
    assert checkpoints.restore(toy.program().abstract_state())[2] == saved[1]
    checkpoints.close()
    # Again: what was set aside before stays, too.
    toy.run(copy, steps=6, from_step=4, keep_checkpoints=6)
    assert sorted(path.name for path in (copy / "set_aside").iterdir()) == ["5", "5.2", "6", "6.2"]


def test_the_checkpoint_of_step_0_is_one_to_go_on_from(tmp_path: Path) -> None:
    """Neither fresh weights nor a later checkpoint take its place."""
    program = toy.program()
    with Checkpoints(tmp_path) as checkpoints:
        given = program.init()
        given = dataclasses.replace(given, parameters=jax.tree.map(lambda x: x + 1, given.parameters))
        first = checkpoints.save(given, {"toy": {"k": 3}})
    _, going_on, _ = toy.run(tmp_path, steps=2, keep_checkpoints=3)
    assert going_on != toy.run(tmp_path / "fresh", steps=2)[1]
    state, again, _ = toy.run(tmp_path, steps=2, from_step=0, keep_checkpoints=3)
    assert (int(state.step), again) == (2, going_on)
    assert sorted(path.name for path in (tmp_path / "set_aside").iterdir()) == ["1", "2"]
    assert Checkpoints(tmp_path).fingerprint(0) == first


def test_no_whole_one_is_said(copy: Path) -> None:
    for step in range(1, 7):
        change(copy, step, rename("hashes"))
    with pytest.raises(DamagedError, match="no older one is whole"):
        toy.run(copy)


def test_checkpoints_under_each_other_s_names_are_damage(copy: Path) -> None:
    folder = copy / "checkpoints"
    for old, new in (("5", "x"), ("6", "5"), ("x", "6")):
        (folder / old).rename(folder / new)
    with pytest.raises(
        DamagedError, match="checkpoint 6 is damaged: what lies there is that of step 5; .*--step=4 takes it"
    ):
        toy.run(copy)


def test_a_step_that_is_not_there(copy: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint of step 9 in \S+, only of 1, 2, 3, 4, 5, 6"):
        toy.run(copy, from_step=9)


def test_what_a_killed_save_has_left_is_removed(copy: Path, saved: tuple[Path, str]) -> None:
    left = copy / "checkpoints" / "7.orbax-checkpoint-tmp"
    shutil.copytree(copy / "checkpoints" / "6", left)
    shutil.rmtree(left / "facts")
    assert saved_steps(copy) == [1, 2, 3, 4, 5, 6]
    checkpoints = Checkpoints(copy)  # an evaluation, beside a run that may be writing just that
    assert checkpoints.restore(toy.program().abstract_state())[2] == saved[1]
    checkpoints.close()
    assert left.exists()
    toy.run(copy, steps=7)
    assert not left.exists()


SCORES = {10: 0.1, 20: 0.9, 30: 0.9, 40: float("nan"), 50: 0.2}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(), {40, 50}),
        (Keep(last=1), {50}),
        (Keep(last=1, every=20), {20, 40, 50}),
        (Keep(last=1, best=True), {20, 50}),  # the earliest of equals, and never what is no number
        (Keep(last=1, best=False), {10, 50}),
        (Keep(last=2, every=30, best=True), {20, 30, 40, 50}),
    ],
)
def test_which_are_kept(keep: Keep, kept: set[int]) -> None:
    assert keep.chosen(list(SCORES), SCORES) == kept


def test_the_best_stays_over_a_restart(tmp_path: Path) -> None:
    values = {2: 0.5, 4: 0.9, 6: 0.3, 8: 0.1}

    def evaluate(_model: Any, step: int) -> dict[str, dict[str, float]]:
        return {"toy": {"value": values[step]}}

    options: dict[str, Any] = dict(
        eval_every=2, checkpoint_every=2, keep_checkpoints=1, keep_every=6, keep_best="toy", evaluate=evaluate
    )
    toy.run(tmp_path, steps=10, stop_after=4, higher_is_better={"toy": True}, **options)
    assert saved_steps(tmp_path) == [4]
    toy.run(tmp_path, steps=10, stop_after=8, higher_is_better={"toy": True}, **options)
    assert saved_steps(tmp_path) == [4, 6, 8]


@pytest.mark.parametrize("every", [(0, 2), (2, 0), (0, 0), (4, 6), (2, 10), (12, 12)])
def test_the_best_of_none_is_refused(every: tuple[int, int]) -> None:
    fields: dict[str, Any] = dict(steps=10, eval_every=every[0], checkpoint_every=every[1])
    LoopConfig(**fields).check_best()
    LoopConfig(**fields, schedule="sequence", keep_best="toy").check_best()  # evaluated where a task ends, too
    LoopConfig(steps=10, eval_every=2, checkpoint_every=4, keep_best="toy").check_best()
    with pytest.raises(UsageError, match=rf"keep_best='toy' has no checkpoint .*eval_every={every[0]}"):
        LoopConfig(**fields, keep_best="toy").check_best()


def test_a_checkpoint_that_is_not_what_was_saved_ends_the_run(tmp_path: Path) -> None:
    toy.run(tmp_path / "good", steps=3, verify_checkpoints=True)  # says nothing, for there is nothing to say

    class Spoiling(Checkpoints):
        def save(self, state: Any, *rest: Any) -> str:
            found = super().save(state, *rest)
            self._manager.wait_until_finished()
            if int(state.step) == 2:
                files = sorted((tmp_path / "bad/checkpoints/2").rglob("d/*"), key=lambda path: path.stat().st_size)
                content = bytearray(files[-1].read_bytes())
                content[len(content) // 2] ^= 1
                files[-1].write_bytes(content)
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unimodal.training.loop.Checkpoints", Spoiling)
        with pytest.raises(StorageError, match="checkpoint 2 is damaged.* that of step 1 is whole"):
            toy.run(tmp_path / "bad", steps=3, verify_checkpoints=True)
