"""One answer of a model as StableHLO: a function that JAX runs, or whatever else reads StableHLO, without this package."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax import export as jax_export

from unimodal.answers import Answer
from unimodal.errors import UsageError
from unimodal.scores import Scores
from unimodal.use.card import write_card
from unimodal.use.int8 import Int8, in_int8, whole

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
    return function.call({name: weights[name] for name in weights.files}, arrays)


if __name__ == "__main__":
    given = np.load(sys.argv[1])
    np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in run(**given).items()})
'''


def write_stablehlo(
    loaded: Any, name: str, gives: str | None, scores: Scores | None, directory: Path, *, int8: bool = False
) -> list[str]:
    """Write an answer's `predict` with its weights beside it. The batch may be of any size where the model allows that.

    scores: of the workdir, for the card. int8: keep matrices in eight bits (see `use.int8`); the lines that are returned say
    what that costs in score.

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
    kept = in_int8(loaded.model) if int8 else [np.asarray(leaf) for leaf in leaves]
    arrays = _named(kept)
    dtypes = [leaf.dtype for leaf in leaves]
    row = _example(loaded, answer)
    sizes, function = _exported(answer, arrays, dtypes, structure, row)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "function.stablehlo").write_bytes(function.serialize())
    np.savez(directory / "weights.npz", **cast(dict[str, Any], arrays))
    spec = {n: dict(shape=[sizes, *np.shape(v)], dtype=str(np.asarray(v).dtype)) for n, v in row.items()}
    said = dict(task=name, gives=answer.gives, reads=answer.reads, inputs=spec)
    (directory / "function.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    (directory / "run.py").write_text(RUN, encoding="utf-8")
    made = f"unimodal export {loaded.path} stablehlo:{directory} --task={name} --gives={shlex.quote(answer.gives)}"
    commands = (made + (" --int8" if int8 else ""), f"python {directory}/run.py IN.npz OUT.npz")
    write_card(loaded, name, f"{answer.gives} by {name}", scores, directory, commands)
    size = sum(array.nbytes for array in arrays.values())
    told = f"{directory}: {answer.gives} of {answer.reads}, {len(leaves)} arrays, {size:,} bytes, batch {sizes}"
    lines = [f"{told}; run.py runs it"]
    if int8:
        whole_model = jax.tree.unflatten(structure, [whole(a, d) for a, d in zip(kept, dtypes, strict=True)])
        lines.append(_cost(loaded, name, whole_model))
    return lines


def _named(kept: Sequence[np.ndarray | Int8]) -> dict[str, np.ndarray]:
    """The arrays as weights.npz has them: `w` and a number, and `s` and the number for the scale of one in eight bits."""
    arrays: dict[str, np.ndarray] = {}
    for i, array in enumerate(kept):
        if isinstance(array, Int8):
            arrays |= {f"w{i}": array.whole, f"s{i}": array.scale}
        else:
            arrays[f"w{i}"] = array
    return arrays


def _cost(loaded: Any, name: str, model: Any) -> str:
    """What the weights in eight bits score on the task's own evaluation, beside the weights as they were."""
    evaluation = loaded.experiment.evaluations.get(name)
    if evaluation is None:
        return f"what eight bits cost is not known: {name} has no evaluation of its name"
    try:
        scores = [evaluation.measure(each, loaded.experiment.reader).score["value"] for each in (loaded.model, model)]
    except UsageError as error:  # the data is not here
        return f"what eight bits cost is not known: {error}"
    return f"{evaluation.metric}: {scores[0]:.4g} with the weights as they are, {scores[1]:.4g} in eight bits"


def _exported(
    answer: Answer, arrays: dict[str, np.ndarray], dtypes: list[Any], structure: Any, row: Any
) -> tuple[str | int, Any]:
    """The function with a batch of any size, or of one row where a kernel needs to know it."""

    def function(weights: dict[str, Any], batch: Any) -> Any:
        kept = [
            Int8(weights[f"w{i}"], s) if (s := weights.get(f"s{i}")) is not None else weights[f"w{i}"]
            for i in range(len(dtypes))
        ]
        leaves = [whole(array, dtype) for array, dtype in zip(kept, dtypes, strict=True)]
        return dict(answer.predict(jax.tree.unflatten(structure, leaves), batch))

    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
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
    }
    return answer.row({"id": "example", **{k: v for kind in answer.reads.split("+") for k, v in given[kind].items()}})
