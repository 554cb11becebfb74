"""A workdir in a bucket: the same run as in a folder, through the real clients, against a stand-in for Cloud Storage.

That test needs `pip install gcsfs` and is left out without: Google's clients would add seconds to the start of every process of the
other tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fake_bucket
import pytest
import tiny
from etils import epath

from unimodal import storage
from unimodal.errors import UsageError
from unimodal.training.checkpoint import Checkpoints, saved_steps
from unimodal.training.lease import Lease
from unimodal.training.workdir import claim_workdir
from unimodal.training.workdir_start import is_workdir


@pytest.mark.parametrize("name", ["s3://bucket/run", "gs:/bucket/run", "gs://", "gs:///run", "http://host/run"])
def test_an_address_that_is_none_is_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="is no place for a run: give a folder, or a bucket as gs://BUCKET"):
        storage.folder(name)


def test_without_its_package_a_bucket_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    storage.require_backend("runs/demo")
    with pytest.raises(
        UsageError, match=r"gs://bucket/run is in a bucket, which takes gcsfs: pip install 'unimodal\[gs\]"
    ):
        storage.require_backend(storage.folder("gs://bucket/run"))


def test_a_mirror_copies_what_has_changed(tmp_path: Path) -> None:
    mirror = storage.Mirror(tmp_path)  # a folder will do for a bucket here
    (mirror.local / "metrics.jsonl").write_text("1\n")
    mirror.sync()
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n"
    (tmp_path / "metrics.jsonl").unlink()
    mirror.sync()  # nothing has changed
    assert not (tmp_path / "metrics.jsonl").exists()
    with (mirror.local / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    mirror.push()
    mirror.close()
    mirror.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n2\n"
    assert not mirror.local.exists()


def test_a_mirror_that_cannot_copy_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = storage.Mirror(tmp_path / "missing")
    (mirror.local / "a").write_text("1")
    mirror.sync()
    mirror.sync()
    assert capsys.readouterr().err.count("warning: cannot write in") == 1
    (tmp_path / "missing").mkdir()
    mirror.close()
    assert (tmp_path / "missing" / "a").read_text() == "1"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[epath.Path]:
    """gs://bucket, on this machine. The clients read its address once."""
    pytest.importorskip("gcsfs")
    with fake_bucket.serve() as address:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # looks for credentials that there are not
        yield storage.folder("gs://bucket/runs")


def test_a_run_in_a_bucket_is_a_run_in_a_folder(bucket: epath.Path, tmp_path: Path) -> None:
    config = tiny.plain("vit", steps=4, checkpoint_every=2)
    here = tiny.train(config, tmp_path, fake_data=True)
    there = bucket / "a"
    assert not is_workdir(there) and not saved_steps(there)
    claim_workdir(there, config)
    claim_workdir(there, config)
    with pytest.raises(UsageError, match="gs://bucket/runs/a belongs to another config"):
        claim_workdir(there, {**config, "steps": 5})
    assert not tiny.train({**config, "stop_after": 2}, there, fake_data=True).done
    assert is_workdir(there) and saved_steps(there)
    resumed = tiny.train(config, there, fake_data=True)
    assert resumed.fingerprint == here.fingerprint
    assert resumed.losses("vit") == here.losses("vit")
    assert Checkpoints(there, create=False).latest_step() == 4
    assert {path.name for path in there.iterdir()} == {path.name for path in tmp_path.iterdir()} | {"config.json"}
    with pytest.raises(UsageError, match="cannot write in workdir gs://other/runs: there is no such bucket"):
        claim_workdir(storage.folder("gs://other/runs"), config)


def test_one_run_holds_a_workdir_in_a_bucket(bucket: epath.Path) -> None:
    path, quick = bucket / "held" / ".lock", dict(beat=0.1, patience=5.0, settle=0.2)
    with Lease(path, **quick):
        assert [each.name for each in path.parent.iterdir()] == [".lock"]  # which the client may keep in mind
        with pytest.raises(UsageError, match="gs://bucket/runs/held is in use by process"):
            Lease(path, **quick).__enter__()
        assert json.loads(path.read_text())["beat"] > 2
    assert not path.exists()
    path.write_text('{"token": "of a run that has crashed"}')
    with Lease(path, **{**quick, "patience": 0.5}):
        pass
    with pytest.raises(UsageError, match="cannot write in workdir gs://other/runs: there is no such bucket"):
        Lease(storage.folder("gs://other/runs/.lock"), **quick).__enter__()
