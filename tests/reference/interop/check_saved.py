"""Open what `save_huggingface` writes with transformers, and compare outputs; prints a table.

    python tests/reference/interop/check_saved.py [NAME …]

For each tiny reference (by default all): load it with ours and save it, which must open in transformers with the same tensors
found as in the original and give exactly its outputs. Then every weight is changed and saved, and transformers
must give with it what ours gives: so it is our weights that were written, not a copy of the file. Needs torch and
transformers beside unimodal.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import jax
import numpy as np
import torch
import transformers as t
from make_references import CASES, HERE, Arrays, Case, run, valid_places

from unimodal.interop import Pretrained, load_huggingface, save_huggingface
from unimodal.interop.files import open_source


def opened(case: Case, directory: str) -> tuple[Any, dict[str, Any]]:
    """The directory as transformers' own class, and which tensors it misses or has left over."""
    model, info = type(case.make()).from_pretrained(directory, output_loading_info=True)
    return model.eval(), {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}


def outputs(case: Case, model: Any, inputs: Arrays) -> Arrays:
    with torch.no_grad():
        return {name: value.numpy() for name, value in run(case, model, inputs).items()}


def changed(model: Pretrained) -> Pretrained:
    """Other weights of the same shapes, far enough from the first to show."""
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return jax.tree.unflatten(structure, [x * (1 + 0.3 * jax.random.normal(key, x.shape, x.dtype)) for key, x in pairs])


def check(name: str) -> str:
    """One row of the table. Raises AssertionError if anything differs."""
    case, ours = CASES[name], load_huggingface(HERE / name)
    with np.load(HERE / name / "reference.npz") as reference:
        inputs = {key[3:]: reference[key] for key in reference.files if key.startswith("in/")}
        first = {key[4:]: reference[key] for key in reference.files if key.startswith("out/")}
    with tempfile.TemporaryDirectory() as directory:
        save_huggingface(ours, directory)
        (model, info), (twin, original_info) = opened(case, directory), opened(case, str(HERE / name))
        assert info == original_info, info
        # The same machine and version as made the reference give its bits; another one may not.
        original = outputs(case, twin, inputs)
        found = outputs(case, model, inputs)
        for key, value in first.items():  # where a part is missing in the file, what it gives is random
            assert np.array_equal(found[key], original[key]), (name, key)
            assert np.allclose(found[key], value, rtol=1e-5, atol=1e-5), (name, key)
    with tempfile.TemporaryDirectory() as directory:
        ours = changed(ours)
        save_huggingface(ours, directory)
        model, info = opened(case, directory)
        assert info == original_info, info
        theirs, valid = outputs(case, model, inputs), valid_places(model, inputs)
        found = jax.jit(lambda model, inputs: model(**inputs))(ours, inputs)
        worst = 0.0
        for key in first:
            here, value = np.asarray(found[key]), theirs[key]
            if valid is not None and value.shape[:2] == valid.shape:
                here, value = here[valid], value[valid]
            worst = float(np.maximum(worst, np.abs(here - value).max() / np.abs(value).max()))  # NaN stays
            assert not np.allclose(theirs[key], first[key]), (name, key)  # the change did show
        assert worst <= 1e-5, (name, worst)
        tensors = len(open_source(HERE / name).tensors)
    return f"| `{name}` | `{type(model).__name__}` | {tensors} | {', '.join(first)} | equal | {worst:.0e} |"


if __name__ == "__main__":
    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    print(f"transformers {t.__version__}, torch {torch.__version__}\n")
    print("| reference | opens as | tensors | outputs | as saved | changed and saved: largest relative difference |")
    print("|---|---|---|---|---|---|")
    for chosen in sys.argv[1:] or sorted(CASES):
        print(check(chosen), flush=True)
