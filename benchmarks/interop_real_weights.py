"""Real published weights, loaded into the one backbone, do what they are known to do.

    python tools/fetch_weights.py weights
    python benchmarks/interop_real_weights.py weights

Prints, of the sentence encoder: similarities of known pairs, and how many of twelve questions find their answer; of the
story teller: its greedy continuation. Where torch and transformers are installed, also the difference from them. Needs
the `interop` extra. A wrong ranking, another story or a difference above 1e-4 makes it end with an error.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.generate import Sampling, generate
from unimodal.interop import Pretrained, load_huggingface, load_preprocessor

ANCHOR = "A man is eating food."
PAIRS = {"Someone is having a meal.": 0.69, "The stock market fell sharply today.": 0.00}
ANSWERS = {
    "How do I bake bread?": "Mix flour, water, salt and yeast, let the dough rise, and put it into a hot oven.",
    "Why is the sky blue?": "Air scatters short wavelengths of sunlight more than long ones.",
    "Who wrote Hamlet?": "William Shakespeare finished the tragedy of the Danish prince around 1600.",
    "What do bees eat?": "They live on nectar and pollen that they gather from flowers.",
    "How fast is light?": "In vacuum it covers almost 300,000 kilometres each second.",
    "Where can I repair my bicycle?": "The shop at the corner mends punctures and brakes of bikes.",
    "How is the weather today?": "It rains in the morning, and the sun comes out after lunch.",
    "What is a neural network?": "Layers of simple units whose weights are learned from examples.",
    "How do I tie a knot?": "Cross the two ends of the rope, pass one under the other, and pull tight.",
    "When did the war end?": "The armistice was signed in November 1918.",
    "Can cats swim?": "Most felines dislike water, but they are able to paddle.",
    "How much does a ticket cost?": "Entry is twelve euros for adults and free for children.",
}
PROMPT = "Once upon a time, there was a little"
STORY = "girl named Lily. She loved to play outside in the sunshine."


def loaded(directory: Path) -> Pretrained:
    start = time.perf_counter()
    model = jax.block_until_ready(load_huggingface(directory))
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    print(f"{directory.name}: {count / 1e6:.1f}M parameters in {time.perf_counter() - start:.2f} s")
    unused = model.origin.unused
    print(f"  fresh: {', '.join(model.origin.fresh) or 'none'}; unused: {', '.join(unused) or 'none'}")
    return model


def sentences(directory: Path) -> None:
    model, prepare = loaded(directory), load_preprocessor(directory)

    @jax.jit
    def embed(model: Pretrained, inputs: dict[str, jax.Array]) -> jax.Array:
        return model(**inputs)["pooled"]

    found = np.asarray(embed(model, prepare(text=[ANCHOR, *PAIRS])))
    for (other, wanted), cosine in zip(PAIRS.items(), found[1:] @ found[0], strict=True):
        print(f"  {cosine:5.2f} (known: {wanted:.2f})  {ANCHOR!r} / {other!r}")
        assert abs(cosine - wanted) < 0.01
    inputs = prepare(text=[*ANSWERS, *ANSWERS.values()])
    all_of_them = np.asarray(embed(model, inputs))
    scores = all_of_them[: len(ANSWERS)] @ all_of_them[len(ANSWERS) :].T
    right = int((scores.argmax(axis=1) == np.arange(len(ANSWERS))).sum())
    print(f"  {right} of {len(ANSWERS)} questions are nearest to their own answer (chance: 1)")
    assert right >= len(ANSWERS) - 1
    if (torch := torch_or_none()) is not None:
        import transformers

        twin = transformers.AutoModel.from_pretrained(directory).eval()
        ids, mask = (torch.from_numpy(inputs[name]).long() for name in ("text", "text_mask"))
        with torch.no_grad():
            hidden = twin(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
        mean = torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1, keepdim=True), dim=-1)
        report("embeddings", all_of_them, mean.numpy())


def story(directory: Path, steps: int = 32) -> None:
    model, preprocessor = loaded(directory), load_preprocessor(directory)
    prompt = preprocessor(text=PROMPT)["text"]

    @jax.jit
    def tell(model: Pretrained, prompt: jax.Array) -> jax.Array:
        backbone, embed, head = model.backbones["text"], model.tokenizers["text"], model.heads["lm"]
        lengths, greedy = jnp.full((1,), prompt.shape[1], jnp.int32), Sampling(temperature=0.0)
        return generate(backbone, embed, head, prompt, lengths, jax.random.key(0), steps=steps, sampling=greedy)

    told = np.asarray(tell(model, prompt))[0]
    whole = np.concatenate([prompt[0], told])
    text = str(preprocessor.decode(whole))
    print(f"  {text}")
    assert text.startswith(f"{PROMPT} {STORY}"), text
    if (torch := torch_or_none()) is not None:
        import transformers

        twin = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
        with torch.no_grad():
            logits = twin(input_ids=torch.from_numpy(whole[None]).long()).logits.numpy()
            theirs = twin.generate(torch.from_numpy(prompt).long(), do_sample=False, max_new_tokens=steps).numpy()[0]
        ours = jax.jit(lambda model, ids: model(text=ids)["logits"])(model, whole[None])
        report("logits", np.asarray(ours), logits)
        print(f"  same {steps} greedy tokens: {bool((theirs == whole).all())}")
        assert (theirs == whole).all()


def report(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    error, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
    print(f"  {what} differ from transformers' by at most {error:.1e} (largest value {scale:.2f})")
    assert error <= 1e-4


def torch_or_none() -> Any:
    """torch, if both it and transformers can be compared with."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sentences(Path(sys.argv[1]) / "minilm")
    story(Path(sys.argv[1]) / "stories15m")
