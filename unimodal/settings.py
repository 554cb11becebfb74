"""A config as settings: nested plain values, checked and turned into the dataclasses that they name, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from dataclasses import fields as fields_of
from typing import Any

from unimodal.backbone import BackboneConfig
from unimodal.configuration import group, typed
from unimodal.continual import ContinualConfig
from unimodal.errors import UsageError
from unimodal.model import tokenizer_module
from unimodal.moved import renewed
from unimodal.task import Task
from unimodal.training.loop import LoopConfig
from unimodal.training.meters import ProfileConfig
from unimodal.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh. One axis may be -1, which takes the devices that are left."""

    data: int = -1  # splits the batch
    fsdp: int = 1  # splits the batch, and the parameters and optimizer states too
    tensor: int = 1  # splits heads, MLPs and vocabularies
    sequence: int = 1  # splits the tokens of a row


@dataclass(frozen=True)
class GeneralConfig:
    """Fields of a config that belong to no group."""

    seed: int = 0  # of weights, data order and dropout
    eval_limit: int | None = None  # batches of each evaluation during training; None: all
    # a published checkpoint's directory, another run's workdir, or ledger:PATH@REF, to start from (see `interop.start`)
    init_from: str | None = None
    init_skip: str | None = None  # a regular expression: parameters in whose path it is found start afresh all the same
    init_ema: bool = False  # take the average that the run of that workdir kept
    ema: float = 0.0  # decay of an average of the parameters, such as 0.999; 0: none
    evaluate_ema: bool | None = None  # evaluations see the average (None: if there is one), or the last parameters
    # leave out steps whose loss or gradient lies so many standard deviations above their running means, such as 6; 0: none
    skip_spikes: float = 0.0
    fake_data: bool = False  # train on random batches of the right shapes
    ledger: str | None = None  # a ledger that the run commits its weights to, made if it is not there
    ledger_branch: str = "main"  # the branch that it commits to
    workers: int = 0  # processes for each task that read, decode and augment; 0: threads of this one
    # GiB on disk for decoded pictures and sounds, which later runs and other processes read; 0: memory alone
    decoded_cache: float = 0.0
    # batches of each task whose gradients are compared with the other tasks' at the end (`training.affinity`); 0: none
    affinity: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or more, but is {self.seed}")
        if self.eval_limit is not None and self.eval_limit < 1:
            raise UsageError(f"eval_limit must be at least 1, but is {self.eval_limit}")
        if not 0 <= self.decoded_cache < math.inf:
            raise UsageError(f"decoded_cache must be 0 or more, and finite, but is {self.decoded_cache}")
        if self.workers < 0:
            raise UsageError(f"workers must be 0 or more, but is {self.workers}")
        if self.affinity < 0:
            raise UsageError(f"affinity must be 0 or more, but is {self.affinity}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema must be at least 0 and below 1, but is {self.ema}")
        if not 0 <= self.skip_spikes < math.inf:
            raise UsageError(f"skip_spikes must be 0 or more and finite, but is {self.skip_spikes}")
        if self.evaluate_ema and not self.ema:
            raise UsageError(
                "evaluate_ema=True, but this run keeps no average (ema=0); train with ema, such as ema=0.999"
            )
        if self.init_ema and self.init_from is None:
            raise UsageError("init_ema=True needs init_from, the workdir of a run that has kept an average")


_GENERAL = tuple(field.name for field in fields_of(GeneralConfig))
_GROUPS = (*_GENERAL, "continual", "mesh", "profile", "optimizer", "tokenizers", "backbones", "tasks", "evaluations")


@dataclass(frozen=True)
class Settings:
    """Everything a config says, typed. It names no device and has read no data."""

    general: GeneralConfig  # fields that belong to no group
    loop: LoopConfig  # steps, logging, checkpoints
    optimizer: OptimizerConfig  # and its schedule
    continual: ContinualConfig  # what is done against forgetting
    mesh: MeshConfig  # how devices are laid out
    tokenizers: Mapping[str, tuple[str, Any]]  # name → kind and its Config
    backbones: Mapping[str, BackboneConfig]  # by name
    tasks: Sequence[Task]  # in the order of the config
    evaluations: Mapping[str, Any]  # as they were given

    def as_plain(self) -> dict[str, Any]:
        """The whole config again, with every field that there is: equal for configs that mean the same."""
        tasks: Sequence[Any] = self.tasks
        return {
            **asdict(self.general),
            **asdict(self.loop),
            "optimizer": asdict(self.optimizer),
            "continual": asdict(self.continual),
            "mesh": asdict(self.mesh),
            "tokenizers": {name: {"kind": kind, **asdict(c)} for name, (kind, c) in self.tokenizers.items()},
            "backbones": {name: asdict(c) for name, c in self.backbones.items()},
            "tasks": {task.name: {"kind": type(task).__name__, **asdict(task)} for task in tasks},
            "evaluations": dict(self.evaluations),
        }


