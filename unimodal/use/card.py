"""A model card: README.md of an exported model, with its data, recipe, scores and the commands that made it."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from etils import epath

from unimodal.scores import Scores

USES = {
    "BertForMaskedLM": "fill-mask",
    "BertForPreTraining": "fill-mask",
    "BertForSequenceClassification": "text-classification",
    "GPT2LMHeadModel": "text-generation",
    "LlamaForCausalLM": "text-generation",
    "ViTForImageClassification": "image-classification",
    "ASTForAudioClassification": "audio-classification",
    "ViTMAEForPreTraining": "feature-extraction",
    "CLIPModel": "zero-shot-image-classification",
    "SiglipModel": "zero-shot-image-classification",
    "Wav2Vec2ForCTC": "automatic-speech-recognition",
    "Wav2Vec2ForPreTraining": "feature-extraction",
}


def write_card(
    loaded: Any, name: str, kind: str, scores: Scores | None, directory: Path, commands: Sequence[str]
) -> None:
    """Write README.md. Whatever a run has not said (a licence, results) is named as missing, not made up.

    scores: of the workdir. commands: that made the directory, and that use it.
    """
    task, config = loaded.tasks[name], loaded.config
    others = {each for other in loaded.tasks.values() if other is not task for each in other.evaluations()}
    front = ["---", "library_name: transformers" if kind in USES else "library_name: jax"]
    front += [f"pipeline_tag: {USES[kind]}"] if kind in USES else []
    front += ["license: unknown", "tags: [unimodal, jax]", "---"]
    recipe = json.dumps(config.get("tasks", {}).get(name, {}), indent=2, ensure_ascii=False, default=str)
    optimizer = json.dumps(config.get("optimizer", {}), indent=2, ensure_ascii=False, default=str)
    lines = [
        *front,
        f"# {kind}",
        "",
        f"The task `{name}` of a run of unimodal{_version()}, after step {loaded.step}"
        + (", the average of its parameters." if loaded.averaged else "."),
        "",
        "## Data",
        f"`{task.source}`. Nothing is known here of its licence: `license` above is for you to fill in.",
        "",
        "## Scores",
        *_table(scores, loaded, others),
        "",
        "## Hardware",
        _hardware(epath.Path(loaded.path)),
        "",
        "## Recipe",
        f"{config.get('steps')} steps, seed {config.get('seed')}.",
        "```json",
        f'{{"task": {recipe}, "optimizer": {optimizer}}}',
        "```",
        "",
        "## Commands",
        "```",
        f"unimodal eval --workdir={loaded.path}",
        *commands,
        "```",
    ]
    (directory / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(found: Scores | None, loaded: Any, others: Container[str]) -> list[str]:
    """The rows of results.json: value, its interval, baseline and what that is. Scores of another checkpoint are not shown, nor
    of the average where these are the last parameters (or the other way round), nor those of other tasks."""
    if found is None:
        return ["The run has not been evaluated: it has no results.json."]
    if found.step != loaded.step:
        return [f"This checkpoint has not been evaluated: results.json is of step {found.step}."]
    averaged = bool(loaded.config.get("ema")) and loaded.experiment.evaluate_ema is not False
    if loaded.averaged != averaged:
        those = "the average of the parameters" if averaged else "the last parameters"
        return [f"These weights have not been evaluated: results.json is of {those}."]
    lines = ["| evaluation | metric | value | 95 % interval | baseline |", "|---|---|---|---|---|"]
    for name, row in ((name, row) for name, row in found.by_name.items() if name not in others):
        known = "not known" if math.isnan(row.low) else f"{row.low:.4g} to {row.high:.4g}"
        baseline = f"{row.baseline:.4g} ({row.baseline_is})"
        lines.append(f"| {name} | {row.metric} | {row.value:.4g} | {known} | {baseline} |")
    return [
        *lines,
        "",
        "Intervals are by the bootstrap over the examples of validation: of other examples, not of other seeds.",
    ]


def _hardware(workdir: epath.Path) -> str:
    """What the run was trained on, by its meters.json."""
    try:
        found = json.loads((workdir / "meters.json").read_text(encoding="utf-8"))
        chips, speed = f"{int(found['chips'])} × {found['chip']}", found["steps_per_second"]
        pace = "" if speed is None else f", {float(speed):.3g} steps a second"
    except (OSError, ValueError, LookupError, TypeError):
        return "Not known: the run has no meters.json."
    return f"Trained on {chips}{pace}."


def _version() -> str:
    try:
        return " " + version("unimodal")
    except PackageNotFoundError:  # run from a clone that is not installed
        return ""
