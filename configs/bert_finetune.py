"""Text classification with a BERT-like encoder (Devlin 2019, §4.1 and appendix A.3).

python launch.py train --config=configs/bert_finetune.py:size=tiny --workdir=runs/bert_finetune

size        | what                                                                               | reaches, in
tiny        | which of nine groups an emoji's name and keywords are of; from scratch             | accuracy 0.41 (majority class 0.18), 3 minutes
small       | whether a film review likes the film; from the checkpoint MiniLM-L6, 22.7M         | not run
paper       | the same from BERT-base, 110M                                                      | not run
paper_large | the same from BERT-large, 340M                                                     | not run

Film reviews: python tools/fetch_text.py data/ imdb
MiniLM:       python tools/fetch_weights.py data/weights minilm
The two of the paper start from a directory data/bert with config.json, model.safetensors and the vocabulary, and have
the batch, rate and dropout that the paper found to work for all tasks (appendix A.3: batch 32, rate 2e-5, three epochs,
the rate warmed up over a tenth of them). Any other checkpoint: configs/finetune.py:DIR.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import bert, common
from tasks.text_classifier import TextClassifier
from unimodal.tokenizers import text

REVIEWS = 44_445  # to train on
SENTIMENT = ("negative", "positive")


def get_config(argument: str = "") -> ConfigDict:
    from_checkpoint = {size: partial(reviews, size=size) for size in ("small", *bert.SHAPES)}
    return common.sized(argument, {"tiny": tiny, **from_checkpoint})


def tiny(config: ConfigDict) -> None:
    config.update(steps=500, log_every=25, eval_every=200, checkpoint_every=200)
    config.optimizer.update(learning_rate=1e-3, warmup=100, weight_decay=0.1)
    config.backbones.shared = common.backbone(
        width=128, depth=3, heads=4, activation="gelu_tanh", rope_theta=10_000.0, dropout=0.2, scan=False
    )
    config.tokenizers.text = common.every(text.Config, vocabulary=264, types=2, dropout=0.1)
    config.tasks.text_classifier = common.every(
        TextClassifier, texts=dict(column="name+keywords"), batch_size=32, label_smoothing=0.1
    )


def reviews(config: ConfigDict, size: str) -> None:
    directory, pooling = ("data/weights/minilm", "mean") if size == "small" else ("data/bert", "first")
    config.update(steps=3 * REVIEWS // 32, log_every=50, eval_every=1_000, checkpoint_every=1_000, eval_limit=20)
    config.optimizer.update(
        learning_rate=2e-5, warmup=config.steps // 10, final=0.0, b2=0.999, epsilon=1e-6, weight_decay=0.01
    )
    config.init_from = directory
    shape = dict(width=384, depth=6, heads=12) if size == "small" else bert.SHAPES[size]
    bert.model(config, **shape)
    config.tasks.text_classifier = common.every(
        TextClassifier,
        source="array_record:data/imdb",
        texts=dict(column="text", encoder=directory, length=256 if size == "small" else 512),
        labels=dict(classes=SENTIMENT),
        batch_size=32,
        pooling=pooling,
    )
