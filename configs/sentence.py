"""Sentence embeddings, learned by telling apart which texts belong together (Reimers 2019; Gao 2021).

python launch.py train --config=configs/sentence.py:size=tiny --workdir=runs/sentence

size  | what                                                                                    | reaches, in
tiny  | an emoji's name and its keywords that share no word with it; from scratch               | recall@5 0.14 (untrained 0.08), 3 minutes
small | verses in English and in Spanish, from the checkpoint MiniLM-L6, 22.7M                  | not run
paper | pairs of data/pairs, from BERT-base, 110M                                               | not run

Verses: python tools/fetch_text.py data/ quran
MiniLM: python tools/fetch_weights.py data/weights minilm
The one of the paper has the settings of supervised SimCSE from BERT-base (Gao 2021, appendix A: batch 512, rate 5e-5,
three epochs, 32 tokens; temperature 0.05 in §3; its 275,601 pairs of premise and entailed hypothesis in §4), but no
hard negatives, and its extra layer without the tanh. data/pairs: ArrayRecord files of records with `premise` and
`hypothesis`; data/bert: as for configs/bert_finetune.py.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import bert, common
from tasks.sentence import Sentence
from unimodal.tokenizers import text


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small, "paper": paper})


def tiny(config: ConfigDict) -> None:
    config.update(steps=400, log_every=25, eval_every=200, checkpoint_every=200)
    config.optimizer.update(learning_rate=1e-3, warmup=100, weight_decay=0.1)
    config.backbones.shared = common.backbone(
        width=128, depth=3, heads=4, activation="gelu_tanh", rope_theta=10_000.0, dropout=0.1, scan=False
    )
    config.tokenizers.text = common.every(text.Config, vocabulary=264, dropout=0.1)
    config.tasks.sentence = common.every(Sentence, batch_size=64, texts=dict(length=48))


def small(config: ConfigDict) -> None:
    config.update(steps=1_000, log_every=20, eval_every=200, checkpoint_every=500)
    config.optimizer.update(learning_rate=5e-5, warmup=100, final=0.0, b2=0.999, weight_decay=0.01)
    config.init_from = "data/weights/minilm"
    bert.model(config, width=384, depth=6, heads=12)
    english = dict(column="text_en", encoder="data/weights/minilm", length=64)
    sentences(config, "quran", texts=english, second="text_es", batch_size=64, size=384)


def paper(config: ConfigDict) -> None:
    config.update(steps=3 * 275_601 // 512, log_every=20, eval_every=250, checkpoint_every=250)
    config.optimizer.update(learning_rate=5e-5, warmup=0, final=0.0, b2=0.999, weight_decay=0.0)
    config.init_from = "data/bert"
    bert.model(config, **bert.SHAPES["paper"])
    premise = dict(column="premise", encoder="data/bert", length=32)
    sentences(config, "pairs", texts=premise, second="hypothesis", batch_size=512, size=768, pooling="first")


def sentences(config: ConfigDict, name: str, **given: Any) -> None:
    """Learn from the pairs of whole sentences in data/NAME, which may share words."""
    config.tasks.sentence = common.every(Sentence, source=f"array_record:data/{name}", distinct=False, **given)
