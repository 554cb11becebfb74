"""Makes the `.npz` files beside this script: losses and gradients of torch and Hugging Face on small fixed arrays.

    pip install torch transformers && python tests/reference/objectives/make_references.py

The tests read the files and need neither. Where a library has the loss, its own code is run; where it has none, the
paper's formula is written out term by term in float64. Keys: inputs by name, then `NAME_loss` and `NAME_grad[_INPUT]`.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss, ForSequenceClassificationLoss
from transformers.models.clip.modeling_clip import image_text_contrastive_loss
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer, _sample_negative_indices

HERE = Path(__file__).parent


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.tensor((scale * rng.standard_normal(shape)).astype(np.float32))


def save(name: str, arrays: dict) -> None:
    kept = {}
    for key, value in arrays.items():
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        kept[key] = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    np.savez_compressed(HERE / f"{name}.npz", **kept)


def with_gradients(loss: torch.Tensor, inputs: dict[str, torch.Tensor], name: str) -> dict:
    gradients = torch.autograd.grad(loss.sum(), list(inputs.values()), retain_graph=True)
    grads = {f"{name}_grad_{key}": grad for key, grad in zip(inputs, gradients, strict=True)}
    return {f"{name}_loss": loss, **grads}


def language() -> None:
    rng = np.random.default_rng(0)
    B, T, V = 3, 12, 17
    logits = normal(rng, B, T, V, scale=2.0).requires_grad_()
    inputs = {"logits": logits}
    ids = torch.tensor(rng.integers(0, V, (B, T)))
    segment = torch.tensor([[1] * 12, [1] * 5 + [2] * 4 + [3] * 3, [1] * 4 + [2] * 3 + [0] * 5])
    out: dict = {"logits": logits, "ids": ids, "segment": segment}
    out |= with_gradients(ForCausalLMLoss(logits, ids, V), inputs, "causal")

    # Hugging Face shifts by itself; a label is ignored when its token does not continue the segment before it.
    labels = ids.clone()
    labels[:, 1:][(segment[:, 1:] != segment[:, :-1]) | (segment[:, 1:] == 0)] = -100
    out |= with_gradients(ForCausalLMLoss(logits, labels, V), inputs, "packed")
    rows = [F.cross_entropy(row[:-1], label[1:], ignore_index=-100) for row, label in zip(logits, labels, strict=True)]
    out |= with_gradients(torch.stack(rows), inputs, "packed_rows")
    smooth = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
    log_z = torch.logsumexp(logits[:, :-1], -1)[labels[:, 1:] != -100]
    out |= with_gradients(smooth + 1e-2 * (log_z**2).mean(), inputs, "smooth_z")

    chosen = torch.tensor(rng.random((B, T)) < 0.3)
    out["chosen"] = chosen
    out |= with_gradients(ForMaskedLMLoss(logits, torch.where(chosen, ids, -100), V), inputs, "masked")
    save("language", out)


def classification() -> None:
    rng = np.random.default_rng(1)
    B, V = 6, 9
    logits = normal(rng, B, V, scale=3.0).requires_grad_()
    inputs = {"logits": logits}
    labels = torch.tensor(rng.integers(0, V, B))
    mixed = 0.7 * F.one_hot(labels, V).float() + 0.3 * F.one_hot(labels.flip(0), V).float()
    many = torch.tensor((rng.random((B, V)) < 0.4).astype(np.float32))
    out: dict = {"logits": logits, "labels": labels, "mixed": mixed, "many": many}

    class Single:
        problem_type, num_labels = "single_label_classification", V

    class Multi:
        problem_type, num_labels = "multi_label_classification", V

    out |= with_gradients(ForSequenceClassificationLoss(labels, logits, Single()), inputs, "single")
    out |= with_gradients(ForSequenceClassificationLoss(many, logits, Multi()), inputs, "multi")
    out |= with_gradients(F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none"), inputs, "smooth")
    out |= with_gradients(F.cross_entropy(logits, mixed, reduction="none"), inputs, "mixup")
    out |= with_gradients(F.cross_entropy(logits, mixed, label_smoothing=0.1, reduction="none"), inputs, "mixup_smooth")
    save("classification", out)


def nt_xent_by_terms(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Chen et al. 2020, eq. 1, one term at a time; views 2k and 2k+1 are a pair."""
    z = torch.stack([a, b], 1).flatten(0, 1)

    def sim(i: int, j: int) -> torch.Tensor:
        return z[i] @ z[j] / (z[i].norm() * z[j].norm())

    def term(i: int, j: int) -> torch.Tensor:
        others = [torch.exp(sim(i, k) / temperature) for k in range(len(z)) if k != i]
        return -torch.log(torch.exp(sim(i, j) / temperature) / torch.stack(others).sum())

    pairs = [term(2 * k, 2 * k + 1) + term(2 * k + 1, 2 * k) for k in range(len(a))]
    return torch.stack(pairs).sum() / len(z)


