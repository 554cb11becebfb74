"""What the evaluations say of a commit, example by example. Each answer is kept beside the ledger and asked for once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unimodal.configuration import nearest
from unimodal.errors import UsageError
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
    """The answer of one evaluation. columns: numbers of each example, by name; ids: which example, in the same order."""

    metric: str
    value: float
    higher_is_better: bool
    ids: tuple[str, ...] = ()
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        columns = {name: [_finite(v) for v in values] for name, values in self.columns.items()}
        return {**vars(self), "value": _finite(self.value), "ids": list(self.ids), "columns": columns}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Measurement:
        number = lambda value: math.nan if value is None else float(value)  # noqa: E731
        given = found.get("columns", {}).items()
        columns = {name: np.asarray([number(v) for v in values], np.float64) for name, values in given}
        return cls(
            found["metric"], number(found["value"]), found["higher_is_better"], tuple(found.get("ids", ())), columns
        )


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
            path = self.ledger.path / FOLDER / f"{_key(draft, name)}.json"
            kept = _committed(draft, name) or _read(path)
            if kept is None:
                if model is None:
                    self._say(f"measuring {what} …")
                    model = model_of(experiment, draft.manifest.tensors, self.ledger.store, what)
                kept = measure(known[name], model, experiment.reader)
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
        for name in self.names(draft, f"commit {commit.short}"):
            path = self.ledger.path / FOLDER / f"{_key(draft, name)}.json"
            if (kept := _committed(draft, name) or _read(path)) is not None:
                found[name] = kept
        return found

    def evaluation(self, draft: Draft, name: str, what: str) -> Evaluation:
        return self.experiment(draft, what).evaluations[name]


def measure(evaluation: Evaluation, model: Model, reader: Reader) -> Measurement:
    """Ask one evaluation, and keep what it says of each example where its value is made of such numbers."""
    found = evaluation.measure(model, reader)
    made = evaluation.metric, float(found.score["value"]), evaluation.higher_is_better
    if found.each is None:
        return Measurement(*made)
    wide = {name: values.astype(np.float64) for name, values in found.each.columns.items()}
    return Measurement(*made, found.each.ids(), wide)


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


def _read(path: Any) -> Measurement | None:
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
