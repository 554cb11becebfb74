"""SimCLR."""

from ml_collections import ConfigDict

from configs import common
from tasks.simclr import Simclr
from unimodal.tokenizers import image


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny})


def tiny(config: ConfigDict) -> None:
    config.steps = 400
    config.log_every = 50
    config.optimizer.update(learning_rate=1e-3, warmup=40)
    config.backbones.shared = common.backbone(width=128, depth=3, heads=4, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=8, init_std=0.5)
    config.tasks.simclr = common.every(
        Simclr, batch_size=128, views=dict(crop=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), blur=(0.0,))
    )
    probe = dict(source="embedded:emoji")
    config.evaluations = ConfigDict(
        dict(probe=dict(kind="linear_probe", **probe), near=dict(kind="knn", k=10, cosine=True, **probe))
    )
