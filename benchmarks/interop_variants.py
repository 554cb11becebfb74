"""Compare variants of every published family with transformers: each must give equal numbers, or be refused in one line.

    python benchmarks/interop_variants.py [FAMILY …]

A variant is a class of transformers, a change of its configuration and an input. The model is built small and random, saved,
and loaded with ours. Outputs that both have must be equal to 1e-4 at real tokens, and what transformers gives out (hidden
states, pooled states, logits) must be there. Needs torch and transformers beside unimodal; exit code 1 if a variant fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers as t

import unimodal.interop as interop
from unimodal.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent))
from interop_tables import FAMILIES, IDS, Arrays, Family
from make_references import randomise as random_weights

HEADS = {"tie_word_embeddings", "num_labels", "pad_token_id", "hidden_act", "use_weighted_layer_sum", "qkv_bias"}


def variants(family: Family, quick: bool) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Every class with every change and the first input, and with no change and the other inputs.

    quick: what concerns no head is changed in the first class alone.
    """
    first, *others = family.inputs
    for kind in family.classes:
        for change in family.changes:
            if not quick or kind is family.classes[0] or change.keys() <= HEADS:
                yield kind, change, first
        for name in others:
            yield kind, {}, name


def merged(fields: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    nested = {key: {**fields.get(key, {}), **value} for key, value in change.items() if key.endswith("_config")}
    return {**fields, **{key: value for key, value in change.items() if key != "json"}, **nested}


def build(family: Family, kind: Any, change: dict[str, Any], directory: str) -> Any:
    """The torch model, saved in `directory`, and opened again where its config.json is changed there."""
    config = family.config(
        **{
            "num_labels": 2 if "Answering" in kind.__name__ else 5,
            **merged({**family.fields, **family.needs.get(kind.__name__, {})}, change),
        }
    )
    model = kind(config).eval()
    random_weights(model)
    model.save_pretrained(directory)
    if "json" in change:
        path = Path(directory) / "config.json"
        values = json.loads(path.read_text())
        rope = values.get("rope_parameters") or {}
        values["rope_theta"] = rope.get("rope_theta", 10_000.0)
        values |= change["json"]
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        model = kind.from_pretrained(directory).eval()
    return model


def theirs(model: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    """What transformers makes of the inputs, by our names."""
    x = {name: torch.from_numpy(value) for name, value in inputs.items()}
    name = type(model).__name__
    seen: dict[str, Any] = {}
    base = getattr(model, model.base_model_prefix, model)
    hook = base.register_forward_hook(lambda _, __, out: seen.update(hidden=out.get("last_hidden_state"), pooled=out.get("pooler_output")))  # fmt: skip
    arguments: dict[str, Any] = {}
    if "text" in x:
        ids = x["text"].long()
        arguments = dict(input_ids=ids, attention_mask=x.get("text_mask"))
        if "GPT2" in name and "text_mask" in x:  # as `generate` does
            arguments["position_ids"] = (x["text_mask"].cumsum(1) - 1).clamp(min=0)
        if "MultipleChoice" in name:
            arguments = {key: None if value is None else value[:, None] for key, value in arguments.items()}
        if "DoubleHeads" in name:
            arguments["mc_token_ids"] = torch.full((2,), 8)
    if "image" in x and x["image"].ndim == 2:
        arguments = dict(input_ids=x["image"].long())
    elif "image" in x:
        if name in ("CLIPForImageClassification", "SiglipForImageClassification"):
            arguments = {}
        arguments["pixel_values"] = x["image"].permute(0, 3, 1, 2)
        if "MAE" in name:
            noise = torch.arange(10_000)[None].repeat(2, 1).float()
            size = model.config.patch_size
            down, across = (size, size) if isinstance(size, int) else size
            noise = noise[:, : (x["image"].shape[1] // down) * (x["image"].shape[2] // across)]
            arguments["noise"] = noise
        if "Dino" not in name:
            arguments["interpolate_pos_encoding"] = True
    if "audio" in x:
        if "Whisper" in name:
            encoder = model.model.encoder if hasattr(model, "model") else model.encoder
            hidden = encoder(x["audio"].transpose(1, 2)).last_hidden_state
            found = {"hidden": hidden}
            if "Classification" in name:
                found["logits"] = model(x["audio"].transpose(1, 2)).logits
            return {key: value.detach().numpy() for key, value in found.items()}
        arguments = dict(input_values=x["audio"])
        if "audio_mask" in x:
            arguments["attention_mask"] = x["audio_mask"]
    with torch.no_grad():
        out = model(**arguments)
    hook.remove()
    return {key: value.numpy() for key, value in named(model, out, seen).items() if value is not None}


def named(model: Any, out: Any, seen: dict[str, Any]) -> dict[str, Any]:
    if "text_embeds" in out and "image_embeds" in out:
        return {
            "text_hidden": out.text_model_output.last_hidden_state,
            "image_hidden": out.vision_model_output.last_hidden_state,
            "text_embedding": out.text_embeds,
            "image_embedding": out.image_embeds,
            "logits": out.logits_per_image,
        }
    if "projected_states" in out:
        return {"projected": out.projected_states, "quantised": out.projected_quantized_states}
    found = {"hidden": out.get("last_hidden_state", seen.get("hidden")), "pooled": out.get("pooler_output")}
    found["logits"] = out.get("logits")
    if "prediction_logits" in out:
        found |= {"logits": out.prediction_logits, "next_sentence_logits": out.seq_relationship_logits}
    if "start_logits" in out:
        found["answer_logits"] = torch.stack([out.start_logits, out.end_logits], -1)
    if "reconstruction" in out:
        found["reconstruction"] = out.reconstruction
    if "embeddings" in out and found["logits"] is not None:
        found["xvector"] = out.embeddings
    if "MAE" in type(model).__name__ and found["logits"] is not None:
        found["patches"] = found.pop("logits")
    if "NextSentence" in type(model).__name__:
        found["next_sentence_logits"] = found.pop("logits")
    return found


def real_places(inputs: Arrays, model: Any) -> np.ndarray | None:
    if "text_mask" in inputs:
        return inputs["text_mask"] == 1
    if "audio_mask" in inputs:
        base = getattr(model, model.base_model_prefix, model)
        count = base._get_feat_extract_output_lengths
        real = count(torch.from_numpy(inputs["audio_mask"].sum(1))).numpy()
        return np.arange(int(count(torch.tensor(inputs["audio"].shape[1]))))[None] < real[:, None]
    return None


def call(model: interop.Pretrained, inputs: Arrays) -> dict[str, jax.Array]:
    """Operation by operation: these are compiled once for all variants, where each model would be compiled anew."""
    with jax.disable_jit():
        return model(**inputs)


def check(family: Family, kind: Any, change: dict[str, Any], inputs: Arrays) -> tuple[str, str]:
    """The verdict and what it rests on."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        try:
            model = build(family, kind, change, directory)
            wanted = theirs(model, inputs if "num_channels" not in str(change) else narrowed(inputs))
        except Exception as error:
            return "not built", f"{type(error).__name__}: {error}".splitlines()[0][:150]
        try:
            ours = interop.load_huggingface(directory)
            found = call(ours, inputs if "num_channels" not in str(change) else narrowed(inputs))
        except UsageError as error:
            line = str(error).replace(directory, "DIR")
            return ("refused" if "\n" not in line else "LINES"), line
        except Exception as error:
            return "TRACEBACK", f"{type(error).__name__}: {error}".splitlines()[0][:200]
    arrays, real = {key: np.asarray(value) for key, value in found.items()}, real_places(inputs, model)
    skipped = pooled_padding(family, real)
    if skipped is not None:
        one_per_row = [key for key, value in wanted.items() if value.shape[:2] != skipped.shape[:1] + IDS.shape[1:]]
        wanted = {key: value[~skipped] if key in one_per_row else value for key, value in wanted.items()}
        arrays = {key: value[~skipped] if key in one_per_row else value for key, value in arrays.items()}
    return compared(wanted, arrays, real, ours)


def pooled_padding(family: Family, real: np.ndarray | None) -> np.ndarray | None:
    """Rows whose first token is padding, where that is what is pooled: it has no meaning, here or there."""
    encoders = ("bert", "roberta", "distilbert", "albert", "electra", "mpnet", "data2vec_text", "modernbert")
    return ~real[:, 0] if real is not None and any(family is FAMILIES[name] for name in encoders) else None


def narrowed(inputs: Arrays) -> Arrays:
    return {key: value[..., :1] if key == "image" else value for key, value in inputs.items()}


def compared(wanted: Arrays, found: Arrays, real: np.ndarray | None, ours: Any) -> tuple[str, str]:
    missing = [key for key in wanted if key not in found]
    if missing and missing != ["pooled"]:
        return "DROPPED", f"{missing}; unread {list(ours.origin.unused)[:3]}"
    worst = 0.0
    for key, value in wanted.items():
        if key not in found:
            continue
        here = found[key]
        if key == "logits" and here.shape != value.shape and here.size == value.size:
            here = here.reshape(value.shape)  # choices side by side
        if here.shape != value.shape:
            return "WRONG", f"{key} is {here.shape}, not {value.shape}"
        if real is not None and value.shape[:2] == real.shape:
            here, value = here[real], value[real]
        worst = float(np.maximum(worst, np.abs(here - value).max()))  # NaN stays NaN, and no NaN is equal
    unread = f"; unread {list(ours.origin.unused)[:3]}" if ours.origin.unused else ""
    return ("equal" if worst <= 1e-4 else "WRONG"), f"{worst:.1e} {','.join(wanted)}{unread}"


def main(names: list[str], quick: bool, show: Callable[[str], bool]) -> int:
    counts: Counter[str] = Counter()
    for name in names:
        family = FAMILIES[name]
        for kind, change, inputs in variants(family, quick):
            verdict, why = check(family, kind, change, family.inputs[inputs])
            counts[verdict] += 1
            if show(verdict):
                said = ", ".join(f"{key}={value}" for key, value in change.items()) or "-"
                print(f"{verdict:<9} | {kind.__name__} | {said} | {inputs} | {why}", flush=True)
    print(", ".join(f"{verdict} {count}" for verdict, count in sorted(counts.items())))
    return int(any(verdict.isupper() for verdict in counts))


if __name__ == "__main__":
    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="by default all")
    parser.add_argument(
        "--all", action="store_true", help="print every variant, not only those that fail or are refused"
    )
    parser.add_argument("--quick", action="store_true", help="change what concerns no head in one class of a family")
    arguments = parser.parse_args()
    sys.exit(main(arguments.families, arguments.quick, lambda verdict: arguments.all or verdict != "equal"))
