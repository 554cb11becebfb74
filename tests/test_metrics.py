"""metrics.jsonl survives crashes and resumes; TensorBoard events hold the same numbers."""

import json
import math
import struct
from contextlib import closing

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from unimodal.errors import UsageError
from unimodal.training.metrics import MetricsWriter, curves, finite_only, read_metrics, verdict


def _write(workdir, steps, resume_step=None):
    with closing(MetricsWriter(workdir, resume_step=resume_step)) as writer:
        for step in steps:
            writer.write(step, "gpt", {"loss": 1.0 / step})
            writer.write(step, "vit", {"loss": 2.0 / step, "accuracy": 0.5})


def _events(workdir):
    """Records of all event files: uint64 length, its checksum, the message, its checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))  # pyright: ignore
            at += 12 + size + 4
    return events


def _scalars(workdir):
    return [(value.tag, event.step, value.simple_value) for event in _events(workdir) for value in event.summary.value]


def test_one_object_per_call(tmp_path):
    _write(tmp_path / "new" / "run", [1, 2])
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_metrics(tmp_path / "new" / "run")
    assert json.loads(lines[1]) == {"step": 1, "task": "vit", "loss": 2.0, "accuracy": 0.5}


def test_lines_are_on_disk_before_close(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, "gpt", {"loss": np.float32(0.1)})
    assert read_metrics(tmp_path) == [{"step": 1, "task": "gpt", "loss": float(np.float32(0.1))}]
    writer.close()
    writer.close()


def test_resume_has_each_step_once(tmp_path):
    _write(tmp_path, [1, 2, 3, 4])
    _write(tmp_path, [3, 4, 5], resume_step=2)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_resume_at_zero_starts_afresh_and_none_appends(tmp_path):
    _write(tmp_path, [1, 2])
    _write(tmp_path, [3])
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 1, 2, 2, 3, 3]
    _write(tmp_path, [1], resume_step=0)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 1]


@pytest.mark.parametrize("tail", [b'{"step": 3, "task": "gpt", "lo', b"{", b'{"step": 3, "task": "gp\xd0', b"\x00\x00"])
def test_torn_last_line(tmp_path, tail):
    _write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 1, 2, 2]
    _write(tmp_path, [3], resume_step=2)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 1, 2, 2, 3, 3]


def test_lost_newline_does_not_join_lines(tmp_path):
    _write(tmp_path, [1])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    _write(tmp_path, [2], resume_step=1)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 1, 2, 2]


def test_broken_middle_line_is_named_and_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "task": "gpt"}\nnot a record\n{"step": 2, "task": "gpt"}\n')
    before = path.read_bytes()
    with pytest.raises(UsageError, match="line 2"):
        read_metrics(tmp_path)
    with pytest.raises(UsageError, match="line 2"):
        MetricsWriter(tmp_path, resume_step=0)
    assert path.read_bytes() == before


def test_separators_inside_a_name_do_not_split_a_line(tmp_path):
    with closing(MetricsWriter(tmp_path)) as writer:
        writer.write(1, "a\u2028b", {"x\x85y": 1.0})
    assert read_metrics(tmp_path) == [{"step": 1, "task": "a\u2028b", "x\x85y": 1.0}]


def test_not_finite(tmp_path):
    with closing(MetricsWriter(tmp_path)) as writer:
        writer.write(7, "gpt", {"loss": math.nan, "norm": math.inf, "rate": 0.1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    (record,) = read_metrics(tmp_path)
    assert record == {"step": 7, "task": "gpt", "loss": None, "norm": None, "rate": 0.1, "nonfinite": ["loss", "norm"]}
    assert [tag for tag, _, _ in _scalars(tmp_path)] == ["gpt/rate"]
    ((step, value),) = curves([record])["gpt"]
    assert step == 7 and math.isnan(value)


def test_tensorboard_reads_back(tmp_path):
    _write(tmp_path, [1, 2])
    assert _scalars(tmp_path) == [
        ("gpt/loss", 1, 1.0),
        ("vit/loss", 1, 2.0),
        ("vit/accuracy", 1, 0.5),
        ("gpt/loss", 2, 0.5),
        ("vit/loss", 2, 1.0),
        ("vit/accuracy", 2, 0.5),
    ]


def test_tensorboard_keeps_earlier_run_and_marks_the_resume(tmp_path):
    _write(tmp_path, [1, 2, 3])
    _write(tmp_path, [3], resume_step=2)  # within the same second, so the file must still be another one
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert ("gpt/loss", 1, 1.0) in _scalars(tmp_path)
    starts = [event.step for event in _events(tmp_path) if event.session_log.status == 1]  # SessionLog.START
    assert starts == [3]


def test_disabled_touches_nothing(tmp_path):
    with closing(MetricsWriter(tmp_path / "run", enabled=False, resume_step=0)) as writer:
        writer.write(1, "gpt", {"loss": 1.0})
    assert not (tmp_path / "run").exists()
    assert read_metrics(tmp_path / "run") == []


def test_bad_workdir_and_reserved_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write metrics"):
        MetricsWriter(tmp_path / "file")
    with closing(MetricsWriter(tmp_path / "run")) as writer, pytest.raises(ValueError, match="'step'.*reserved"):
        writer.write(1, "gpt", {"step": 1.0})


def test_curves_by_task(tmp_path):
    _write(tmp_path, [1, 2])
    assert curves(read_metrics(tmp_path)) == {"gpt": [(1, 1.0), (2, 0.5)], "vit": [(1, 2.0), (2, 1.0)]}
    assert curves(read_metrics(tmp_path), "accuracy") == {"vit": [(1, 0.5), (2, 0.5)]}


def test_finite_only_is_valid_json():
    record = {"tasks": {"gpt": {"value": math.nan, "details": {"a": np.float32(np.inf), "b": 1.5}}}, "step": 3}
    clean = finite_only(record)
    assert clean["tasks"] == {"gpt": {"value": None, "details": {"a": None, "b": 1.5}}}
    assert clean["nonfinite"] == ["tasks.gpt.value", "tasks.gpt.details.a"]
    json.dumps(clean, allow_nan=False)
    assert finite_only({"step": 3, "who": ["a"]}) == {"step": 3, "who": ["a"]}


@pytest.mark.parametrize(
    ("value", "baseline", "higher", "expected"),
    [
        (0.5, 0.1, True, "better"),
        (0.5, 0.1, False, "worse"),
        (2.0, 3.0, False, "better"),
        (0.1, 0.1, True, "equal"),
        (math.nan, 0.1, True, "failed"),
        (math.inf, 0.1, True, "failed"),
        (math.nan, None, False, "failed"),
        (0.5, math.nan, True, "unknown"),
        (None, 0.1, False, "unknown"),
        (0.1, None, True, "unknown"),
    ],
)
def test_verdict(value, baseline, higher, expected):
    assert verdict(value, baseline, higher) == expected
