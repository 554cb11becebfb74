"""wav2vec 2.0: learn from speech alone (Baevski 2020). `configs/ctc.py` goes on from here.

python launch.py train --config=configs/wav2vec2.py:size=tiny --workdir=runs/wav2vec2

size        | what                                                                      | reaches, in
tiny        | 0.7M parameters, 11 minutes of embedded speech                            | accuracy 0.21 (untrained 0.08), 2 minutes
small       | 18M, one's own recordings                                                 | not run
paper       | BASE, 95M                                                                 | not run
paper_large | LARGE, 317M                                                               | not run

Those of the paper have its shapes, masks, quantiser, distractors and temperatures (§4.2), and what it leaves open from the
authors' published settings: Adam's β and ε, weight decay, linear decay to 0, the weight 10 of the feature penalty in BASE,
and 12 heads in BASE. A batch is 1.6 hours of crops of 15.6 s (LARGE: 2.7 hours of 20 s). LARGE is as for LibriVox:
600,000 steps, without dropout or feature penalty. Otherwise than there: stochastic depth, which grows from 0 to twice
LayerDrop's rate, stands for LayerDrop. Recordings belong into data/speech/train and data/speech/validation.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from tasks.wav2vec2 import Wav2vec2
from unimodal.tokenizers import audio


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small, "paper": paper, "paper_large": paper_large})


def encoder(config: ConfigDict, tokenizer: dict[str, Any], backbone: dict[str, Any], dtype: str = "bfloat16") -> None:
    config.tokenizers.audio = common.every(audio.Config, **tokenizer, dtype=dtype)
    config.backbones.audio = common.backbone(**backbone, dtype=dtype)


def recordings(config: ConfigDict, seconds: float, **given: Any) -> None:
    """Learn from one's own recordings in data/speech, in crops of so many seconds."""
    config.tasks.wav2vec2 = common.every(
        Wav2vec2,
        source="folder:data/speech",
        backbone="audio",
        sounds=dict(seconds=seconds),
        feature_penalty=10.0,
        **given,
    )


def tiny(config: ConfigDict) -> None:
    config.update(steps=700, eval_every=200, eval_limit=2)
    config.optimizer.update(learning_rate=2e-3, warmup=70, weight_decay=0.01)
    # Three convolutions for the paper's seven, with the same 20 ms between frames, cost a fourth.
    front = dict(channels=64, kernels=(20, 8, 4), strides=(10, 8, 4), position_kernel=16, position_groups=8)
    encoder(config, front, dict(width=128, depth=3, heads=4, scan=False), dtype="float32")
    quantiser: dict[str, Any] = dict(codes=16, code_size=64, size=64, negatives=20, gumbel_decay=0.997)
    config.tasks.wav2vec2 = common.every(Wav2vec2, backbone="audio", batch_size=8, **quantiser)


def small(config: ConfigDict) -> None:
    config.update(steps=50_000, eval_every=5_000, checkpoint_every=5_000)
    config.optimizer.update(
        learning_rate=5e-4, warmup=4_000, decay="linear", final=0.0, epsilon=1e-6, weight_decay=0.01
    )
    encoder(
        config,
        dict(channels=384, feature_gradient=0.1, dropout=0.1),
        dict(width=384, depth=8, heads=6, norm_position="post", norm_epsilon=1e-5, final_norm=False, dropout=0.1),
    )
    recordings(config, 10.0, batch_size=32)


def paper(config: ConfigDict) -> None:
    config.update(steps=400_000, eval_every=10_000, checkpoint_every=10_000)
    config.optimizer.update(learning_rate=5e-4, warmup=32_000, decay="linear", final=0.0)
    config.optimizer.update(b2=0.98, epsilon=1e-6, weight_decay=0.01, clip=0.0)
    encoder(
        config,
        dict(conv_norm="group", feature_gradient=0.1, feature_dropout=0.1, dropout=0.1),
        dict(
            width=768,
            depth=12,
            heads=12,
            norm_position="post",
            norm_epsilon=1e-5,
            final_norm=False,
            dropout=0.1,
            stochastic_depth=0.1,
            remat="light",
        ),
    )
    recordings(config, 15.625, batch_size=368, code_dropout=0.1)


def paper_large(config: ConfigDict) -> None:
    paper(config)
    config.steps = 600_000
    config.optimizer.learning_rate = 3e-4
    encoder(
        config,
        dict(conv_norm="layer", conv_bias=True, norm=False),
        dict(width=1024, depth=24, heads=16, norm_position="pre", norm_epsilon=1e-5, remat="full"),
    )
    config.tasks.wav2vec2.sounds.seconds = 20.0
    config.tasks.wav2vec2.update(batch_size=480, feature_penalty=0.0, code_dropout=0.0)
    config.tasks.wav2vec2.update(code_size=768, size=768, gumbel_end=0.1)
