"""Discrete VAE: pictures as codes, and back (Ramesh 2021, appendix A; van den Oord 2017).

python launch.py train --config=configs/dvae.py:size=tiny --workdir=runs/dvae

size  | what                                                                        | reaches, in
tiny  | 0.2M parameters, embedded emoji, 64 codes of 256                            | squared error 0.025 (mean picture 0.076), 335 s of CPU
small | CIFAR-10 by nearest vectors, 64 codes of 512, 10,000 steps of 128           | not yet measured
paper | the dVAE of DALL·E, 98M, 1024 codes of 8192                                 | not run

Tiny, one seed beside another run: 0.26 of the pixels' variance is left, and 27 of the 256 codes are in use.

That of the paper has its shapes (four groups of two blocks, 256 wide in the first), a temperature from 1 to 1/16 over 150,000
steps and a divergence of up to 6.6 over the first 5,000 (appendix A.2), batch 512, a rate from 1e-4 to 1.25e-6, AdamW with
weight decay 1e-4, three million steps, and an average of the weights with decay 0.999. Otherwise than there, the rate falls
to the end of the run and not to step 1,200,000, and weights are float32. The small one has the sizes of van den Oord 2017, §4.1:
codes are running means, a quarter of the picture's side each way. `tools/make_cifar10.py` makes its data in data/cifar10.
"""

from ml_collections import ConfigDict

from configs import common
from tasks.dvae import Dvae
from unimodal.tokenizers import codebook

TINY = dict(kind="codebook", image_size=(32, 32), vocabulary=256, hidden=32, groups=3, blocks=1, code_size=64)


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small, "paper": paper})


def codes(config: ConfigDict, **given: object) -> None:
    """The codebook, which is all there is to the model."""
    kind = {"kind": given.pop("kind", "codebook")}
    config.tokenizers.codes = common.every(codebook.Config, **given)
    config.tokenizers.codes.update(kind)


def tiny(config: ConfigDict) -> None:
    config.update(steps=1000, log_every=50, eval_every=250)
    config.optimizer.update(learning_rate=3e-3, warmup=50, weight_decay=1e-4)
    codes(config, **TINY)
    # Emoji are mostly white: a divergence as strong as the paper's would leave them few bits.
    config.tasks.dvae = common.every(
        Dvae, images=dict(shift=2), temperature_steps=800, divergence=0.5, divergence_steps=500
    )


def small(config: ConfigDict) -> None:
    config.update(steps=10_000, log_every=100, eval_every=1_000, checkpoint_every=1_000)
    config.optimizer.update(learning_rate=2e-4, warmup=0, weight_decay=0.0)
    codes(config, image_size=(32, 32), vocabulary=512, hidden=64, groups=3, blocks=2, code_size=64, quantiser="vq")
    config.tasks.dvae = common.every(Dvae, source="array_record:data/cifar10", batch_size=128)


def paper(config: ConfigDict) -> None:
    config.update(steps=3_000_000, log_every=100, eval_every=10_000, checkpoint_every=10_000, ema=0.999)
    config.optimizer.update(
        learning_rate=1e-4, warmup=5_000, final=0.0125, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=1e-4, clip=0.0
    )
    codes(config, dtype="bfloat16")
    config.tasks.dvae = common.every(Dvae, source="folder:data/pairs", images=dict(crop=(0.75, 1.0)), batch_size=512)