def siglip_by_terms(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Zhai et al. 2023, algorithm 1, one pair at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(a)):
        for j in range(len(b)):
            logit = scale * (a[i] @ b[j]) / (a[i].norm() * b[j].norm()) + bias
            total = total - F.logsigmoid(logit if i == j else -logit)
    return total / len(a)


def contrastive() -> None:
    rng = np.random.default_rng(2)
    B, D = 6, 10
    a, b = normal(rng, B, D), normal(rng, B, D)
    b = b + 0.7 * a
    scale, bias = torch.tensor(14.3), torch.tensor(-7.0)
    out: dict = {"a": a, "b": b, "scale": scale, "bias": bias}
    a, b, scale, bias = (x.double().requires_grad_() for x in (a, b, scale, bias))
    inputs = {"a": a, "b": b, "scale": scale}
    similarity = scale * F.normalize(b) @ F.normalize(a).T  # Hugging Face puts the texts in the rows
    out |= with_gradients(image_text_contrastive_loss(similarity), inputs, "clip")
    out |= with_gradients(siglip_by_terms(a, b, scale, bias), {**inputs, "bias": bias}, "siglip")
    out |= with_gradients(nt_xent_by_terms(a, b, 0.2), {"a": a, "b": b}, "nt_xent")
    save("contrastive", out)


def sinkhorn_by_terms(scores: torch.Tensor, epsilon: float, rounds: int) -> torch.Tensor:
    """Caron et al. 2020, listing 1: clusters in rows, examples in columns; here [N,K] in and out."""
    q = torch.exp(scores.detach() / epsilon).T
    q = q / q.sum()
    for _ in range(rounds):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def views() -> None:
    """MoCo with a queue and without, and SwAV with three views of which two are assigned, the queue among them."""
    rng = np.random.default_rng(7)
    B, D, N, K = 6, 10, 9, 5
    query, key, queue = normal(rng, B, D), normal(rng, B, D), F.normalize(normal(rng, N, D))
    key = key + 0.7 * query
    embedded, past, prototypes = normal(rng, B, 3, D), F.normalize(normal(rng, N, 2, D), dim=-1), normal(rng, D, K)
    out: dict = {
        "query": query,
        "key": key,
        "queue": queue,
        "embedded": embedded,
        "past": past,
        "prototypes": prototypes,
    }
    q, k, far, z, old, c = (x.double() for x in (query, key, queue, embedded, past, prototypes))
    q.requires_grad_(), z.requires_grad_(), c.requires_grad_()
    labels = torch.arange(B)
    cosines = F.normalize(q) @ F.normalize(k).T / 0.2
    out |= with_gradients(F.cross_entropy(cosines, labels, reduction="none"), {"query": q}, "in_batch")
    positive = (F.normalize(q) * F.normalize(k)).sum(1, keepdim=True)
    logits = torch.cat([positive, F.normalize(q) @ far.T], dim=1) / 0.2
    out |= with_gradients(F.cross_entropy(logits, 0 * labels, reduction="none"), {"query": q}, "queue")

    units = F.normalize(c, dim=0)
    scores = F.normalize(z, dim=-1) @ units
    codes = [sinkhorn_by_terms(torch.cat([scores[:, i], old[:, i] @ units]), 0.05, 3)[:B] for i in (0, 1)]
    pairs = [(i, j) for i in (0, 1) for j in (0, 1, 2) if i != j]
    losses = [-(codes[i] * F.log_softmax(scores[:, j] / 0.1, dim=1)).sum(1) for i, j in pairs]
    out |= {"codes": torch.stack(codes, dim=1)}
    out |= with_gradients(torch.stack(losses).mean(0), {"embedded": z, "prototypes": c}, "swapped")
    save("views", out)


