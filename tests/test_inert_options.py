"""No option does nothing: every field of every config is read, and those of the model change what is computed."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unimodal import UsageError
from unimodal.backbone import Backbone, BackboneConfig
from unimodal.settings import GeneralConfig, MeshConfig
from unimodal.tokenizers import audio, codebook, image, spectrogram, text
from unimodal.tokens import tokens
from unimodal.training.loop import LoopConfig
from unimodal.training.meters import ProfileConfig
from unimodal.training.optimizer import OptimizerConfig

KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)


def program(function: Callable[..., Any], *arguments: Any) -> tuple[str, list[bytes]]:
    """What a function computes, as text, and the constants in it."""
    made = jax.make_jaxpr(function)(*arguments)
    return str(made), [np.asarray(constant).tobytes() for constant in made.consts]


def effect(make: Callable[[], Callable[..., nnx.Module]], *inputs: Any) -> Any:
    """How a module starts and what it computes, as programs, or why it is refused."""
    try:
        start = make()
        module = jax.eval_shape(start, KEY)
        given = jax.eval_shape(lambda m, key, *x: m(*x, key=key), module, KEY, *inputs)
        computed = program(lambda m, key, *x: m(*x, key=key), module, KEY, *inputs)
        return program(start, KEY), computed, jax.tree.structure(given)
    except UsageError as error:
        return str(error)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


IDS = jax.ShapeDtypeStruct((2, 6), jnp.int32)
PIXELS, SOUND, FRAMES = floats(2, 8, 12, 3), floats(2, 150), floats(2, 10, 7)
IMAGE = dict(image_size=(8, 12), patch=4)
AUDIO = dict(channels=8, kernels=(10, 3), strides=(5, 2), position_groups=2, position_kernel=4)

# What each option needs beside it to mean anything, and another value of it.
TOKENIZERS: dict[str, tuple[Any, dict[str, Any], Any, dict[str, tuple[dict[str, Any], Any]]]] = {
    "image": (
        image,
        IMAGE,
        PIXELS,
        dict(
            image_size=({}, (12, 8)),
            patch=({}, 2),
            channels=({}, 1),
            registers=({}, 2),
            plain_registers=({}, 1),
            stride=({}, (2, 2)),
            positions=({}, False),
            resize=(dict(image_size=(8, 8)), True),
            antialias=(dict(image_size=(16, 16), resize=True), True),
            bias=({}, False),
            norm=({}, True),
            norm_epsilon=(dict(norm=True), 0.1),
            dropout=({}, 0.5),
            init_std=({}, 0.5),
            sincos=({}, True),
            param_dtype=({}, "bfloat16"),
        ),
    ),
    "codebook": (
        codebook,
        dict(image_size=(8, 12), vocabulary=8, hidden=4, groups=2, blocks=1, code_size=4),
        PIXELS,
        dict(
            image_size=({}, (12, 8)),
            channels=({}, 1),
            vocabulary=({}, 9),
            hidden=({}, 8),
            groups=({}, 1),
            blocks=({}, 2),
            code_size=({}, 5),
            quantiser=({}, "vq"),
            dropout=({}, 0.5),
            dtype=({}, "bfloat16"),
        ),
    ),
    "spectrogram": (
        spectrogram,
        dict(bins=7),
        FRAMES,
        dict(
            bins=({}, 8),
            kernels=({}, (5, 3)),
            strides=({}, (2, 2)),
            max_length=({}, 40),
            activation=({}, "relu"),
            dropout=({}, 0.5),
            init_std=({}, 0.5),
            param_dtype=({}, "bfloat16"),
        ),
    ),
    "audio": (
        audio,
        AUDIO,
        SOUND,
        dict(
            channels=({}, 4),
            kernels=({}, (9, 3)),
            strides=({}, (5, 3)),
            conv_norm=({}, "layer"),
            conv_bias=({}, True),
            position_kernel=({}, 5),
            position_groups=({}, 4),
            position_layers=({}, 2),
            norm=({}, False),
            norm_epsilon=({}, 0.1),
            feature_gradient=({}, 0.5),
            feature_dropout=({}, 0.5),
            dropout=({}, 0.5),
            dtype=({}, "bfloat16"),
            param_dtype=({}, "bfloat16"),
        ),
    ),
    "text": (
        text,
        dict(vocabulary=20),
        IDS,
        dict(
            vocabulary=({}, 30),
            max_length=({}, 9),
            types=({}, 2),
            embedding_width=({}, 4),
            norm=({}, True),
            norm_bias=(dict(norm=True), False),
            norm_epsilon=(dict(norm=True), 0.1),
            scale=({}, True),
            dropout=({}, 0.5),
            init_std=({}, 0.5),
            modality=({}, "image"),
            param_dtype=({}, "bfloat16"),
        ),
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_option_of_a_tokenizer_changes_it(kind: str) -> None:
    module, base, inputs, changes = TOKENIZERS[kind]
    assert {field.name for field in dataclasses.fields(module.Config)} == set(changes)

    def made(options: dict[str, Any]) -> Any:
        config = lambda: module.Config(**options)  # noqa: E731
        return effect(lambda: (lambda c: lambda key: module.Tokenizer(c, 8, rngs=nnx.Rngs(key)))(config()), inputs)

    plain = made(base)
    assert made(base) == plain  # the comparison itself is stable
    inert = [
        name
        for name, (beside, value) in changes.items()
        if made(base | beside | {name: value}) == (made(base | beside) if beside else plain)
    ]
    assert inert == []


BACKBONE: dict[str, tuple[dict[str, Any], Any]] = dict(
    width=({}, 16),
    depth=({}, 3),
    heads=({}, 4),
    kv_heads=({}, 1),
    head_size=({}, 8),
    mlp_width=({}, 16),
    norm_position=({}, "post"),
    norm=({}, "rms"),
    norm_epsilon=({}, 0.1),
    norm_bias=({}, False),
    norm_offset=({}, 1.0),
    activation=({}, "swiglu"),
    qkv_bias=({}, False),
    key_bias=({}, False),
    output_bias=({}, False),
    mlp_bias=({}, False),
    qk_norm=({}, True),
    rope_theta=({}, 10_000.0),
    rope_scaling=(dict(rope_theta=10_000.0), (2.0,)),
    layer_scale=({}, 0.1),
    dropout=({}, 0.5),
    stochastic_depth=({}, 0.5),
    final_norm=({}, False),
    scan=({}, False),
    remat=({}, "full"),
    dtype=({}, "bfloat16"),
    param_dtype=({}, "bfloat16"),
    quantization=({}, "int8"),
    attention=({}, "blockwise"),
    window=({}, 2),
    global_tokens=(dict(window=2), 1),
    first_attention_norm=({}, False),
    rope_layers=(dict(rope_theta=10_000.0), (0,)),
    attention_scale=({}, 0.3),
    attention_soft_cap=({}, 5.0),
    relative_buckets=({}, 8),
    relative_distance=(dict(relative_buckets=8), 9),
    shared_layers=({}, True),
    experts=({}, ("image",)),
    window_layers=(dict(window=2), (0,)),
    window_rope_theta=(dict(window=2, rope_theta=10_000.0), 100.0),
)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(BackboneConfig)])
def test_every_option_of_a_backbone_changes_it(name: str) -> None:
    base = dict(width=8, depth=2, heads=2) | BACKBONE[name][0]

    def made(options: dict[str, Any]) -> Any:
        config = BackboneConfig(**options)

        def run(backbone: Any, key: jax.Array, x: jax.Array) -> jax.Array:
            return backbone(tokens(x), key=key)[0]

        start = lambda key: Backbone(config, rngs=nnx.Rngs(key))  # noqa: E731
        shape = floats(2, 6, config.width)
        return program(start, KEY), program(run, jax.eval_shape(start, KEY), KEY, shape)

    changed = made(base | {name: BACKBONE[name][1]}) != made(base)  # by itself, as pytest would print both programs
    assert changed


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_dropout_of_every_tokenizer_reaches_the_loss(kind: str) -> None:
    """A tokenizer drops out only what a task gives it a key for."""

    def loss(**changes: float) -> tuple[Any, Any]:
        experiment = tiny.build(tiny.plain(kind, **changes))
        (task,) = experiment.tasks
        shapes = {
            name: jax.ShapeDtypeStruct((task.batch_size, *spec.shape), spec.dtype)
            for name, spec in task.inputs(experiment.model).spec.items()
        }
        run = lambda model, batch, key: task.loss(model, batch, key=key, step=jnp.int32(0))[0]  # noqa: E731
        return task, program(run, experiment.model, shapes, KEY)

    task, still = loss()
    used = [getattr(task, field.name) for field in dataclasses.fields(task) if field.name.endswith("tokenizer")]
    used = [name for name in used if name]
    assert used
    options = [f"tokenizers__{name}__dropout" for name in used]
    options += [f"tokenizers__{name}__feature_dropout" for name in used if name == "audio"]
    assert [option for option in options if loss(**{option: 0.5})[1] == still] == []


def loads(source: str) -> set[str]:
    """Names that are read as attributes anywhere but in `__post_init__`, which only checks them."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            last = node.args[1].values[-1] if isinstance(node.args[1], ast.JoinedStr) else None
            if isinstance(last, ast.Constant):  # getattr(task, f"{modality}_head") reads image_head and its like
                found.add(f"*{last.value}")
        for inner in ast.iter_child_nodes(node):
            visit(inner)

    visit(ast.parse(source))
    return found


