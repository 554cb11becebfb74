"""The report of a run: one self-contained HTML page with results, curves, samples, attention, parameters and config.

`views` turns numbers, pictures and sounds into what the page needs (coordinates, PNG and WAV data URIs); the page
itself is `page.html.jinja`. Nothing on the page comes from a network, and every text is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """What stands on the page of a run. Parts that are empty say so."""

    title: str
    subtitle: str = ""
    # facts under the title, in order: steps, wall time, device, fingerprint …
    run: Mapping[str, Any] = field(default_factory=dict)
    # by task {"metric", "value", "baseline", "higher_is_better"}, maybe "low" and "high"; other keys are ignored
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # training loss by task as (step, value), in nats; NaN is allowed and counted on the chart
    curves: Mapping[str, Curve] = field(default_factory=dict)
    # the metric named in `results`, measured during training, by task as (step, value)
    eval_curves: Mapping[str, Curve] = field(default_factory=dict)
    affinity: Mapping[str, Any] | None = None  # how tasks' gradients agree, as `training.affinity` gives it
    forgetting: Mapping[str, Any] | None = None  # the score of every task after each, as `continual.matrix` gives it
    # by task, what `unimodal.evaluation.samples` defines; the first twelve are shown
    samples: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    # by task, the command line that asks the same of the samples again
    commands: Mapping[str, str] = field(default_factory=dict)
    attention: Sequence[AttentionMap] = ()
    parameters: Sequence[Mapping[str, Any]] = ()  # rows of {"name", "shape", "axes", "spec", "bytes_per_device"}
    total_parameters: int = 0
    config_text: str = ""

    def write(self, path: epath.PathLike) -> epath.Path:
        """Write the page to `path`, replacing it in one piece; returns the path."""
        template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
        write_whole(path, _environment().from_string(template).render(self._views()))
        return epath.Path(path)

    def _views(self) -> dict[str, Any]:
        """What the template asks for."""
        sound_left = [_SOUND_SECONDS]
        return {
            **{
                name: getattr(self, name)
                for name in ("title", "subtitle", "commands", "total_parameters", "config_text")
            },
            "run": {name: fact(value) for name, value in self.run.items()},
            "results": [_result_view(task, result) for task, result in self.results.items()],
            "charts": chart_views(self.curves, self.eval_curves, self.results),
            "affinity": None if self.affinity is None else affinity_view(self.affinity),
            "forgetting": None if self.forgetting is None else forgetting_view(self.forgetting),
            "samples": {
                task: [sample_view(sample, sound_left) for sample in list(shown)[:_SAMPLES_PER_TASK]]
                for task, shown in self.samples.items()
                if len(shown)
            },
            "attention": [attention_view(item) for item in self.attention],
            "parameters": _parameter_views(self.parameters),
            "total_bytes": size_in_bytes(sum(int(row["bytes_per_device"]) for row in self.parameters)),
            "chart": CHART,
        }


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
    ends = [each for each in (result.get("low"), result.get("high")) if each is not None and math.isfinite(each)]
    interval = f"{number(ends[0])} to {number(ends[1])}" if len(ends) == 2 else ""
    return {
        "task": task,
        "metric": metric,
        "higher": higher,
        "verdict": judged,
        "ratio": ratio,
        "bars": bars,
        "interval": interval,
    }


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
