"""Twins of the tasks on pictures (see `torch_twins`): transformers' models, and for those that compare views its ViT with the
method's own loss, as the papers have it. `wiring` says which of our parameters each of a twin's is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F

from unimodal.backbone import BackboneConfig
from unimodal.experiment import Experiment
from unimodal.joint_embedding import Projector

Batch = Mapping[str, torch.Tensor]
Made = tuple[nn.Module, Callable[[], torch.Tensor]]


def encoder(b: BackboneConfig) -> dict[str, Any]:
    """Sizes by the names that most families use."""
    return dict(
        hidden_size=b.width,
        num_hidden_layers=b.depth,
        num_attention_heads=b.heads,
        intermediate_size=b.M,
        hidden_act={"gelu_tanh": "gelu_new"}.get(b.activation, b.activation),
        layer_norm_eps=b.norm_epsilon,
        attn_implementation="sdpa",
    )


def channels_first(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.movedim(-1, -3).contiguous()


def vit_sizes(experiment: Experiment, task: Any) -> dict[str, Any]:
    image = experiment.tokenizers[task.tokenizer][1]
    sizes = dict(image_size=image.image_size[0], patch_size=image.patch, num_channels=image.channels)
    return {**encoder(experiment.backbones[task.backbone]), **sizes}


class Pooled(nn.Module):
    """Pictures [N,C,H,W] → hidden states of transformers' ViT, pooled [N,D]. `parts` are what follows, by name."""

    def __init__(self, experiment: Experiment, task: Any, **parts: nn.Module):
        super().__init__()
        config = hf.ViTConfig(**vit_sizes(experiment, task))
        self.vit, self.pooling = hf.ViTModel(config, add_pooling_layer=False), task.pooling
        self.parts = nn.ModuleDict(parts)
        still(self, experiment, task)

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        self.vit.gradient_checkpointing_enable(options)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        other = pixels.shape[-1] != self.vit.config.image_size
        hidden = self.vit(pixel_values=pixels, interpolate_pos_encoding=other).last_hidden_state
        return hidden[:, 0] if self.pooling == "first" else hidden.mean(1)

    def views(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B,V,C,H,W] → [B,V,D]."""
        return self(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])


def still(module: nn.Module, experiment: Experiment, task: Any) -> None:
    """Freeze what the experiment freezes for good, and nothing else."""
    parts = [part for part in experiment.optimizer.freeze if "=" not in part]
    for name, parameter in module.named_parameters():
        ours = wiring(experiment, task, name)[1][0]
        parameter.requires_grad_(not any(f"{ours}.".startswith(f"{part}.") for part in parts))


def vit(experiment: Experiment, task: Any, batch: Batch) -> Made:
    classes = nn.Linear(experiment.backbones[task.backbone].width, task.labels.size(task.source))
    model = Pooled(experiment, task, classify=classes)

    def loss() -> torch.Tensor:
        logits = classes(model(channels_first(batch["image"])))
        return F.cross_entropy(logits, batch["label"], label_smoothing=task.label_smoothing)

    return model, loss


def mae(experiment: Experiment, task: Any, batch: Batch) -> Made:
    b = experiment.backbones[task.decoder_backbone]
    config = hf.ViTMAEConfig(
        **vit_sizes(experiment, task),
        decoder_hidden_size=b.width,
        decoder_num_hidden_layers=b.depth,
        decoder_num_attention_heads=b.heads,
        decoder_intermediate_size=b.M,
        mask_ratio=task.mask_ratio,
        norm_pix_loss=task.normalise,
    )
    model = hf.ViTMAEForPreTraining(config)
    still(model, experiment, task)
    return model, lambda: model(pixel_values=channels_first(batch["image"]), noise=batch["noise"]).loss


def imagegpt(experiment: Experiment, task: Any, batch: Batch) -> Made:
    b, text = experiment.backbones[task.backbone], experiment.tokenizers[task.tokenizer][1]
    config = hf.ImageGPTConfig(
        **dict(n_embd=b.width, n_layer=b.depth, n_head=b.heads, n_inner=b.M, activation_function=b.activation),
        **dict(vocab_size=text.vocabulary, n_positions=text.max_length, layer_norm_epsilon=b.norm_epsilon),
        **dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, tie_word_embeddings=False),
    )
    model = hf.ImageGPTForCausalImageModeling(config)

    def loss() -> torch.Tensor:
        ids = batch["ids"]
        begun = torch.cat([torch.full_like(ids[:, :1], task.pixels.count), ids[:, :-1]], dim=1)
        return F.cross_entropy(model(input_ids=begun).logits.flatten(0, 1), ids.flatten())

    return model, loss


# ---- views ---------------------------------------------------------------------------------------------------------


def mlp(width: int, c: Projector) -> nn.Sequential:
    """The projector, [N,width] → [N,size]."""
    widths, made = [width, *[c.hidden] * (c.layers - 1), c.size], nn.Sequential()
    norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        last = i == c.layers - 1
        made.add_module(f"linear{i}", nn.Linear(inputs, outputs, bias=c.norm == "none" or last and not c.last_norm))
        if not last:
            if c.norm != "none":
                made.add_module(f"norm{i}", norms[c.norm](outputs))
            made.add_module(f"relu{i}", nn.ReLU())
    if c.last_norm:
        made.add_module("last_norm", nn.BatchNorm1d(c.size, affine=False))
    return made


def nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Chen 2020, eq. 1: each of 2B views finds its other among all but itself."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    other = torch.arange(len(z), device=z.device).roll(len(a))
    return F.cross_entropy((z @ z.T / temperature).masked_fill(itself, -math.inf), other)


def simclr(experiment: Experiment, task: Any, batch: Batch) -> Made:
    projector = mlp(experiment.backbones[task.backbone].width, task.projector)
    model = Pooled(experiment, task, projector=projector)

    def loss() -> torch.Tensor:
        features = model.views(channels_first(batch["views"]))
        a, b = projector(features.flatten(0, 1)).unflatten(0, features.shape[:2]).unbind(1)
        return nt_xent(a, b, task.temperature)

    return model, loss


class Queue:
    """The rows that came last, in a ring; full of random ones until it is `clear`ed. The first `wait` pushes keep nothing."""

    def __init__(self, size: int, *shape: int, wait: int = 0):
        self.rows, self.place, self.filled, self.wait = F.normalize(torch.randn(size, *shape), dim=-1), 0, size, wait

    def clear(self) -> None:
        self.place = self.filled = 0

    def past(self) -> torch.Tensor:
        """A copy, as the backward pass still needs it after a push."""
        return self.rows[: self.filled].clone()

    @torch.no_grad()
    def push(self, rows: torch.Tensor) -> None:
        if self.wait:
            self.wait -= 1
            return
        size = len(self.rows)
        where = (self.place + torch.arange(len(rows), device=rows.device)) % size
        self.rows[where] = rows.detach()
        self.place, self.filled = (self.place + len(rows)) % size, min(size, self.filled + len(rows))


class Slow:
    """The momentum copy of an encoder (He 2020). `follow` is called before each step."""

    def __init__(self, fast: nn.Module, task: Any, steps: int):
        self.fast, self.copy = fast, copy.deepcopy(fast).requires_grad_(False)
        self.task, self.steps, self.step = task, max(1, steps), 0

    def begin(self) -> None:
        self.copy.load_state_dict(self.fast.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        """Follow the parameters that the step before has left, at its momentum."""
        if self.step:
            m, final = self.task.momentum, self.task.final_momentum
            if final is not None:
                m = final - (final - m) * (math.cos(math.pi * min((self.step - 1) / self.steps, 1.0)) + 1) / 2
            pairs = [*zip(self.copy.parameters(), self.fast.parameters(), strict=True)]
            torch._foreach_lerp_([slow for slow, _ in pairs], [fast for _, fast in pairs], 1 - m)
        self.step += 1


class Moco(Pooled):
    """MoCo v3 (Chen 2021, algorithm 1), and v2 (He 2020, algorithm 1) where there is a queue."""

    def __init__(self, experiment: Experiment, task: Any):
        c = task.projector
        projector = mlp(experiment.backbones[task.backbone].width, c)
        parts = dict(projector=projector)
        if not task.queue:
            shape = {**vars(c), "layers": 2, "hidden": task.predictor}
            parts["predictor"] = mlp(c.size, Projector(**shape))
        super().__init__(experiment, task, **parts)
        self.task, self.queue = task, Queue(task.queue, c.size) if task.queue else None
        slow = Slow(self, task, experiment.loop.steps)
        object.__setattr__(self, "slow", slow)  # no parameters of this module

    def loss(self, pixels: torch.Tensor) -> torch.Tensor:
        self.slow.follow()
        project, slow, t = self.parts["projector"], self.slow.copy, self.task.temperature
        if self.queue is not None:
            query = F.normalize(project(self(pixels[:, 0])), dim=1)
            with torch.no_grad():
                key = F.normalize(slow.parts["projector"](slow(pixels[:, 1])), dim=1)
            logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.past().T], dim=1) / t
            self.queue.push(key)
            return F.cross_entropy(logits, torch.zeros(len(key), dtype=torch.long, device=key.device))
        features = self.views(pixels).unbind(1)
        queries = [F.normalize(self.parts["predictor"](project(x)), dim=1) for x in features]
        with torch.no_grad():
            keys = [F.normalize(slow.parts["projector"](x), dim=1) for x in slow.views(pixels).unbind(1)]
        same = torch.arange(len(pixels), device=pixels.device)
        pairs = [(queries[0], keys[1]), (queries[1], keys[0])]
        found = [F.cross_entropy(q @ k.T / t, same) for q, k in pairs]
        return 2 * t * torch.stack(found).sum()


def moco(experiment: Experiment, task: Any, batch: Batch) -> Made:
    model = Moco(experiment, task)
    return model, lambda: model.loss(channels_first(batch["views"]))


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float, rounds: int = 3) -> torch.Tensor:
    """Assignments [N,K] (Caron 2020, appendix A): exponentials once, then clusters and rows are scaled in turns."""
    q = torch.exp(scores / epsilon)
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


class Swav(Pooled):
    """SwAV (Caron 2020, eq. 2 and 6). Prototypes have unit length each time they are used."""

    def __init__(self, experiment: Experiment, task: Any):
        c = task.projector
        projector = mlp(experiment.backbones[task.backbone].width, c)
        prototypes = nn.Linear(c.size, task.prototypes, bias=False)
        super().__init__(experiment, task, projector=projector, prototypes=prototypes)
        self.task, self.queue = task, None
        if task.queue:
            self.queue = Queue(task.queue, task.views.count, c.size, wait=task.queue_wait)

    def scores(self, z: torch.Tensor) -> torch.Tensor:
        return z @ F.normalize(self.parts["prototypes"].weight, dim=1).T

    def loss(self, large: torch.Tensor, small: torch.Tensor | None) -> torch.Tensor:
        task, count = self.task, large.shape[1]
        features = torch.cat([self.views(x) for x in (large, small) if x is not None], dim=1)
        projected = self.parts["projector"](features.flatten(0, 1)).unflatten(0, features.shape[:2])
        z = F.normalize(projected, dim=-1)
        scores, losses = self.scores(z), []
        for i in range(count):
            known = scores[:, i].detach()
            if self.queue is not None:
                with torch.no_grad():
                    known = torch.cat([known, self.scores(self.queue.past()[:, i])])
            code = sinkhorn(known, task.epsilon)[: len(z)]
            for j in range(scores.shape[1]):
                if i != j:
                    losses.append(-(code * F.log_softmax(scores[:, j] / task.temperature, dim=1)).sum(1).mean())
        if self.queue is not None:
            self.queue.push(z[:, :count])
        return torch.stack(losses).mean()


def swav(experiment: Experiment, task: Any, batch: Batch) -> Made:
    model = Swav(experiment, task)

    def loss() -> torch.Tensor:
        small = channels_first(batch["small_views"]) if "small_views" in batch else None
        return model.loss(channels_first(batch["views"]), small)

    return model, loss


TWINS: dict[str, Callable[[Experiment, Any, Batch], Made]] = {
    "Vit": vit,
    "Mae": mae,
    "Imagegpt": imagegpt,
    "Simclr": simclr,
    "Moco": moco,
    "Swav": swav,
}

# ---- which parameter is which --------------------------------------------------------------------------------------

_LAYER = {
    "layernorm_before": "attention_norm",
    "layernorm_after": "mlp_norm",
    "attention.q_proj": "attention.query",
    "attention.k_proj": "attention.key",
    "attention.v_proj": "attention.value",
    "attention.o_proj": "attention.output",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "ln_1": "attention_norm",
    "ln_2": "mlp_norm",
    "attn.c_proj": "attention.output",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}


def wiring(experiment: Experiment, task: Any, name: str) -> tuple[str, tuple[str, ...]]:
    """A parameter of a twin by its name → how it lies there, and the parameters of ours, of unrolled layers, that it is.

    Kinds: matrix (outputs × inputs), conv1d (inputs × outputs), patches (a convolution), and as it is.
    """
    head, (path, leaf) = f"heads.{task.name}", name.rsplit(".", 1)
    leaves = {"weight": "kernel", "bias": "bias"}
    image, backbone = f"tokenizers.{task.tokenizer}", f"backbones.{task.backbone}"
    if name.endswith("wte.weight"):
        return "same", (f"{image}.table.table",)
    if name.endswith("wpe.weight"):
        return "same", (f"{image}.position_table.table",)
    if "patch_embeddings" in name:
        return ("patches" if leaf == "weight" else "same"), (f"{image}.projection.{leaves[leaf]}",)
    for there, ours in (
        ("embeddings.cls_token", f"{image}.registers.table"),
        ("embeddings.position_embeddings", f"{image}.position_table.table"),
        ("decoder.mask_token", f"{head}.decoder_mask.table"),
        ("decoder.decoder_pos_embed", f"{head}.decoder_position.table"),
        ("parts.prototypes.weight", f"{head}.prototypes.table"),
    ):
        if name.endswith(there):
            return ("matrix" if "prototypes" in there else "same"), (ours,)
    for there, ours in (
        ("lm_head", f"{head}.colours.linear"),
        ("decoder.decoder_embed", f"{head}.decoder_embed"),
        ("decoder.decoder_pred", f"{head}.patches"),
        ("parts.classify", f"{head}.classify.linear"),
    ):
        if path == there:
            return ("matrix" if leaf == "weight" else "same"), (f"{ours}.{leaves[leaf]}",)
    words = path.split(".")
    if words[0] == "parts":  # linear0, norm0, … of an MLP
        kind, place = words[-1][:-1], words[-1][-1]
        if kind == "linear":
            return ("matrix" if leaf == "weight" else "same"), (f"{head}.{words[1]}.linear.{place}.{leaves[leaf]}",)
        return "same", (f"{head}.{words[1]}.norm.{place}.{dict(weight='scale', bias='bias')[leaf]}",)
    if words[0] == "decoder":
        backbone = f"backbones.{task.decoder_backbone}"
    if words[-1] in ("layernorm", "ln_f", "decoder_norm"):
        return "same", (f"{backbone}.final_norm.{dict(weight='scale', bias='bias')[leaf]}",)
    at = next(i for i, word in enumerate(words) if word.isdigit())
    layer, inside = f"{backbone}.layers.{words[at]}", ".".join(words[at + 1 :])
    kind = "conv1d" if "h" in words else "matrix"
    if inside == "attn.c_attn":
        ours = tuple(f"{layer}.attention.{one}.{leaves[leaf]}" for one in ("query", "key", "value"))
        return (kind if leaf == "weight" else "same"), ours
    ours = _LAYER[inside]
    if ours.endswith("norm"):
        return "same", (f"{layer}.{ours}.{dict(weight='scale', bias='bias')[leaf]}",)
    return (kind if leaf == "weight" else "same"), (f"{layer}.{ours}.{leaves[leaf]}",)