def speech() -> None:
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    np.random.seed(3)  # Hugging Face's sampler draws from numpy's global generator
    G, V, N = 2, 4, 7
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16),
        conv_kernel=(10, 4), conv_stride=(5, 4), num_feat_extract_layers=2, num_codevectors_per_group=V,
        num_codevector_groups=G, codevector_dim=16, proj_codevector_dim=12, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0, activation_dropout=0.0, final_dropout=0.0, layerdrop=0.0,
    )  # fmt: skip
    model = Wav2Vec2ForPreTraining(config)
    torch.nn.init.normal_(model.quantizer.weight_proj.weight, std=3.0)
    seen: dict[str, torch.Tensor] = {}
    model.quantizer.weight_proj.register_forward_hook(lambda _module, _inputs, output: seen.update(logits=output))
    waves = normal(rng, 3, 800)
    T = int(model._get_feat_extract_output_lengths(800))
    mask = rng.random((3, T)) < 0.5
    mask[2] = False
    mask[2, [4, 9, 10]] = True
    negatives = _sample_negative_indices((3, T), N, mask)
    local = negatives - T * np.arange(3)[:, None, None]
    out: dict = {"mask": mask, "negatives": local, "temperature": config.contrastive_logits_temperature}
    # In eval the codes are exactly one-hot, so with 16 possible codes many distractors equal their target.
    for name in ("eval", "train"):
        model.train(name == "train")
        result = model(waves, mask_time_indices=torch.tensor(mask), sampled_negative_indices=torch.tensor(negatives))
        inputs = {"context": result.projected_states, "quantised": result.projected_quantized_states}
        out |= {f"{name}_{key}": value for key, value in inputs.items()}
        out |= with_gradients(result.contrastive_loss, inputs, name) | {
            f"{name}_perplexity": result.codevector_perplexity
        }
        out[f"{name}_logits"] = seen["logits"].reshape(3, T, G, V)
        if name == "train":
            out |= with_gradients(result.diversity_loss, {"logits": seen["logits"]}, "diversity")
    same = (inputs["quantised"].flatten(0, 1)[negatives] == inputs["quantised"][:, :, None]).all(-1)
    print("train: distractors equal to their target:", int(same[torch.tensor(mask)].sum()))
    probabilities = torch.softmax(normal(rng, 3 * T, G, V), -1)
    out["probabilities"] = probabilities.reshape(3, T, G, V)
    quantizer = Wav2Vec2GumbelVectorQuantizer
    out["masked_perplexity"] = quantizer._compute_perplexity(probabilities, torch.tensor(mask))
    out["whole_perplexity"] = quantizer._compute_perplexity(probabilities)
    save("speech", out)


def ctc() -> None:
    rng = np.random.default_rng(4)
    B, T, N, V = 5, 14, 5, 8
    logits = normal(rng, B, T, V, scale=2.0)
    labels = torch.tensor(rng.integers(1, V, (B, N)))
    labels[0] = torch.tensor([3, 3, 5, 5, 2])  # repeats need a blank between
    frame_lengths, label_lengths = (
        torch.tensor([14, 9, 14, 6, 3]),
        torch.tensor([5, 4, 0, 2, 5]),
    )  # the last is infeasible
    out: dict = {"logits": logits, "labels": labels, "frame_lengths": frame_lengths, "label_lengths": label_lengths}
    logits = logits.double().requires_grad_()
    log_p = logits.log_softmax(-1).transpose(0, 1)
    lengths = (labels, frame_lengths, label_lengths)
    nats = F.ctc_loss(log_p, *lengths, reduction="none", zero_infinity=True)
    out |= with_gradients(nats, {"logits": logits}, "nats")
    mean = F.ctc_loss(log_p, *lengths, reduction="mean", zero_infinity=True)
    out |= with_gradients(mean, {"logits": logits}, "mean")
    last_blank = F.ctc_loss(log_p, labels - 1, *lengths[1:], blank=V - 1, reduction="none", zero_infinity=True)
    out |= with_gradients(last_blank, {"logits": logits}, "last_blank")
    save("ctc", out)


if __name__ == "__main__":
    for make in (language, classification, contrastive, views, speech, ctc):
        make()
