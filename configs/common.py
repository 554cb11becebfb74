"""What recipes have in common: the shape of a config, with its defaults."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    """A config without tokenizers, backbones and tasks. Every key is a field of a dataclass in `launch.py`'s reach."""
    return ConfigDict(
        dict(
            seed=0,
            steps=1000,
            schedule="sum",
            log_every=10,
            eval_every=0,
            eval_limit=placeholder(int),
            checkpoint_every=0,
            keep_checkpoints=2,
            stop_after=placeholder(int),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1),
            optimizer=dict(
                learning_rate=1e-3, warmup=100, final=0.1, b1=0.9, b2=0.98, weight_decay=0.05, clip=1.0, accumulate=1
            ),
            tokenizers=dict(),
            backbones=dict(),
            tasks=dict(),
        ),
        convert_dict=True,
    )
