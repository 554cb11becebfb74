"""The strategies against forgetting once more, in torch and from the papers' formulas: do ours do as they do?

    python -m benchmarks.forgetting --config=split:mnist --seeds=3 --strategies=fine_tuning,ewc:100 --out=ours.jsonl
    python benchmarks/forgetting_twin.py --config=split:mnist --seeds=3 --strategies=fine_tuning,ewc:100 --ours=ours.jsonl
        [--out=twin.jsonl] [FIELD=VALUE …]

The twin is torch's own pre-norm `TransformerEncoder` with our first weights. It sees our batches in their order, is told which
examples are remembered and which of them are drawn, and keeps their pictures and logits itself. For each strategy and seed it
prints the average accuracy and the forgetting of both; at the end the means over seeds, with the least and the largest.
Lines of --out of the same config and fields are left out of the next run. --moved=N also trains the
twin N times from weights that are moved by a millionth: how far a run ends elsewhere by chance. Needs torch; `--ours` is what
`benchmarks.forgetting` has written.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import nnx
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.forgetting import built, fields_of, lines_of, made_by  # noqa: E402
from unimodal.continual.memory import SLOT, STORED  # noqa: E402
from unimodal.data.batches import eval_batches  # noqa: E402
from unimodal.experiment import Experiment  # noqa: E402
from unimodal.training.checkpoint import named  # noqa: E402

Rows = tuple[Tensor, Tensor]  # pictures [B,H,W,3] and labels [B]
Weights = dict[str, Tensor]


# --- the model --------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Patches, a class token, positions, a pre-norm encoder, the mean over all tokens, a linear layer: [B,H,W,3] → [B,C]."""

    def __init__(self, ours: Mapping[str, np.ndarray], patch: int, depth: int, heads: int):
        super().__init__()
        self.patch = patch
        w = {name: torch.tensor(np.asarray(array)) for name, array in ours.items()}
        width = w["backbones.shared.final_norm.scale"].shape[0]
        hidden = w["backbones.shared.layers.0.mlp.up.kernel"].shape[1]
        options: dict[str, Any] = dict(dropout=0.0, activation="gelu", layer_norm_eps=1e-6)
        layer = nn.TransformerEncoderLayer(width, heads, hidden, batch_first=True, norm_first=True, **options)
        norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        head = next(name for name in w if name.endswith("classify.linear.kernel")).removesuffix("kernel")
        self.patches = nn.Linear(w["tokenizers.image.projection.kernel"].shape[0], width)
        self.head = nn.Linear(width, w[head + "bias"].shape[0])
        self.token = nn.Parameter(w["tokenizers.image.registers.table"])
        self.place = nn.Parameter(w["tokenizers.image.position_table.table"])
        with torch.no_grad():
            _fill(self.patches, w, "tokenizers.image.projection.")
            _fill(self.head, w, head)
            _norm(norm, w, "backbones.shared.final_norm.")
            for i in range(depth):
                self._copy(self.encoder.layers[i], w, f"backbones.shared.layers.{i}.", width)

    def _copy(self, layer: Any, w: Weights, name: str, width: int) -> None:
        three = [f"{name}attention.{part}." for part in ("query", "key", "value")]
        layer.self_attn.in_proj_weight.copy_(torch.cat([w[part + "kernel"].reshape(width, -1).T for part in three]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([w[part + "bias"].reshape(-1) for part in three]))
        _fill(layer.self_attn.out_proj, w, f"{name}attention.output.")
        _fill(layer.linear1, w, f"{name}mlp.up.")
        _fill(layer.linear2, w, f"{name}mlp.down.")
        _norm(layer.norm1, w, f"{name}attention_norm.")
        _norm(layer.norm2, w, f"{name}mlp_norm.")

    def forward(self, pictures: Tensor) -> Tensor:
        p = self.patch
        cut = pictures.unfold(1, p, p).unfold(2, p, p).permute(0, 1, 2, 4, 5, 3)
        x = self.patches(cut.reshape(len(pictures), -1, p * p * pictures.shape[3]))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.place
        return self.head(self.encoder(x).mean(dim=1))


def _fill(linear: Any, w: Weights, name: str) -> None:
    linear.weight.copy_(w[name + "kernel"].reshape(-1, linear.out_features).T)
    linear.bias.copy_(w[name + "bias"])


def _norm(norm: nn.LayerNorm, w: Weights, name: str) -> None:
    norm.weight.copy_(w[name + "scale"])
    norm.bias.copy_(w[name + "bias"])


# --- the stream: batches of ours, and nothing else of it --------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A batch, which slots of the memory its rows go to (-1: none), and by task which slots come again."""

    now: Rows
    slots: np.ndarray
    again: Mapping[str, np.ndarray]
    pictures: Mapping[str, Tensor]  # those that ours brings back from there, to be compared


@dataclass(frozen=True)
class Stream:
    """All that a run sees."""

    names: Sequence[str]
    classes: Mapping[str, Sequence[int]]  # that a task has examples of
    steps: Sequence[tuple[str, Step]]
    first: Mapping[str, Sequence[Rows]]  # a task's first batches, by which importance is told
    tests: Mapping[str, Sequence[Rows]]
    net: Net
    experiment: Experiment


def rows_of(batch: Mapping[str, Any]) -> Rows:
    return torch.tensor(np.asarray(batch["image"])), torch.tensor(np.asarray(batch["label"])).long()


def stream_of(config: str, seed: int, memory: int, fields: Sequence[str]) -> Stream:
    """What our pipeline gives a run of this seed that remembers so many examples of each task."""
    experiment = built(config, [*fields, f"seed={seed}", *fields_of(f"der:memory={memory}")])
    plan, steps = experiment.plan(), []
    for number in range(experiment.loop.steps):
        now, *earlier = plan.schedule.who(number)
        own, old = dict(next(plan.batches[now])), {name: dict(next(plan.batches[name])) for name in earlier}
        slots = np.asarray(own.get(SLOT, np.full(len(own["label"]), -1)))
        again = {name: np.asarray(batch[STORED]) for name, batch in old.items()}
        steps.append((now, Step(rows_of(own), slots, again, {name: rows_of(batch)[0] for name, batch in old.items()})))
    first, tests = {}, {}
    for task in experiment.tasks:
        fresh = experiment.train_batches(task)
        first[task.name] = [rows_of(next(fresh)) for _ in range(experiment.continual.batches)]
        held = task.inputs(experiment.model).dataset("validation")
        real = ((batch, batch["example_weight"] > 0) for batch in eval_batches(held, batch_size=100))
        tests[task.name] = [tuple(x[torch.tensor(there)] for x in rows_of(batch)) for batch, there in real]
    weights = named(nnx.state(experiment.program.first_model(), nnx.Param))
    body: Any = experiment.backbones["shared"]
    net = Net(weights, experiment.tokenizers["image"][1].patch, body.depth, body.heads)
    tasks: Sequence[Any] = experiment.tasks
    classes = {task.name: task.own_classes() for task in tasks}
    return Stream(plan.schedule.names, classes, steps, first, tests, net, experiment)


# --- the strategies ---------------------------------------------------------------------------------------------------


class Strategy:
    """Fine-tuning, and the form of the others. `strength` and the rest are what a word says, ours where it says nothing."""

    replays = False

    def __init__(self, net: Net, stream: Stream, given: Mapping[str, float]):
        self.net, self.stream, self.given = net, stream, given
        self.strength = given.get("strength", 1.0)

    def weights(self) -> Weights:
        return {name: p.detach().clone() for name, p in self.net.named_parameters()}

    def term(self, rows: Rows, remembered: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """Added to the cross-entropy of the new rows. remembered: pictures, labels, and logits of when they were met."""
        return torch.zeros(())

    def bend(self, gradient: Weights, of_term: Weights) -> Weights:
        """The gradient that is followed, of that of the new rows' loss alone and that of the term."""
        return {name: g + of_term[name] for name, g in gradient.items()}

    def moved(self, gradient: Weights, before: Weights) -> None:
        """A step was taken from `before`; `gradient` is that of the new rows' loss alone."""

    def ended(self, task: str) -> None:
        """A task has had its last step."""


class Penalty(Strategy):
    """strength/2 · Σ Ω (θ − θ*)² (Kirkpatrick 2017, equation 3)."""

    def __init__(self, net: Net, stream: Stream, given: Mapping[str, float]):
        super().__init__(net, stream, given)
        self.star = self.weights()
        self.omega = {name: torch.zeros_like(w) for name, w in self.star.items()}

    def term(self, rows: Rows, remembered: Any) -> Tensor:
        far = [(self.omega[n] * (p - self.star[n]) ** 2).sum() for n, p in self.net.named_parameters()]
        return self.strength / 2 * torch.stack(far).sum()

    def ended(self, task: str) -> None:
        found = self.importance(task)
        self.omega = {name: self.merged(omega, found[name]) for name, omega in self.omega.items()}
        self.star = self.weights()

    def merged(self, before: Tensor, found: Tensor) -> Tensor:
        return self.given.get("decay", 1.0) * before + found

    def importance(self, task: str) -> Weights:
        raise NotImplementedError

    def mean_over_examples(
        self, task: str, value: Callable[[Tensor, Tensor], Tensor], of_gradient: Callable[[Tensor], Tensor]
    ) -> Weights:
        """The mean over the task's first examples of a function of the gradient of value(logits [C], label)."""

        def alone(weights: Weights, picture: Tensor, label: Tensor) -> Tensor:
            return value(torch.func.functional_call(self.net, weights, (picture[None],))[0], label)

        total = {name: torch.zeros_like(w) for name, w in self.weights().items()}
        each = torch.func.vmap(torch.func.grad(alone), in_dims=(None, 0, 0))
        batches = self.stream.first[task]
        with sdpa_kernel(SDPBackend.MATH):
            for pictures, labels in batches:
                for name, g in each(self.weights(), pictures, labels).items():
                    total[name] += of_gradient(g).mean(0) / len(batches)
        return total


class Ewc(Penalty):
    """Ω: the mean over examples of the squared gradient of log p(label) (Kirkpatrick 2017), summed over tasks."""

    def importance(self, task: str) -> Weights:
        return self.mean_over_examples(task, lambda z, label: F.cross_entropy(z, label), torch.square)


class L2(Ewc):
    """Ω is 1 where any task so far has had a gradient."""

    def merged(self, before: Tensor, found: Tensor) -> Tensor:
        return torch.maximum(before, (found > 0).float())


class Mas(Penalty):
    """Ω: the mean over examples of |∂‖logits‖²/∂θ| (Aljundi 2018, equations 2 and 3)."""

    def importance(self, task: str) -> Weights:
        return self.mean_over_examples(task, lambda z, label: (z**2).sum(), torch.abs)


class Si(Penalty):
    """Ω: Σ over steps of −g·Δθ, over the square of the task's whole way plus ξ (Zenke 2017, equations 4 and 5). Zenke's c is
    strength/2. Ours leaves out what is below 0; this does not."""

    def __init__(self, net: Net, stream: Stream, given: Mapping[str, float]):
        super().__init__(net, stream, given)
        self.way = {name: torch.zeros_like(w) for name, w in self.star.items()}

    def moved(self, gradient: Weights, before: Weights) -> None:
        for name, p in self.net.named_parameters():
            self.way[name] -= gradient[name] * (p.detach() - before[name])

    def importance(self, task: str) -> Weights:
        damping = self.given.get("damping", 0.1)
        found = {n: self.way[n] / ((w - self.star[n]) ** 2 + damping) for n, w in self.weights().items()}
        for kept in self.way.values():
            kept.zero_()
        return found


class Lwf(Strategy):
    """Σ over earlier tasks of −Σ p′ log q′ over their classes, at temperature 2 (Li & Hoiem 2016, equations 2 and 3)."""

    def __init__(self, net: Net, stream: Stream, given: Mapping[str, float]):
        super().__init__(net, stream, given)
        self.teacher: Net | None = None
        self.earlier: list[str] = []

    def term(self, rows: Rows, remembered: Any) -> Tensor:
        if self.teacher is None:
            return torch.zeros(())
        with torch.no_grad():
            wanted = self.teacher(rows[0])
        said, total = self.net(rows[0]), torch.zeros(())
        for task in self.earlier:
            own, heat = list(self.stream.classes[task]), self.given.get("temperature", 2.0)
            p, log_q = F.softmax(wanted[:, own] / heat, 1), F.log_softmax(said[:, own] / heat, 1)
            total = total - (p * log_q).sum(1).mean()
        return self.strength * total

    def ended(self, task: str) -> None:
        self.teacher, self.earlier = copy.deepcopy(self.net), [*self.earlier, task]


class Replay(Strategy):
    """The cross-entropy of remembered rows (Chaudhry 2019)."""

    replays = True

    def term(self, rows: Rows, remembered: Any) -> Tensor:
        if remembered is None:
            return torch.zeros(())
        pictures, labels, _ = remembered
        return self.strength * F.cross_entropy(self.net(pictures), labels)


class Der(Replay):
    """DER++: α · mean (logits − remembered logits)² + β · cross-entropy of remembered rows (Buzzega 2020, equation 6)."""

    def term(self, rows: Rows, remembered: Any) -> Tensor:
        if remembered is None:
            return torch.zeros(())
        pictures, labels, logits = remembered
        said, alpha = self.net(pictures), self.strength * self.given.get("distillation", 0.5)
        return self.strength * F.cross_entropy(said, labels) + alpha * F.mse_loss(said, logits)


class Agem(Replay):
    """g − (g·r / r·r) r where g·r < 0, r the gradient on remembered rows (Chaudhry 2019, equation 11)."""

    def bend(self, gradient: Weights, of_term: Weights) -> Weights:
        product = lambda a, b: sum((a[name] * b[name]).sum() for name in a)  # noqa: E731
        along, length = product(gradient, of_term), product(of_term, of_term)
        if not along < 0:
            return gradient
        return {name: g - along / length * of_term[name] for name, g in gradient.items()}


STRATEGIES: dict[str, type[Strategy]] = {
    "fine_tuning": Strategy,
    **dict(ewc=Ewc, l2=L2, mas=Mas, si=Si, lwf=Lwf, replay=Replay, der=Der, agem=Agem),
}


# --- a run ------------------------------------------------------------------------------------------------------------


def train(word: str, stream: Stream) -> list[list[float]]:
    """R: the accuracy of every task after each."""
    name, given = read(word)
    net, config = copy.deepcopy(stream.net).train(), stream.experiment.optimizer
    strategy = STRATEGIES[name](net, stream, given)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(config.b1, config.b2), eps=config.epsilon, weight_decay=0.0)
    met: dict[str, dict[int, tuple[Tensor, Tensor, Tensor]]] = {task: {} for task in stream.names}
    matrix: list[list[float]] = []
    for number, (task, step) in enumerate(stream.steps):
        before = strategy.weights()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, number / config.warmup)
        said = net(step.now[0])
        gradient = gradients(net, F.cross_entropy(said, step.now[1]))
        of_term = gradients(net, strategy.term(step.now, recalled(step, met) if strategy.replays else None))
        followed = strategy.bend(gradient, of_term)
        length = torch.sqrt(sum((g**2).sum() for g in followed.values()))
        for n, p in net.named_parameters():
            # A weight without a gradient rests: Adam neither moves it nor counts the step.
            p.grad = followed[n] * min(1.0, config.clip / float(length)) if followed[n].any() else None
        optimizer.step()
        strategy.moved(gradient, before)
        for row, slot in enumerate(step.slots):
            if slot >= 0:
                met[task][int(slot)] = step.now[0][row], step.now[1][row], said[row].detach()
        if number + 1 == len(stream.steps) or stream.steps[number + 1][0] != task:
            matrix.append([accuracy(net, stream.tests[other]) for other in stream.names])
            if number + 1 < len(stream.steps):
                strategy.ended(task)
    return matrix


