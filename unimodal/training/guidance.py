"""Functions that change what a compiled step does with gradients, for methods that need more than another loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Guidance:
    """What a step does with gradients beside following their sum. Each function runs on the device, while tracing.

    Gradients are shaped as the parameters. A model has the parameters, and what is kept, of before the step.
    """

    # (gradient of each loss times its weight, in the order of the losses) → the gradient; None: their sum
    combine: Callable[[Sequence[Any]], Any] | None = None
    # (model, gradient) → the gradient that is followed; None: as it is
    project: Callable[[Any, Any], Any] | None = None
    # (model after the step, the gradient, the parameters before it): may change what the model keeps
    witness: Callable[[Any, Any, Any], None] | None = None
