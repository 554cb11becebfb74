"""Draws pictures from captions with a trained run of the recipe dalle, and keeps those that a run of the recipe clip ranks first.

    python tools/draw.py --prior=runs/dalle [--clip=runs/clip] [--judge=runs/clip1] [--count 16] [--keep 4] [--guidance 2]
                         [--complete PICTURE] [--seed 0] [--out drawn] CAPTION ...

OUT gets CAPTION.png, the kept pictures from left to right, best first, and drawn.json with each caption's scores: the mean
over all that were drawn, and of those that are kept. By the run that ranks, those that are kept are nearer to the caption in any
case, by chance too; --judge names a run of another seed, which has chosen nothing, to tell whether they are. With
--complete, pictures begin with the upper half of PICTURE.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import launch
from unimodal.errors import UsageError
from unimodal.experiment import build
from unimodal.training.checkpoint import Checkpoints


def trained(workdir: str, kind: str) -> tuple[Any, Any]:
    """The first task of a kind in a workdir, and the model of its latest checkpoint."""
    if not (Path(workdir) / "config.json").exists():
        raise UsageError(f"{workdir} is not a workdir: it has no config.json")
    config = json.loads((Path(workdir) / "config.json").read_text(encoding="utf-8"))
    experiment = build({**config, "init_from": None, "mesh": dict(data=1)}, launch.task_class)
    task = next((task for task in experiment.tasks if type(task).__name__.lower() == kind), None)
    if task is None:
        raise UsageError(f"{workdir} has no task of kind {kind}")
    with Checkpoints(workdir) as checkpoints:
        state, _, _ = checkpoints.restore(experiment.program.abstract_state())
    return task, experiment.program.model(state)


def encoded(task: Any, model: Any, caption: str) -> jax.Array:
    """One caption's ids [1,T]. Raises UsageError for one that says nothing, or is longer than the row of text."""
    if not caption.strip():
        raise UsageError("a caption is empty")
    ids = task.texts.row(task.texts.opened, caption)
    words = task.texts.opened.encode(caption)
    if len(words) > task.texts.length:
        raise UsageError(
            f"{caption!r} has {len(words)} tokens; the model was trained on captions of {task.texts.length}"
        )
    return jnp.asarray(ids)[None]


def pictures(prior: tuple[Any, Any], caption: str, given: Any, options: argparse.Namespace) -> np.ndarray:
    """uint8 [count,H,W,3]."""
    task, model = prior
    many = jnp.repeat(encoded(task, model, caption), options.count, axis=0)
    how = {} if options.guidance is None else {"guidance": options.guidance}
    draw = jax.jit(lambda model, ids, key: task.draw(model, ids, key, given, **how))
    made = np.asarray(draw(model, many, jax.random.key(options.seed)))
    return np.stack([task.images.to_uint8(one) for one in made])


def beginning(prior: tuple[Any, Any], path: str, count: int) -> jax.Array:
    """The codes of the upper half of a picture, `count` times."""
    task, model = prior
    tokenizer = model.tokenizers[task.image_tokenizer]
    with Image.open(path) as opened:
        picture = task.images.fitted(np.asarray(opened.convert("RGB")), tokenizer.config.image_size)
    codes = tokenizer.codes(jnp.asarray(task.images.to_float(picture))[None])
    rows, columns = tokenizer.config.grid
    return jnp.repeat(codes[:, : rows // 2 * columns], count, axis=0)


def similarities(judge: tuple[Any, Any], drawn: np.ndarray, caption: str) -> np.ndarray:
    """Of each picture with the caption, by a dual encoder: [count], cosines."""
    task, model = judge
    size = model.tokenizers[task.image_tokenizer].config.image_size
    pixels = np.stack([task.images.to_float(task.images.fitted(picture, size)) for picture in drawn])
    image = task.embed_one(model, "image", {"image": jnp.asarray(pixels)})
    text = task.embed_one(model, "text", {"ids": encoded(task, model, caption)})
    return np.asarray(image @ text[0])


def file_names(captions: Sequence[str]) -> dict[str, str]:
    """A name of its own for each caption: its words, in any script, and a number where another caption has the same."""
    found: dict[str, str] = {}
    for caption in dict.fromkeys(captions):
        words = name = re.sub(r"\W+", "_", caption)[:60]  # which is shorter than a file's name may be, in any script
        number = 1
        while name.casefold() in (other.casefold() for other in found.values()):
            number += 1
            name = f"{words}_{number}"
        found[caption] = name
    return found


def scored(scores: np.ndarray, best: np.ndarray) -> dict[str, Any]:
    """Similarities of all pictures, and of the best, as drawn.json has them."""
    kept = scores[best]
    return {"mean": float(scores.mean()), "kept": float(kept.mean()), "scores": kept.tolist()}


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", nargs="+", metavar="CAPTION")
    parser.add_argument("--prior", required=True, help="workdir of the recipe dalle")
    parser.add_argument("--clip", help="workdir of the recipe clip, which ranks; without it the first are kept")
    parser.add_argument("--judge", help="workdir of another run of the recipe clip, which scores and does not rank")
    parser.add_argument("--count", type=int, default=16, help="pictures drawn for each caption")
    parser.add_argument("--keep", type=int, default=4, help="pictures kept of them")
    parser.add_argument("--guidance", type=float, help="scale of classifier-free guidance; otherwise the run's")
    parser.add_argument("--complete", metavar="PICTURE", help="begin with the upper half of this picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="drawn")
    options = parser.parse_args(given)
    if not 1 <= options.keep <= options.count:
        parser.error(f"--keep must be 1 … {options.count} (--count)")
    return options


def main(given: list[str]) -> int:
    options = arguments(given)
    try:
        prior = trained(options.prior, "dalle")
        given_runs = {"clip": options.clip, "judge": options.judge}
        judges = {name: trained(workdir, "clip") for name, workdir in given_runs.items() if workdir is not None}
        for caption in options.captions:  # before anything is drawn
            for task, model in (prior, *judges.values()):
                encoded(task, model, caption)
        start = None if options.complete is None else beginning(prior, options.complete, options.count)
        out, told, names = Path(options.out), {}, file_names(options.captions)
        out.mkdir(parents=True, exist_ok=True)
        for caption in options.captions:
            drawn = pictures(prior, caption, start, options)
            found = {name: similarities(judge, drawn, caption) for name, judge in judges.items()}
            best = (np.argsort(-found["clip"]) if "clip" in found else np.arange(options.count))[: options.keep]
            told[caption] = {name: scored(scores, best) for name, scores in found.items()}
            for name, one in told[caption].items():
                print(f"{caption}: similarity by --{name} {one['mean']:.3f} of all, {one['kept']:.3f} of those kept")
            path = out / f"{names[caption]}.png"
            Image.fromarray(np.concatenate(list(drawn[best]), axis=1)).save(path)
            print(f"wrote {path}")
        (out / "drawn.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
