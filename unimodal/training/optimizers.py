"""The optimizers by name, all of them optax's, and the config that chooses one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax
import optax.contrib

from unimodal.configuration import nearest
from unimodal.errors import UsageError
from unimodal.training.parameters import Parameter, frozen_part, rate_factor


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, its learning rate over the steps, and what each parameter is spared."""

    name: str = "adamw"  # adamw, sgd, lars, lamb, adafactor, lion, muon or schedule_free
    learning_rate: float = 1e-3  # at its peak
    warmup: int = 100  # steps in which the rate rises from 0
    hold: int = 0  # steps at the peak before it falls
    decay: str = "cosine"  # how it falls, or "linear". Under schedule_free it does not fall
    final: float = 0.1  # times the peak, at the last step
    b1: float = 0.9  # decay of the first moment: adamw, lamb, lion, schedule_free, and AdamW beside muon
    b2: float = 0.98  # decay of the second moment, and of lion's first
    epsilon: float = 1e-8  # added to the root of the second moment: adamw, lamb, schedule_free, and AdamW beside muon
    momentum: float | None = None  # of sgd, lars (None: 0.9) and muon (None: 0.95)
    nesterov: bool = False  # momentum that looks ahead: sgd, lars. Muon's always does
    trust_coefficient: float = 1e-3  # of lars: how long a step may be, for a parameter of length 1
    weight_decay: float = 0.05  # of matrices and tables only. Times the learning rate; sgd, lars: into the gradient
    clip: float = 1.0  # global norm above which gradients are scaled down (0: never)
    accumulate: int = 1  # micro-batches per step
    layer_decay: float = 1.0  # learning rate of each layer of a backbone, times that of the layer above it
    learning_rate_factors: tuple[str, ...] = ()  # PATTERN=FACTOR: see below
    freeze: tuple[str, ...] = ()  # parts that stay as they start, or for so many steps: "backbones.audio=1000"
    master_weights: bool = False  # keep half-precision parameters in float32 too, and update those
    stochastic_rounding: bool = False  # round updated half-precision parameters up or down by chance, without bias

    # learning_rate_factors: "backbones.image=0.1" for a part by its dotted name, or a regular expression for the start of
    # the name up to a dot or its end, as in r".*\.bias=2". The first that matches a parameter counts.

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UsageError(f"optimizer.name={self.name!r} is not known; {nearest(self.name, list(OPTIMIZERS))}")
        if self.accumulate < 1:
            raise UsageError(f"optimizer.accumulate must be at least 1, but is {self.accumulate}")
        if not 0 < self.learning_rate < math.inf:  # nor NaN
            raise UsageError(f"optimizer.learning_rate must be positive and finite, but is {self.learning_rate}")
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise UsageError(f"optimizer.{name} must be finite and at least 0, but is {value}")
        for name in ("b1", "b2", "momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"optimizer.{name} must be at least 0 and below 1, but is {value}")
        if self.name == "schedule_free" and not self.b1:
            raise UsageError("optimizer.b1 must be above 0 for schedule_free, whose average it weighs")
        if self.name in ("adamw", "lamb", "muon", "schedule_free") and not self.epsilon:
            # What has no gradient, such as words that no batch holds, would be divided by nothing, and be NaN.
            raise UsageError(f"optimizer.epsilon must be above 0 for {self.name}, such as 1e-8")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"optimizer.layer_decay must be above 0 and at most 1, but is {self.layer_decay}")
        if self.decay not in ("cosine", "linear"):
            raise UsageError(f"optimizer.decay must be cosine or linear, but is {self.decay!r}")
        if self.master_weights and self.stochastic_rounding:
            raise UsageError("optimizer.master_weights needs no stochastic_rounding; choose one of them")
        for entry in self.freeze:
            frozen_part(entry)
        for entry in self.learning_rate_factors:
            rate_factor(entry)

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate at each of `steps` steps."""
        warmup, rate = min(self.warmup, steps), self.learning_rate
        rising = optax.linear_schedule(0.0, rate, warmup) if warmup else optax.constant_schedule(rate)
        if self.name == "schedule_free":
            return rising  # and there it stays: the average takes the place of a falling rate
        if self.decay == "cosine" and not self.hold:
            return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), self.final * rate)
        left = max(1, steps - warmup - self.hold)
        falling = {
            "linear": optax.linear_schedule(rate, self.final * rate, left),
            "cosine": optax.cosine_decay_schedule(rate, left, self.final),
        }[self.decay]
        parts = [rising, optax.constant_schedule(rate), falling]
        return optax.join_schedules(parts, [warmup, warmup + self.hold])


Rate = float | jax.Array
Make = Callable[[OptimizerConfig, Parameter, Rate], optax.GradientTransformation]


def _decay(c: OptimizerConfig, p: Parameter) -> float:
    return c.weight_decay if p.decays else 0.0


def _momentum(c: OptimizerConfig) -> float:
    return 0.9 if c.momentum is None else c.momentum


def _adamw(c: OptimizerConfig, p: Parameter, rate: Rate) -> Any:
    """Loshchilov 2019."""
    return optax.adamw(rate, c.b1, c.b2, c.epsilon, weight_decay=_decay(c, p))


def _sgd(c: OptimizerConfig, p: Parameter, rate: Rate) -> Any:
    return optax.chain(optax.add_decayed_weights(_decay(c, p)), optax.sgd(rate, _momentum(c), c.nesterov))


def _lars(c: OptimizerConfig, p: Parameter, rate: Rate) -> Any:
    """You 2017. Vectors take plain momentum steps."""
    return optax.lars(
        rate,
        _decay(c, p),
        trust_coefficient=c.trust_coefficient,
        trust_ratio_mask=p.decays,
        momentum=_momentum(c),
        nesterov=c.nesterov,
    )


def _lamb(c: OptimizerConfig, p: Parameter, rate: Rate) -> Any:
    """You 2020. Vectors, many of which start at zero, take Adam's steps, as in the authors' code."""
    if not p.decays:
        return optax.adam(rate, c.b1, c.b2, c.epsilon)
    return optax.lamb(rate, c.b1, c.b2, c.epsilon, weight_decay=c.weight_decay)


def _adafactor(c: OptimizerConfig, p: Parameter, rate: Rate) -> Any:
    """Shazeer 2018, without momentum."""
    # optax's decay is not multiplied by the learning rate: 0.05 would take a twentieth of the weights in each step.
    return optax.adafactor(rate, weight_decay_rate=c.weight_decay * rate if p.decays else None)


def _lion(c: OptimizerConfig, p: Parameter, rate: Rate) -> Any:
    """Chen 2023."""
    return optax.lion(rate, c.b1, c.b2, weight_decay=_decay(c, p))


def _muon(c: OptimizerConfig, p: Parameter, rate: Rate) -> Any:
    """Jordan 2024, with steps of AdamW's length (Liu 2025), so that one learning rate serves both."""
    matrix = p.hidden_matrix
    if matrix is None:
        return _adamw(c, p, rate)
    return optax.contrib.muon(
        rate,
        beta=0.95 if c.momentum is None else c.momentum,
        weight_decay=c.weight_decay,
        muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(*matrix),
        consistent_rms=0.2,
    )


def _schedule_free(c: OptimizerConfig, p: Parameter, rate: Rate) -> Any:
    """Schedule-free AdamW (Defazio 2024)."""
    return optax.contrib.schedule_free_adamw(rate, None, c.b1, c.b2, c.epsilon, _decay(c, p))


OPTIMIZERS: dict[str, Make] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "lars": _lars,
    "lamb": _lamb,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "schedule_free": _schedule_free,
}
