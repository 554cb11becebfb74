"""Ten classes learned a few at a time, or one set in ever new orders of pixels: the usual streams of continual learning.

python tools/make_mnist.py data/mnist --train=10000 --validation=2000
python launch.py train --config=configs/split.py:mnist --workdir=runs/split --config.continual.strategy=replay

size      | stream
mnist     | Split-MNIST, class-incremental: two digits at a time, one head for all ten
mnist_own | the same, task-incremental: every pair has a head of its own
permuted  | Permuted-MNIST: all digits, the pixels in five orders, one head
cifar     | Split-CIFAR-10, class-incremental: python tools/make_cifar10.py data/cifar10
cifar_own | the same, task-incremental

docs/continual.md has the accuracies, with 2,000 pictures to score as above or, beside the twin in torch, with 500: data/mnist must be
made anew for the one or the other. A picture of MNIST is one patch, so that the transformer is the MLP that others use on it:
attention has one token to look at. That of CIFAR-10 is 64. Otherwise than in published runs, the models are small and see
each example a few times at most. The joint run beside it is `--config.schedule=alternate` with the other fields as they are.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from tasks.vit import Vit
from unimodal.tokenizers import image

TASKS = 5
PAIRS = [(2 * i, 2 * i + 1) for i in range(TASKS)]
MNIST, CIFAR = "array_record:data/mnist", "array_record:data/cifar10"


def get_config(argument: str = "") -> ConfigDict:
    sizes = dict(
        mnist=lambda config: digits(config, own=False),
        mnist_own=lambda config: digits(config, own=True),
        permuted=permuted,
        cifar=lambda config: pictures(config, own=False),
        cifar_own=lambda config: pictures(config, own=True),
    )
    return common.sized(argument, sizes)


def digits(config: ConfigDict, own: bool) -> None:
    on_one_patch(config)
    in_pairs(config, MNIST, [str(digit) for digit in range(10)], own, batch_size=64)


def permuted(config: ConfigDict) -> None:
    on_one_patch(config)
    stream(
        config, [dict(source=MNIST, batch_size=64, images=dict(permute=i), labels=dict(count=10)) for i in range(TASKS)]
    )


def pictures(config: ConfigDict, own: bool) -> None:
    config.update(steps=500, log_every=50)
    config.optimizer.update(learning_rate=1e-3, warmup=20)
    config.backbones.shared = common.backbone(width=64, depth=2, heads=2, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=4, init_std=0.5)
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    in_pairs(config, CIFAR, names, own, batch_size=32, images=dict(flip=0.5, shift=2))


def on_one_patch(config: ConfigDict) -> None:
    config.update(steps=500, log_every=50)
    config.optimizer.update(learning_rate=2e-3, warmup=20)
    config.backbones.shared = common.backbone(width=64, depth=2, heads=2, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(28, 28), patch=28)


def in_pairs(config: ConfigDict, source: str, names: Any, own: bool, **fields: Any) -> None:
    """Two classes at a time; `own`: with a head for each pair, which knows no other classes."""
    tasks = []
    for pair in PAIRS:
        labels: dict[str, Any] = dict(classes=tuple(names[i] for i in pair)) if own else dict(count=10)
        tasks.append(dict(source=f"{source}?only=label:{pair[0]},{pair[1]}", labels=labels, **fields))
    stream(config, tasks, own)


def stream(config: ConfigDict, tasks: list[dict[str, Any]], own: bool = False) -> None:
    """Tasks in their order, at a rate that does not fall, in one trunk; but for `own` with the head of the first."""
    names = tuple(f"task{i + 1}" for i in range(len(tasks)))
    config.update(schedule="sequence", sequence=names, eval_every=0)
    # A rate that falls over the whole run would hold still by itself what comes last.
    config.optimizer.update(final=1.0, weight_decay=0.0)
    for name, fields in zip(names, tasks, strict=True):
        head = "" if own or name == names[0] else names[0]
        config.tasks[name] = common.every(Vit, name=name, label_smoothing=0.0, head=head, **fields)
        config.tasks[name].kind = "vit"
