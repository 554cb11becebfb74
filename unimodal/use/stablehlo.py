"""One answer of a model as StableHLO: a function that JAX runs, or whatever else reads StableHLO, without this package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from unimodal.answers import Answer
from unimodal.errors import UsageError
from unimodal.use.card import write_card

RUN = '''"""Run the exported function: JAX, numpy and flatbuffers are all it takes."""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export

here = Path(__file__).resolve().parent
said = json.loads((here / "function.json").read_text(encoding="utf-8"))
function = export.deserialize(bytearray((here / "function.stablehlo").read_bytes()))
weights = np.load(here / "weights.npz")


def run(**batch):
    """Arrays by name, as function.json has them, [batch, ...] each, to arrays by name."""
    arrays = {name: np.asarray(batch[name], spec["dtype"]) for name, spec in said["inputs"].items()}
    return function.call([weights[f"w{i}"] for i in range(len(weights.files))], arrays)


if __name__ == "__main__":
    given = np.load(sys.argv[1])
    np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in run(**given).items()})
'''


def write_stablehlo(loaded: Any, name: str, gives: str | None, directory: Path) -> list[str]:
    """Write an answer's `predict` with its weights beside it. The batch may be of any size where the model allows that.

    Raises UsageError for an answer that the task does not give, or that cannot be exported.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UsageError(
            "stablehlo: takes flatbuffers, by which JAX writes functions: pip install 'unimodal[stablehlo]'"
        )
    answers = [a for a in loaded.answers(name) if gives in (None, a.gives)]
    if not answers:
        there = ", ".join(dict.fromkeys(a.gives for a in loaded.answers(name)))
        raise UsageError(f"the task {name!r} gives no {gives}, but {there}")
    answer = answers[0]
    leaves, structure = jax.tree.flatten(loaded.model)
    row = _example(loaded, answer)
    sizes, function = _exported(answer, leaves, structure, row)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "function.stablehlo").write_bytes(function.serialize())
    arrays: dict[str, Any] = {f"w{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    np.savez(directory / "weights.npz", **arrays)
    spec = {n: dict(shape=[sizes, *np.shape(v)], dtype=str(np.asarray(v).dtype)) for n, v in row.items()}
    said = dict(task=name, gives=answer.gives, reads=answer.reads, inputs=spec)
    (directory / "function.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    (directory / "run.py").write_text(RUN, encoding="utf-8")
    write_card(loaded, name, f"{answer.gives} by {name}", directory)
    return [f"{directory}: {answer.gives} of {answer.reads}, {len(leaves)} arrays, batch {sizes}; run.py runs it"]


def _exported(answer: Answer, leaves: list[Any], structure: Any, row: Any) -> tuple[str | int, Any]:
    """The function with a batch of any size, or of one row where a kernel needs to know it."""

    def function(weights: list[Any], batch: Any) -> Any:
        return dict(answer.predict(jax.tree.unflatten(structure, weights), batch))

    weights = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    (symbolic,) = jax_export.symbolic_shape("batch")
    found: Exception | None = None
    for size in (symbolic, 1):
        batch = {n: jax.ShapeDtypeStruct((size, *np.shape(v)), np.asarray(v).dtype) for n, v in row.items()}
        try:
            made = jax_export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(weights, batch)
            return ("any" if size is symbolic else 1), made
        except Exception as error:  # tracing and lowering raise many kinds
            found = error
    raise UsageError(f"it cannot be exported as StableHLO: {str(found).splitlines()[0]}") from found


def _example(loaded: Any, answer: Answer) -> Any:
    """The arrays of one input of the right modality."""
    given = {
        "image": {"image": np.zeros((64, 64, 3), np.uint8)},
        "text": {"text": "a [MASK]"},
        "sound": {"audio": np.sin(np.arange(16_000) / 20).astype(np.float32) * 0.1, "rate": 16_000},
    }[answer.reads]
    return answer.row({"id": "example", **given})