def read_settings(config: Mapping[str, Any], task_class: Callable[[str], type[Any]]) -> Settings:
    """A plain nested mapping → Settings. `task_class` finds the class of a task kind.

    Fields that have moved since a config was written are found where they were. Raises UsageError for a field that does
    not exist or cannot be right.
    """
    config = renewed(group(config, "config"))
    if not group(config.get("tasks", {}), "tasks"):
        raise UsageError("the config has no tasks")
    general = {key: config[key] for key in _GENERAL if key in config}
    loop = {key: value for key, value in config.items() if key not in _GROUPS}
    backbones = {
        n: typed(BackboneConfig, c, f"backbones.{n}")
        for n, c in group(config.get("backbones", {}), "backbones").items()
    }
    tokenizers = {}
    for name, fields in group(config.get("tokenizers", {}), "tokenizers").items():
        kind = group(fields, f"tokenizers.{name}").get("kind", name)
        rest = {key: value for key, value in fields.items() if key != "kind"}
        tokenizers[name] = (kind, typed(tokenizer_module(kind).Config, rest, f"tokenizers.{name}"))
    profile = typed(ProfileConfig, config.get("profile", {}), "profile")
    return Settings(
        general=typed(GeneralConfig, general, "config"),
        loop=replace(typed(LoopConfig, loop, "config"), profile=profile),
        optimizer=typed(OptimizerConfig, config.get("optimizer", {}), "optimizer"),
        continual=typed(ContinualConfig, config.get("continual", {}), "continual"),
        mesh=typed(MeshConfig, config.get("mesh", {}), "mesh"),
        tokenizers=tokenizers,
        backbones=backbones,
        tasks=[_make_task(name, fields, task_class, tokenizers, backbones) for name, fields in config["tasks"].items()],
        evaluations=group(config.get("evaluations", {}), "evaluations"),
    )


MODALITIES = ("image_", "text_", "audio_")


def _make_task(
    name: str,
    fields: Mapping[str, Any],
    task_class: Callable[[str], type[Any]],
    tokenizers: Mapping[str, Any],
    backbones: Mapping[str, Any],
) -> Task:
    cls = task_class(group(fields, f"tasks.{name}").get("kind", name))
    rest = {key: value for key, value in fields.items() if key != "kind"}
    task = typed(cls, {"name": name, **rest}, f"tasks.{name}")
    _check_numbers(task, f"tasks.{name}")
    # A field called tokenizer or …_tokenizer names one of the model's, and so with backbones: a slip is found here.
    for slot in cls.__dataclass_fields__:
        for suffix, made in (("tokenizer", tokenizers), ("backbone", backbones)):
            if not slot.endswith(suffix) or (value := getattr(task, slot)) in made:
                continue
            # A task of two modalities need not name one for a third.
            if value or not (slot.startswith(MODALITIES) and hasattr(task, "pair")):
                if not made:
                    raise UsageError(f"the config has no {suffix}s, but tasks.{name}.{slot} is {value!r}")
                raise UsageError(f"tasks.{name}.{slot}={value!r} is not among the {suffix}s: {', '.join(made)}")
    return task


def _check_numbers(config: Any, where: str) -> None:
    """Raises UsageError for a number that is not finite, or negative where only a mean or a bias may be."""
    for slot in fields_of(config):
        value = getattr(config, slot.name)
        if is_dataclass(value):
            _check_numbers(value, f"{where}.{slot.name}")
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float):
                continue
            if not math.isfinite(number) or (number < 0 and slot.name not in ("mean", "bias")):
                raise UsageError(f"{where}.{slot.name} must be finite and at least 0, but is {value}")
