"""Audio classification over patches of a log-mel spectrogram (AST, Gong 2021). Tiny: which phone is spoken.

python launch.py train --config=configs/audio_classifier.py:size=tiny --workdir=runs/phones

size        | what                                                                      | reaches, in
tiny        | 0.6M parameters, 6,234 phones of embedded Russian speech, 51 classes      | accuracy 0.56 (majority class 0.06), 4 minutes
small       | 11M, sounds in folders by class                                           | not run
paper       | AST, 85M, the 35 words of Speech Commands V2                              | not run

`paper` has the paper's shapes and settings for Speech Commands V2 (§2.1 and §3.2): DeiT-base over patches of 16×16 every 10,
128 mel bins by 128 frames, batches of 128, Adam with 2.5e-4, 20 epochs, stripes of up to 48 bins and 48 frames blanked.
Otherwise than there: the rate decays by a cosine, and there is neither mixup nor added noise. Sounds
belong into data/sounds/train/CLASS/ and data/sounds/validation/CLASS/ (paper: data/speech_commands).
"""

from ml_collections import ConfigDict

from configs import common
from tasks.audio_classifier import AudioClassifier
from unimodal.tokenizers import image

WORDS = """
backward bed bird cat dog down eight five follow forward four go happy house learn
left marvin nine no off on one right seven sheila six stop three tree two up visual wow yes zero
"""


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small, "paper": paper})


def tiny(config: ConfigDict) -> None:
    config.steps = 800
    config.eval_every = 400
    config.optimizer.update(learning_rate=2e-3, warmup=100, weight_decay=0.05)
    # A quarter of a second around each phone, in patches of 8 bins by 80 ms, overlapping by half in time.
    patches = dict(image_size=(64, 28), patch=8, channels=1, stride=(8, 4))
    config.tokenizers.spectrogram = spectrogram(**patches)
    config.backbones.audio = common.backbone(width=128, depth=3, heads=4, dropout=0.1, scan=False)
    config.tasks.audio_classifier = common.every(
        AudioClassifier, backbone="audio", batch_size=64, shift=0.01, blank=(8, 4), label_smoothing=0.1
    )


def small(config: ConfigDict) -> None:
    config.steps = 20_000
    config.eval_every = config.checkpoint_every = 2_000
    config.optimizer.update(learning_rate=5e-4, warmup=1_000)
    config.tokenizers.spectrogram = spectrogram(image_size=(128, 256), patch=16, channels=1, stride=(10, 10))
    config.backbones.audio = common.backbone(width=384, depth=6, heads=6, stochastic_depth=0.1)
    config.tasks.audio_classifier = common.every(
        AudioClassifier,
        source="folder:data/sounds",
        sounds=dict(segments=""),
        backbone="audio",
        blank=(24, 48),
        label_smoothing=0.1,
    )


def paper(config: ConfigDict) -> None:
    config.steps = 20 * 84_843 // 128
    config.eval_every = config.checkpoint_every = 1_000
    config.optimizer.update(learning_rate=2.5e-4, warmup=1_000, b2=0.999, weight_decay=5e-7, clip=0.0)
    patches = dict(image_size=(128, 128), patch=16, channels=1, stride=(10, 10), registers=2)
    config.tokenizers.spectrogram = spectrogram(**patches)
    config.backbones.audio = common.backbone(
        width=768, depth=12, heads=12, norm_epsilon=1e-12, dtype="bfloat16", remat="light"
    )
    config.tasks.audio_classifier = common.every(
        AudioClassifier,
        source="folder:data/speech_commands",
        sounds=dict(segments=""),
        labels=dict(classes=tuple(WORDS.split())),
        backbone="audio",
        batch_size=128,
        pooling="first_two",
        head_norm=1e-12,
        mean=-6.85,
        deviation=5.57,
        blank=(48, 48),
    )


def spectrogram(**options: object) -> ConfigDict:
    tokenizer = common.every(image.Config, **options)
    tokenizer.kind = "image"
    return tokenizer