def moved(net: Net, number: int) -> Net:
    """The same weights, each times 1 + a millionth of a normal number."""
    drawn, net = torch.Generator().manual_seed(number), copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1 + 1e-6 * torch.randn(p.shape, generator=drawn))
    return net


def read(word: str) -> tuple[str, dict[str, float]]:
    """`ewc:100` or `der:memory=100+strength=2` → the name, and the numbers given."""
    name, _, rest = word.partition(":")
    pairs = [part.partition("=") if "=" in part else ("strength", "=", part) for part in rest.split("+") if part]
    return name, {field: float(value) for field, _, value in pairs}


def gradients(net: Net, loss: Tensor) -> Weights:
    names, parameters = zip(*net.named_parameters(), strict=True)
    if not loss.requires_grad:
        return {name: torch.zeros_like(p) for name, p in zip(names, parameters, strict=True)}
    found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def recalled(step: Step, met: Mapping[str, Mapping[int, Any]]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pictures, labels and logits of what comes again, as this run has met them; ours must bring the same pictures."""
    found = []
    for task, slots in step.again.items():
        rows = [met[task][int(slot)] for slot in slots]
        assert all(torch.equal(a[0], b) for a, b in zip(rows, step.pictures[task], strict=True)), "not what was met"
        found += rows
    return tuple(torch.stack(each) for each in zip(*found, strict=True)) if found else None  # pyright: ignore[reportReturnType]


@torch.no_grad()
def accuracy(net: Net, tests: Sequence[Rows]) -> float:
    right = sum(int((net(pictures).argmax(1) == labels).sum()) for pictures, labels in tests)
    return right / sum(len(labels) for _, labels in tests)


# --- side by side -----------------------------------------------------------------------------------------------------


def numbers(matrix: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The average accuracy at the end, and forgetting (Chaudhry 2018, §3.1)."""
    table = np.asarray(matrix)
    return float(table[-1].mean()), float((table[:-1].max(0) - table[-1])[:-1].mean())


def table(words: Sequence[str], both: Mapping[tuple[str, int], Sequence[tuple[float, float]]]) -> Iterator[str]:
    yield "| strategy | average, ours | the twin's | forgetting, ours | the twin's | seeds |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for word in words:
        found = np.array([pair for (name, _), pair in both.items() if name == word])  # [seeds, ours and twin, 2]
        if len(found):
            said = [f"{x.mean():.3f} ({x.min():.3f}–{x.max():.3f})" for x in found.transpose(2, 1, 0).reshape(4, -1)]
            yield f"| {word} | {' | '.join(said)} | {len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="split:mnist")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--strategies", default="fine_tuning,ewc:100,si:1,lwf:1,replay:memory=100,der:memory=100")
    parser.add_argument("--ours", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--moved", type=int, default=0)
    parser.add_argument("fields", nargs="*")
    given, both = parser.parse_args(), {}
    torch.set_num_threads(1)
    of = made_by(given.config, given.fields)
    ours = {
        (line["strategy"], line["seed"]): line["continual"]["matrix"]
        for line in lines_of(given.ours, of)
        if line["continual"]
    }
    kept = {(line["strategy"], line["seed"]): line["matrix"] for line in lines_of(given.out, of)}
    words = given.strategies.split(",")
    memories = {int(read(word)[1]["memory"]) for word in words if "memory=" in word} or {200}
    if len(memories) > 1:
        sys.exit(f"all strategies of one call must remember as many examples, but here they are {sorted(memories)}")
    (memory,) = memories
    for seed in range(given.first, given.first + given.seeds):
        stream = None
        for word in words:
            if (word, seed) not in kept:
                began = time.monotonic()
                stream = stream_of(given.config, seed, memory, given.fields) if stream is None else stream
                kept[word, seed] = train(word, stream)
                for number in range(given.moved):
                    matrix = train(word, replace(stream, net=moved(stream.net, number)))
                    print(
                        f"{word}, seed {seed}, weights moved by a millionth: average {np.mean(matrix[-1]):.3f}",
                        flush=True,
                    )
                if given.out:
                    with given.out.open("a") as file:
                        file.write(
                            json.dumps({**of, "strategy": word, "seed": seed, "matrix": kept[word, seed]}) + "\n"
                        )
                print(f"{word}, seed {seed}: the twin took {time.monotonic() - began:.0f} s", flush=True)
            if (word, seed) in ours:
                both[word, seed] = numbers(ours[word, seed]), numbers(kept[word, seed])
                (average, forgetting), (its, its_forgetting) = both[word, seed]
                print(
                    f"{word}, seed {seed}: average {average:.3f} and {its:.3f}, forgetting {forgetting:.3f} and {its_forgetting:.3f}"
                )
    print("\n".join(table(words, both)))


if __name__ == "__main__":
    main()
