"""A model card: README.md of an exported model, with its data, recipe, scores and the commands that made it."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from etils import epath

USES = {
    "BertForMaskedLM": "fill-mask",
    "BertForPreTraining": "fill-mask",
    "BertForSequenceClassification": "text-classification",
    "GPT2LMHeadModel": "text-generation",
    "LlamaForCausalLM": "text-generation",
    "ViTForImageClassification": "image-classification",
    "ViTMAEForPreTraining": "feature-extraction",
    "CLIPModel": "zero-shot-image-classification",
    "SiglipModel": "zero-shot-image-classification",
    "Wav2Vec2ForCTC": "automatic-speech-recognition",
    "Wav2Vec2ForPreTraining": "feature-extraction",
}


def write_card(loaded: Any, name: str, kind: str, directory: Path) -> None:
    """Write README.md. Whatever a run has not said (a licence, results) is named as missing, not made up."""
    task, config = loaded.tasks[name], loaded.config
    scores = _scores(epath.Path(loaded.path))
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
        *(scores or ["The run has not been evaluated: it has no results.json."]),
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
        f"unimodal export {loaded.path} huggingface:{directory} --task={name}",
        f"unimodal predict {directory} INPUT",
        "```",
    ]
    (directory / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scores(workdir: epath.Path) -> list[str]:
    """A table of results.json: value, baseline and what that is."""
    path = workdir / "results.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = found.get("results", found.get("evaluations", found))
    lines = ["| evaluation | metric | value | baseline |", "|---|---|---|---|"]
    for name, row in rows.items() if isinstance(rows, dict) else ():
        if isinstance(row, dict) and "value" in row:
            baseline = f"{row.get('baseline', float('nan')):.4g} ({row.get('baseline_is', '')})"
            lines.append(f"| {name} | {row.get('metric', '')} | {row['value']:.4g} | {baseline} |")
    return lines if len(lines) > 2 else []


def _version() -> str:
    try:
        return " " + version("unimodal")
    except PackageNotFoundError:  # run from a clone that is not installed
        return ""
