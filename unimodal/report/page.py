"""The report of a run: one self-contained HTML page with results, curves, samples, attention, parameters and config.

`views` turns numbers, pictures and sounds into what the page needs (coordinates, PNG and WAV data URIs); the page
itself is `page.html.jinja`. Nothing on the page comes from a network, and every text is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from jinja2 import Environment, StrictUndefined

from unimodal.evaluation.samples import AttentionMap
from unimodal.report.views.affinity import affinity_view
from unimodal.report.views.attention import attention_view
from unimodal.report.views.curves import CHART, Curve, chart_views
from unimodal.report.views.forgetting import forgetting_view
from unimodal.report.views.samples import sample_view
from unimodal.report.views.text import fact, names, number, printable, size_in_bytes
from unimodal.storage import write_whole
from unimodal.training.metrics import verdict

# What keeps the page small, whatever is handed in; `views` has more of the kind.
_SAMPLES_PER_TASK = 12
_SOUND_SECONDS = 20.0  # playable, on the whole page


def write_report(
    path: epath.PathLike,
    *,
    title: str,
    subtitle: str = "",
    curves: Mapping[str, Curve] | None = None,
    eval_curves: Mapping[str, Curve] | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    samples: Mapping[str, Sequence[Any]] | None = None,
    commands: Mapping[str, str] | None = None,
    affinity: Mapping[str, Any] | None = None,
    forgetting: Mapping[str, Any] | None = None,
    attention: Sequence[AttentionMap] = (),
    parameters: Sequence[Mapping[str, Any]] = (),
    total_parameters: int = 0,
    config_text: str = "",
    run: Mapping[str, Any] | None = None,
) -> epath.Path:
    """Write the page to `path`, replacing it in one piece; returns the path.

    Args:
        curves: training loss per task as (step, value), in nats; NaN is allowed and counted on the chart.
        eval_curves: the metric named in `results`, measured during training, per task as (step, value).
        results: per task {"metric", "value", "baseline", "higher_is_better"}; other keys are ignored.
        affinity: how tasks' gradients agree, as `training.affinity` gives it.
        forgetting: the score of every task after each, as `continual.matrix` gives it.
        samples: per task, what `unimodal.evaluation.samples` defines; the first twelve are shown.
        commands: per task, the command line that asks the same of the samples again.
        parameters: rows of {"name", "shape", "axes", "spec", "bytes_per_device"}.
        run: facts to show under the title, in order: steps, wall time, device, fingerprint …
    """
    results, samples = results or {}, samples or {}
    sound_left = [_SOUND_SECONDS]
    views = {
        task: [sample_view(sample, sound_left) for sample in list(shown)[:_SAMPLES_PER_TASK]]
        for task, shown in samples.items()
        if len(shown)
    }
    context = {
        "title": title,
        "subtitle": subtitle,
        "run": {name: fact(value) for name, value in (run or {}).items()},
        "results": [_result_view(task, result) for task, result in results.items()],
        "charts": chart_views(curves or {}, eval_curves or {}, results),
        "affinity": None if affinity is None else affinity_view(affinity),
        "forgetting": None if forgetting is None else forgetting_view(forgetting),
        "samples": views,
        "commands": commands or {},
        "attention": [attention_view(item) for item in attention],
        "parameters": _parameter_views(parameters),
        "total_parameters": total_parameters,
        "total_bytes": size_in_bytes(sum(int(row["bytes_per_device"]) for row in parameters)),
        "config_text": config_text,
        "chart": CHART,
    }
    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    page = _environment().from_string(template).render(context)
    write_whole(path, page)
    return epath.Path(path)


def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=printable
    )
    environment.filters["number"] = number
    return environment


def _result_view(task: str, result: Mapping[str, Any]) -> dict[str, Any]:
    value, baseline = result.get("value"), result.get("baseline")
    higher = bool(result.get("higher_is_better", True))
    known = [float(each) for each in (value, baseline) if each is not None and math.isfinite(each)]
    # Shares (accuracy, recall) are drawn against one, everything else against the longer of the two bars.
    full = 1.0 if higher and known and max(known) <= 1 else max(known, default=0.0)
    drawable = full > 0 and min(known) >= 0
    ratio = ""
    if len(known) == 2 and known[1] > 0:
        ratio = (
            f"{number(known[0] / known[1], 3)} × baseline"
            if higher
            else f"{known[0] / known[1] - 1:+.0%}".replace("-", "−")
        )
    bars = [
        {"who": who, "value": each, "width": 100 * each / full if drawable and each is not None else 0.0}
        for who, each in (("model", value), ("baseline", baseline))
    ]
    for bar in bars:
        bar["width"] = bar["width"] if math.isfinite(bar["width"]) else 0.0
    metric, judged = str(result.get("metric", "")), verdict(value, baseline, higher)
    return {"task": task, "metric": metric, "higher": higher, "verdict": judged, "ratio": ratio, "bars": bars}


def _parameter_views(parameters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    largest = max((int(row["bytes_per_device"]) for row in parameters), default=1)
    return [
        {
            "name": str(row["name"]),
            "shape": " × ".join(str(size) for size in row["shape"]) or "scalar",
            "size": math.prod(int(size) for size in row["shape"]),
            "axes": names(row["axes"]),
            "spec": names(row["spec"]),
            "bytes": int(row["bytes_per_device"]),
            "bytes_text": size_in_bytes(int(row["bytes_per_device"])),
            "share": 100 * int(row["bytes_per_device"]) / max(largest, 1),
        }
        for row in parameters
    ]
