"""A trained model for other programs: a Hugging Face directory, or one compiled function that needs JAX alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from unimodal.answers import IMAGE, SOUND, TEXT
from unimodal.data.around import NO_ID
from unimodal.errors import UsageError
from unimodal.heads import LanguageModel
from unimodal.interop.export import Exported, Handed, Part, match, write_checkpoint
from unimodal.scores import read_scores
from unimodal.use.card import write_card
from unimodal.use.preparation import padding, write_preparation
from unimodal.use.stablehlo import write_stablehlo

INPUTS = {IMAGE: "image", TEXT: "text", SOUND: "audio"}
FORMS = ("huggingface", "stablehlo")


@dataclass(frozen=True)
class Target:
    """The target of an export: huggingface:DIR or stablehlo:DIR."""

    form: str  # huggingface or stablehlo
    directory: Path  # that is written

    @classmethod
    def parse(cls, text: str) -> Target:
        form, colon, rest = text.partition(":")
        if form not in FORMS or not colon or not rest:
            raise UsageError(f"an export goes to huggingface:DIR or stablehlo:DIR, not {text!r}")
        directory = Path(rest).expanduser()
        if directory.is_dir() and any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty; give a new directory")
        return cls(form, directory)


def export(
    loaded: Any, target: Target, task: str | None = None, gives: str | None = None, *, int8: bool = False
) -> list[str]:
    """Write one task of a workdir's model; returns lines that say what was written.

    Raises UsageError, before anything is written, for a model that the form has no place for.
    """
    if loaded.experiment is None:
        raise UsageError(f"{loaded.path} is a published checkpoint already")
    name = only_task(loaded, task)
    scores = read_scores(epath.Path(loaded.path))
    if target.form == "stablehlo":
        return write_stablehlo(loaded, name, gives, scores, target.directory, int8=int8)
    if int8:
        raise UsageError("--int8 is for stablehlo:DIR; a Hugging Face directory keeps its weights as they are")
    if getattr(getattr(loaded.tasks[name], "images", None), "permute", 0):
        raise UsageError(
            "images.permute has no place among the files that prepare pictures; stablehlo:… takes any model"
        )
    exported = match(handed(loaded, name), loaded.model)
    tensors = write_checkpoint(exported, loaded.model, target.directory)
    written = write_preparation(loaded.tasks[name], exported, target.directory)
    kind = exported.offer.config["architectures"][0]
    made = f"unimodal export {loaded.path} huggingface:{target.directory} --task={name}"
    write_card(loaded, name, kind, scores, target.directory, (made, f"unimodal predict {target.directory} INPUT"))
    return [f"{target.directory}: {kind}, {len(tensors)} tensors; {', '.join(written)}", *_notes(exported)]


def only_task(loaded: Any, task: str | None) -> str:
    """The task that is named, or the only one. Raises UsageError where there are several."""
    if task is not None:
        return loaded.task(task)
    if len(loaded.tasks) > 1:
        raise UsageError(f"{loaded.path} has several tasks: say which, --task={'|'.join(loaded.tasks)}")
    return next(iter(loaded.tasks))


def handed(loaded: Any, name: str) -> Handed:
    """The parts of the model that a task uses."""
    task, experiment = loaded.tasks[name], loaded.experiment
    # Tasks that differ in their data alone may use the head of another. (In other tasks `head` describes their own.)
    owner = named if isinstance(named := getattr(task, "head", ""), str) and named else name
    heads = dict(loaded.model.heads[owner].items())
    causal = bool(getattr(task, "causal", any(isinstance(head, LanguageModel) for head in heads.values())))
    reads = {slot: modality for slot, modality in _modalities(loaded, name).items() if vars(task).get(slot)}
    inputs = {}
    for slot, modality in reads.items():
        tokenizer, backbone = vars(task)[slot], vars(task)[slot.removesuffix("tokenizer") + "backbone"]
        kind, config = experiment.tokenizers[tokenizer]
        inputs[modality] = Part(
            tokenizer, kind, config, backbone, experiment.backbones[backbone], causal and modality == "text"
        )
    second = vars(task).get("decoder_backbone")
    decoder = (second, experiment.backbones[second]) if second else None
    pad = padding(task.texts.opened) if hasattr(task, "texts") else None
    return Handed(owner, inputs, heads, _labels(task), _end(task), pad, decoder, vars(task))


def _modalities(loaded: Any, name: str) -> dict[str, str]:
    """The task's fields that name a tokenizer → what that reads."""
    task = loaded.tasks[name]
    slots = [slot for slot in vars(task) if slot.endswith("tokenizer")]
    if slots == ["tokenizer"]:
        answers = loaded.answers(name)
        return {"tokenizer": INPUTS[answers[0].reads]}
    pair = getattr(task, "pair", tuple(INPUTS.values()))
    return {slot: m for slot in slots if (m := slot.removesuffix("_tokenizer")) in pair}


def _labels(task: Any) -> tuple[str, ...]:
    labels = getattr(task, "labels", None)
    if labels is None:
        return ()
    segments = getattr(getattr(task, "sounds", None), "segments", "")
    return labels.classes or labels.names(task.source, segments)


def _end(task: Any) -> int | None:
    """The id with which every text ends, where its vocabulary has one and rows of the task end with it."""
    texts = getattr(task, "texts", None)
    if texts is None:
        return None
    if "packed" in vars(task):  # a language model, whose documents end with EOS where they are packed
        return int(texts.opened.EOS) if task.packed and texts.opened.EOS != NO_ID else None
    if texts.encoder == "bytes":
        return None
    after = texts.opened.around.after
    return int(after[-1]) if len(after) and after[-1] != NO_ID else None


def _notes(exported: Exported) -> list[str]:
    return [f"left behind: {name}" for name in exported.left]
