"""Composed retrieval: does a picture with words find what the words make of it, and better than simpler queries do?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from unimodal.data.blocks import Changes, Inputs, Texts
from unimodal.evaluation.evaluation import Evaluation, Rows, Shown, Streamed, untrained_value
from unimodal.evaluation.samples import PictureRow, Sample
from unimodal.model import Model

AT = (1, 5, 10)
RIVALS = {
    "picture_alone": "the picture alone",
    "words_alone": "the words alone",
    "sum": "the sum of both embeddings",
    "average": "the average of both similarities",
}
FOUND = 4  # pictures that the report shows of what a query finds


def similarities(
    query: np.ndarray, words: np.ndarray, picture: np.ndarray, gallery: np.ndarray
) -> dict[str, np.ndarray]:
    """Compare one picture's V queries with all of the gallery [G,D], by every way of asking: [V,G] each.

    query, words: [V,D], the picture with words and the words alone. picture: [D], the picture alone.
    """
    alone = {"picture_alone": np.tile(picture @ gallery.T, (len(query), 1)), "words_alone": words @ gallery.T}
    # Words alone lie farther from all pictures than a picture does: the average has both on one scale.
    even = [(x - x.mean(axis=1, keepdims=True)) / (x.std(axis=1, keepdims=True) + 1e-9) for x in alone.values()]
    together = {"sum": alone["picture_alone"] + alone["words_alone"], "average": (even[0] + even[1]) / 2}
    return {"query": query @ gallery.T, **alone, **together}


@dataclass
class Composed:
    """Keeps the embeddings of queries and of what is searched."""

    parts: list[Rows] = field(default_factory=list)

    def add(self, rows: Rows) -> None:
        self.parts.append(
            {name: rows[name] for name in ("query", "words", "target", "picture", "looks", "before", "index")}
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The rows of all pictures so far, [N,…] or [N,V,…], and the `gallery` [N·V+N,D]: changed pictures, then pictures
        as they were."""
        found = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        target = found["target"].reshape(-1, found["target"].shape[-1])
        return {**found, "gallery": np.concatenate([target, found["picture"]])}

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """How many rivals beat what is wanted [N,V], by every way of asking; once all are added."""
        a = self.arrays()
        count, many = a["looks"].shape
        looks = np.concatenate([a["looks"].reshape(-1), a["before"]])
        ranks: dict[str, list[np.ndarray]] = {name: [] for name in ("query", *RIVALS)}
        for n in range(count):
            # What looks as the picture that is asked with is not searched, and what looks as the target does is no rival.
            rival = (looks[None] != a["looks"][n][:, None]) & (looks != a["before"][n])[None]
            mine = n * many + np.arange(many)
            for name, found in similarities(a["query"][n], a["words"][n], a["picture"][n], a["gallery"]).items():
                own = found[np.arange(many), mine]
                beaten = ((found >= own[:, None]) & rival).sum(axis=1)
                ranks[name].append(np.where(np.isnan(found).any(axis=1), np.nan, beaten))
        return {name: np.stack(each) for name, each in ranks.items()}

    def score(self) -> dict[str, float]:
        scores: dict[str, float] = {}
        for name, rank in self.ranks.items():
            for at in AT:
                hit = np.where(np.isnan(rank), np.nan, rank < at)
                scores[f"recall@{at}" if name == "query" else f"{name}_recall@{at}"] = float(hit.mean())
        return {"value": scores["recall@1"], **scores, **{name: scores[f"{name}_recall@1"] for name in RIVALS}}


def compositions(task: Any, inputs: Callable[[Model], Inputs]) -> dict[str, Evaluation]:
    """The evaluation of a task that has `pictures`, `texts` and `predict`, on triplets."""
    told: dict[str, Any] = dict(predict=task.predict, batch_size=task.batch_size)
    return {task.name: Composition(inputs=inputs, pictures=task.pictures, texts=task.texts, **told)}


@dataclass(frozen=True, kw_only=True)
class Composition(Streamed):
    """Recall at 1 of the changed picture that words ask for, among all changed pictures and all others of the split.

    The baseline is the best of four simpler queries of the same model: the picture alone, the words alone, the sum of
    their embeddings, and the average of their similarities. `predict` gives unit embeddings `query`, `words` and `target`
    [B,V,D] and `picture` [B,D], and `looks` [B,V] and `before` [B], equal for pictures that are equal.
    """

    pictures: Changes
    texts: Texts
    metric: str = "recall@1"
    higher_is_better: bool = True
    rivals: ClassVar[Mapping[str, str]] = RIVALS
    against: Callable[[Mapping[str, float]], tuple[float, str]] = untrained_value

    def tally(self) -> Composed:
        return Composed()

    def columns_of(self, tally: Composed) -> dict[str, np.ndarray]:
        """The share of each picture's changes that are found. Queries of one picture are no independent examples."""
        rank = tally.ranks["query"]
        return {"found": np.where(np.isnan(rank), np.nan, rank < 1).mean(axis=1)}

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        return float(sums["found"] / sums["examples"])

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        """The first query of each picture, what it should find, and what it finds."""
        a, samples, draw = shown.tally.arrays(), [], self.pictures.to_uint8
        examples: Any = self.inputs(model).dataset("validation").ordered()
        count, many = a["looks"].shape

        def picture(place: int) -> np.ndarray:
            which, change = divmod(place, many) if place < count * many else (place - count * many, None)
            example = examples[int(a["index"][which])]
            return draw(example["image"] if change is None else example["changed"][change])

        for i, index in enumerate(shown.index):
            own = int(np.flatnonzero(a["index"] == index)[0])
            similarity = a["gallery"] @ shown.rows["query"][i][0]
            similarity[count * many + own] = -np.inf  # the picture itself is not searched
            best = [int(place) for place in np.argsort(-similarity)]
            row = [("asked with", draw(shown.batch["image"][i])), ("wanted", draw(shown.batch["changed"][i][0]))]
            row += [(f"found {rank}", picture(place)) for rank, place in enumerate(best[:FOUND], 1)]
            said = self.texts.opened.decode(shown.batch["ids"][i][0])
            samples.append(PictureRow(tuple(row), note=f"“{said}”: found at place {best.index(own * many) + 1}"))
        return samples