def configs() -> Iterator[type[Any]]:
    """The dataclasses that a config fills in, and those nested in their fields."""
    import launch

    waiting = [LoopConfig, ProfileConfig, OptimizerConfig, *(launch.task_class(kind) for kind in tiny.KINDS)]
    seen: set[Any] = set()
    while waiting:
        cls = waiting.pop()
        if cls in seen:
            continue
        seen.add(cls)
        yield cls
        for hint in typing.get_type_hints(cls).values():
            waiting += [
                c for c in (hint, *typing.get_args(hint)) if isinstance(c, type) and dataclasses.is_dataclass(c)
            ]


READ_ELSEWHERE = {"batch_size", "weight", "accumulate"}  # by the loop and the step, of every task


def _ours(value: Any) -> bool:
    """True for a function, or a module of functions, of this package."""
    name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", "")
    return str(name).startswith("unimodal.") and (inspect.ismodule(value) or inspect.isfunction(value))


def test_every_field_of_a_config_is_read() -> None:
    """In its own module, that of a class it extends, or that of a function that it imports (tasks share functions of the
    task). A block of data may also be read by the tasks that nest it."""
    paths = [tiny.ROOT / "launch.py", *(p for room in ("unimodal", "tasks") for p in (tiny.ROOT / room).rglob("*.py"))]
    everywhere = set().union(*(loads(path.read_text("utf-8")) for path in paths))
    unread = []
    for cls in configs():
        owners = [inspect.getmodule(owner) for owner in cls.__mro__ if dataclasses.is_dataclass(owner)]
        there = [value for owner in owners for value in vars(owner).values() if _ours(value)]
        owners += [value if inspect.ismodule(value) else inspect.getmodule(value) for value in there]
        read = set().union(*(loads(inspect.getsource(owner)) for owner in owners if owner))
        shared = cls.__module__.startswith("unimodal.data.")
        read |= everywhere if shared else everywhere & READ_ELSEWHERE
        if cls is OptimizerConfig:  # declared beside the optimizers, read by what puts them to work
            read |= loads((tiny.ROOT / "unimodal/training/optimizer.py").read_text("utf-8"))
        ends = tuple(name[1:] for name in read if name.startswith("*"))
        names = [field.name for field in dataclasses.fields(cls)]
        unread += [f"{cls.__name__}.{name}" for name in names if name not in read and not name.endswith(ends)]
    assert unread == []


def test_a_field_that_nobody_reads_is_found() -> None:
    assert "inert" not in loads("class A:\n    inert: int = 0\n    def __post_init__(self):\n        self.inert > 0\n")
    assert "used" in loads("def f(a):\n    return a.used\n")


def test_the_groups_that_are_unpacked_go_where_every_field_is_a_parameter() -> None:
    from unimodal.experiment import Experiment
    from unimodal.sharding import make_mesh

    assert {field.name for field in dataclasses.fields(MeshConfig)} <= set(inspect.signature(make_mesh).parameters)
    general = {field.name for field in dataclasses.fields(GeneralConfig)}
    assert general <= {field.name for field in dataclasses.fields(Experiment)}
