"""Zero-shot classification: is a picture or a sound nearest to the name of its class? (Radford 2021, §3.1)"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal import data
from unimodal.data.blocks import Inputs, Labels, columns
from unimodal.errors import RecordError, UsageError
from unimodal.evaluation.classification import BEST, ByClass, among_the_likeliest, share_right
from unimodal.evaluation.evaluation import Each, Measured, Reader, Shown
from unimodal.evaluation.samples import ImageSample, Sample
from unimodal.model import Model

RAW = 16
"""Side of the pictures, in pixels, whose nearest class mean is the baseline."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Classify by the names of classes, with a task that has embeddings of texts and of pictures or sounds.

    The embedding of a class is the mean over `templates` of the unit embeddings of its name in each, at unit length.
    Nothing is learned from the labels.
    """

    name: str = "zero_shot"  # given by the config
    source: str  # a data source, see `data.sources`
    task: str = "clip"  # one of the config's tasks, whose pair has texts
    templates: tuple[str, ...] = ("{}",)  # what is said of a class, {} being its name, such as "a photo of a {}."
    column: str = ""  # the column of the picture or sound; "": as the task reads it
    labels: Labels = Labels()  # the classes; labels.classes names them where the data has numbers
    batch_size: int = 32  # examples, or texts, at a time
    every: int = 0  # steps between evaluations during training; 0: only at its end

    def __post_init__(self) -> None:
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            said = repr(wrong[0]) if wrong else "none"
            raise UsageError(f"evaluations.{self.name}.templates must each have one {{}} for the name, but is {said}")

    def of_tasks(self, tasks: Mapping[str, Any]) -> Classified:
        """The evaluation of the task that it names. Raises UsageError where that has no texts to compare with."""
        if self.task not in tasks:
            raise UsageError(f"evaluations.{self.name}.task={self.task!r} is none of the tasks: {', '.join(tasks)}")
        pair = getattr(tasks[self.task], "pair", ())
        if "text" not in pair:
            raise UsageError(
                f"evaluations.{self.name}: tasks.{self.task} does not compare texts with anything, so it cannot classify "
                f"by names; name a task of kind clip"
            )
        return Classified(self, tasks[self.task])


class Classified:
    """Zero-shot classification as an `Evaluation`: what a config says of it, and a dual encoder with texts."""

    metric, higher_is_better = "accuracy", True

    def __init__(self, config: ZeroShot, task: Any):
        self.config, self.task, self.every = config, task, config.every
        (self.modality,) = (modality for modality in task.pair if modality != "text")

    def inputs(self, model: Model) -> Inputs:
        """The arrays of the modality, as the task prepares them, and `label`."""
        part = self.task.part(model, self.modality, self.config.column)
        return columns(self.config.source, part, self.config.labels.part(self.config.source))

    def names(self) -> tuple[str, ...]:
        """The names of the classes. Raises UsageError for names that are empty, or equal."""
        names = tuple(name.strip() for name in self.config.labels.names(self.config.source))
        where = f"evaluations.{self.config.name}: "
        if empty := [number for number, name in enumerate(names) if not name]:
            raise UsageError(f"{where}class {empty[0]} has an empty name: say labels.classes")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"{where}{names.count(twice[0])} classes are called {twice[0]!r}: say labels.classes")
        return names

    def classes(self, model: Model, reader: Reader) -> np.ndarray:
        """Unit embeddings of the classes, float32 [classes,D]."""
        said = [template.replace("{}", name) for name in self.names() for template in self.config.templates]
        vocabulary = model.tokenizers[self.task.text_tokenizer].config.vocabulary
        spec = {"ids": self.task.texts.spec(vocabulary)}
        encoder = data.encoder_for(self.task.texts.encoder, vocabulary)
        rows: Any = [{"id": str(i), "ids": self.task.texts.row(encoder, text)} for i, text in enumerate(said)]
        texts = Inputs(spec, lambda _: data.Dataset(rows, lambda row, rng: {"ids": row["ids"]}))
        read = list(reader.rows(self.say, model, texts.dataset("validation"), self.config.batch_size))
        found = np.concatenate([row["text"] for row in read]).reshape(len(self.names()), len(self.config.templates), -1)
        # Average over the templates before scaling to unit length, as Radford 2021, §3.1.4 does.
        mean = found.mean(axis=1)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)

    def say(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"text": self.task.embed_one(model, "text", batch)}

    def look(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"embedding": self.task.embed_one(model, self.modality, batch), "label": batch["label"]}

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        classes, names = self.classes(model, reader), self.names()
        examples = reader.examples(self.inputs, model, "validation")
        tally, shown, found = ByClass(len(names)), [], []
        at5 = seen = 0.0
        for rows in reader.rows(self.look, model, examples, self.config.batch_size, limit):
            similarity = rows["embedding"] @ classes.T
            has_nan = np.isnan(similarity).any(axis=1)
            right, near = (
                np.where(has_nan, np.nan, among_the_likeliest(jnp.asarray(similarity), jnp.asarray(rows["label"]), k))
                for k in (1, 5)
            )
            tally.add({"label": rows["label"], "correct": right})
            at5 += float(near.sum())
            seen += len(near)
            shown.append({"index": rows["index"], "label": rows["label"], "similarity": similarity})
            found.append(right)
        joined = {name: np.concatenate([rows[name] for rows in shown]) for name in shown[0]}
        chosen = np.unique(np.linspace(0, len(joined["index"]) - 1, 8).astype(int))
        few = {name: value[chosen] for name, value in joined.items()}
        score = {**tally.score(), **({"top5": at5 / seen} if len(names) > 5 else {}), "classes": float(len(names))}
        each = Each(examples, joined["index"], {"correct": np.concatenate(found)}, self.value_of)
        return Measured(score, Shown(few["index"], {}, few, tally), each)

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        return share_right(sums)

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        """Chance or, for pictures, the nearest class mean of small raw pixels where that is harder to beat: it has seen
        the labels of training."""
        chance = (1 / len(self.names()), "chance")
        if self.modality != "image":
            return chance
        return max(chance, (self.nearest_mean(), "nearest class mean of raw pixels"))

    def nearest_mean(self) -> float:
        """Accuracy of the class whose mean picture of training is nearest, at 16×16 pixels."""
        labels, source = self.config.labels, self.config.source
        block = self.task.block(self.modality, self.config.column)
        pixels, truth = {}, {}
        for split in ("train", "validation"):
            opened, numbers = data.open_source(source, split), labels.numbers(source, split)
            made: list[tuple[int, np.ndarray]] = []
            for i, number in enumerate(numbers):
                with contextlib.suppress(RecordError):  # left out and listed by whoever trains on it
                    made.append((number, block.to_float(block.fitted(block.read(opened[i]), (RAW, RAW))).reshape(-1)))
            truth[split] = np.array([number for number, _ in made])
            pixels[split] = np.stack([picture for _, picture in made])
        there = np.unique(truth["train"])
        means = np.stack([pixels["train"][truth["train"] == k].mean(axis=0) for k in there])
        # Leave out |x|², which is the same for all classes.
        far = -2 * pixels["validation"] @ means.T + np.square(means).sum(axis=1)[None]
        return float((there[far.argmin(axis=1)] == truth["validation"]).mean())

    def again(self, shown: Shown) -> list[str] | None:
        """How `predict` is asked the same; None where it cannot be: it takes one template, and names without commas."""
        names, templates = self.names(), self.config.templates
        if len(templates) > 1 or any("," in name for name in names):
            return None
        records = [f"{self.config.source}#{int(place)}" for place in shown.index]
        return [*records, f"--classes={','.join(names)}", f"--template={next(iter(templates))}"]

    def samples(self, model: Model, shown: Shown) -> Sequence[Sample]:
        if self.modality != "image":
            return []
        names, source = self.names(), data.open_source(self.config.source, "validation")
        block = self.task.block(self.modality, self.config.column)
        found: list[Sample] = []
        for i, place in enumerate(shown.index):
            chances = np.asarray(self.task.chances(model, jnp.asarray(shown.rows["similarity"][i], jnp.float32)))
            best = tuple((names[int(k)], float(chances[k])) for k in np.argsort(-chances)[:BEST])
            truth = names[int(shown.rows["label"][i])]
            found.append(ImageSample(block.read(source[int(place)]), best, truth, note="by the names of classes"))
        return found
