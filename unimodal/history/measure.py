"""What the evaluations say of a commit, example by example. Each answer is kept beside the ledger and asked for once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.configuration import nearest
from unimodal.data import open_source
from unimodal.data.values import digest
from unimodal.errors import UsageError
from unimodal.evaluation.bootstrap import ValueOf
from unimodal.evaluation.evaluation import Evaluation, Reader
from unimodal.experiment import Experiment
from unimodal.history.runs import experiment_of
from unimodal.history.weights import model_of
from unimodal.ledger import Commit, Draft, Ledger
from unimodal.model import Model
from unimodal.storage import write_whole

FOLDER = "measured"  # of a ledger: what evaluations said, which can always be asked again
READ = ("tokenizers", "backbones", "tasks", "evaluations", "ema", "evaluate_ema")  # what evaluations read of a config


@dataclass(frozen=True)
class Measurement:
    """The answer of one evaluation. columns: numbers of each example, by name; ids: which example, in the same order.

    data: a digest of the validation split that was asked; "" where nothing is known of it.
    """

    metric: str
    value: float
    higher_is_better: bool
    ids: tuple[str, ...] = ()
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    data: str = ""

    @property
    def divisible(self) -> bool:
        """Whether each half has examples enough for an interval."""
        return len(self.ids) > 3

    def of(self, ids: Sequence[str]) -> Measurement:
        """The examples of these ids, in their order. The value stays that of all."""
        place = {example: i for i, example in enumerate(self.ids)}
        chosen = np.asarray([place[example] for example in ids], np.int64)
        return replace(self, ids=tuple(ids), columns={name: values[chosen] for name, values in self.columns.items()})

    def half(self, part: int) -> Measurement:
        """Every second example, from the first (0) or the second (1). The value stays that of all."""
        return self.of(self.ids[part::2])

    def made(self, value_of: ValueOf) -> float:
        """The value of the examples that are here, by their sums."""
        sums = {name: np.asarray(values.sum()) for name, values in self.columns.items()}
        return float(value_of({**sums, "examples": np.asarray(len(self.ids), np.float64)}))

    def as_json(self) -> dict[str, Any]:
        columns = {name: [_finite(v) for v in values] for name, values in self.columns.items()}
        return {**vars(self), "value": _finite(self.value), "ids": list(self.ids), "columns": columns}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Measurement:
        number = lambda value: math.nan if value is None else float(value)  # noqa: E731
        given = found.get("columns", {}).items()
        columns = {name: np.asarray([number(v) for v in values], np.float64) for name, values in given}
        ids, data = tuple(found.get("ids", ())), found.get("data", "")
        return cls(found["metric"], number(found["value"]), found["higher_is_better"], ids, columns, data)


def _finite(value: float) -> float | None:
    """A number as JSON has it; what is not finite is None, and NaN when it comes back."""
    return float(value) if math.isfinite(value) else None


class Measuring:
    """Asks evaluations of commits. Commits of one config share what is compiled for it.

    say: told what is being measured, which takes time.
    """

    def __init__(self, ledger: Ledger, say: Callable[[str], None] = lambda _: None):
        self.ledger, self._say = ledger, say
        self._experiments: dict[str, Experiment] = {}
        self._data: dict[str, str] = {}

    def experiment(self, draft: Draft, what: str) -> Experiment:
        """The experiment of a commit's config. Raises UsageError for a commit that is no run's."""
        key = hashlib.sha256(b"\0".join(draft.files.get(n, b"") for n in ("config.json", "from_data.json"))).hexdigest()
        if key not in self._experiments:
            self._experiments[key] = experiment_of(draft.files, what)
        return self._experiments[key]

    def names(self, draft: Draft, what: str) -> list[str]:
        return list(self.experiment(draft, what).evaluations)

    def of_commit(self, commit: Commit, only: Sequence[str] | None = None) -> dict[str, Measurement]:
        return self.of_draft(commit.draft, f"commit {commit.short}", only)

    def of_draft(self, draft: Draft, what: str, only: Sequence[str] | None = None) -> dict[str, Measurement]:
        """What each evaluation (or those of `only`) says of the weights of a draft. Raises UsageError for one that there is not."""
        experiment = self.experiment(draft, what)
        known = experiment.evaluations
        for name in only or ():
            if name not in known:
                raise UsageError(f"{what} has no evaluation {name!r}; {nearest(name, list(known))}")
        found: dict[str, Measurement] = {}
        model: Model | None = None
        for name in known if only is None else only:
            data = self._data_of(experiment, draft, name)
            kept = self._kept(draft, name, data)
            if kept is None:
                if model is None:
                    self._say(f"measuring {what} …")
                    model = model_of(experiment, draft.manifest.tensors, self.ledger.store, what)
                kept = replace(measure(known[name], model, experiment.reader), data=data)
                path = self._path(draft, name)
                path.parent.mkdir(exist_ok=True)
                text = json.dumps(kept.as_json())
                write_whole(path, json.dumps({"digest": _digest(text), "measured": text}))
            found[name] = kept
        return found

    def scored(self, draft: Draft) -> Draft:
        """The draft with what all evaluations say of it among its files."""
        found = self.of_draft(draft, "what is to be committed")
        scores = {scores_file(name): json.dumps(one.as_json()).encode() + b"\n" for name, one in found.items()}
        return Draft(draft.manifest, {**draft.files, **scores})

    def known(self, commit: Commit) -> dict[str, Measurement]:
        """What has been measured of a commit already; nothing is asked."""
        draft, found = commit.draft, {}
        if "config.json" not in draft.files or "tasks" not in json.loads(draft.files["config.json"]):
            return {}
        experiment = self.experiment(draft, f"commit {commit.short}")
        for name in experiment.evaluations:
            if (kept := self._kept(draft, name, self._data_of(experiment, draft, name))) is not None:
                found[name] = kept
        return found

    def evaluation(self, draft: Draft, name: str, what: str) -> Evaluation:
        return self.experiment(draft, what).evaluations[name]

    def value_of(self, draft: Draft, name: str, what: str) -> ValueOf | None:
        """How an evaluation makes its value of sums over examples; None where it does not."""
        return getattr(self.evaluation(draft, name, what), "value_of", None)

    def _path(self, draft: Draft, name: str) -> Path:
        return self.ledger.path / FOLDER / f"{_key(draft, name)}.json"

    def _kept(self, draft: Draft, name: str, data: str) -> Measurement | None:
        """What was answered before on the same data. Where nothing is known of the data of now, any answer stands."""
        answers = (_committed(draft, name), _read(self._path(draft, name)))
        return next((one for one in answers if one is not None and data in ("", one.data)), None)

    def _data_of(self, experiment: Experiment, draft: Draft, name: str) -> str:
        """A digest of the validation split that an evaluation reads; "" where it cannot be read, or is not known."""
        source = _source(experiment, draft, name)
        if source not in self._data:
            self._data[source] = ""
            with contextlib.suppress(UsageError, OSError):
                self._data[source] = digest(open_source(source, "validation"))
        return self._data[source]


def measure(evaluation: Evaluation, model: Model, reader: Reader) -> Measurement:
    """Ask one evaluation, and keep what it says of each example where its value is made of such numbers."""
    found = evaluation.measure(model, reader)
    made = evaluation.metric, float(found.score["value"]), evaluation.higher_is_better
    if found.each is None:
        return Measurement(*made)
    wide = {name: values.astype(np.float64) for name, values in found.each.columns.items()}
    return Measurement(*made, found.each.ids(), wide)


def _source(experiment: Experiment, draft: Draft, evaluation: str) -> str:
    """The source of an evaluation's examples: its own, or that of the task that it belongs to; "" where there is none."""
    attached = (json.loads(draft.files["config.json"]).get("evaluations") or {}).get(evaluation)
    if attached is not None and "source" in attached:
        return attached["source"]
    asked = evaluation if attached is None else attached.get("task", evaluation)
    owners: list[Any] = [task for task in experiment.tasks if asked == task.name or asked in task.evaluations()]
    return getattr(owners[0], "source", "") if owners else ""


def _key(draft: Draft, evaluation: str) -> str:
    """What an answer depends on: the weights, and the part of the config that evaluations read."""
    config = json.loads(draft.files["config.json"])
    told = {name: config.get(name) for name in READ}
    tensors = {name: (e.dtype, e.shape, e.chunks) for name, e in draft.manifest.tensors.items()}
    learned = draft.files.get("from_data.json", b"").decode()
    return _digest(json.dumps([evaluation, told, learned, tensors], sort_keys=True))


def scores_file(evaluation: str) -> str:
    return f"scores/{evaluation}.json"


def _committed(draft: Draft, evaluation: str) -> Measurement | None:
    """What was committed along with the weights, if it says something of each example."""
    text = draft.files.get(scores_file(evaluation))
    found = None if text is None else Measurement.of_json(json.loads(text))
    return found if found is not None and found.ids else None


def _read(path: Path) -> Measurement | None:
    """What was kept, if it is whole."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if _digest(kept["measured"]) != kept["digest"]:
            return None
        return Measurement.of_json(json.loads(kept["measured"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
