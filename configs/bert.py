"""BERT: recover hidden tokens (Devlin 2019).

python launch.py train --config=configs/bert.py:size=tiny --workdir=runs/bert

size        | what                                                                               | reaches, in
tiny        | 1.4M parameters, bytes of the embedded book                                        | 2.33 bits per masked byte (bigram 3.51), 5 minutes
small       | 28M, pieces of words of enwik8, whole words hidden, next sentences                 | not run
paper       | BERT-base, 110M                                                                    | not run
paper_large | BERT-large, 340M                                                                   | not run

For small: python tools/fetch_text.py data/ enwik8
           python -m unimodal.data.train_encoder --source=array_record:data/enwik8 --kind=wordpiece --lowercase \\
               --size=16384 --out=data/wordpiece/tokenizer.json
The two of the paper have its shapes (§3), batch of 256 rows, rate of 1e-4 with linear decay, β, weight decay, dropout and
10,000 steps of warm-up out of a million (appendix A.2). Otherwise than there, all rows have 512 tokens, where the paper
cuts nine tenths of the steps down to 128. Its vocabulary, 30,522 pieces, belongs into
data/bert/vocab.txt, and documents into data/books/train and data/books/validation as .txt files.
"""

from ml_collections import ConfigDict

from configs import common
from tasks.bert import Bert
from unimodal.tokenizers import text

SHAPES = {"paper": dict(width=768, depth=12, heads=12), "paper_large": dict(width=1024, depth=24, heads=16)}


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small}, paper=paper, shapes=SHAPES)


def tiny(config: ConfigDict) -> None:
    common.on_the_book(config, steps=800, evaluate=400)
    config.tasks.bert = common.every(Bert, batch_size=16)


def small(config: ConfigDict) -> None:
    source = common.on_enwik8(config)
    config.optimizer.update(learning_rate=5e-4, warmup=2_000, b2=0.98, weight_decay=0.01)
    config.backbones.shared = common.backbone(
        width=512, depth=6, heads=8, rope_theta=10_000.0, dtype="bfloat16", dropout=0.1
    )
    config.tokenizers.text = common.every(text.Config, vocabulary=16_384, types=2, dropout=0.1)
    texts = dict(encoder="data/wordpiece", length=256)
    pairs = dict(whole_words=True, next_sentence=True)
    config.tasks.bert = common.every(Bert, source=source, texts=texts, batch_size=128, **pairs)


def paper(config: ConfigDict, size: str) -> None:
    config.update(steps=1_000_000, log_every=100, eval_every=20_000, eval_limit=50, checkpoint_every=10_000)
    config.optimizer.update(
        learning_rate=1e-4, warmup=10_000, decay="linear", final=0.0, b1=0.9, b2=0.999, epsilon=1e-6, weight_decay=0.01
    )
    model(config, **SHAPES[size])
    texts = dict(encoder="data/bert", length=512)
    config.tasks.bert = common.every(Bert, source="folder:data/books", texts=texts, batch_size=256, next_sentence=True)


def model(config: ConfigDict, **shape: int) -> None:
    """BERT's tokenizer and backbone (§3), of a given width, depth and number of heads."""
    config.backbones.shared = common.backbone(
        **shape,
        norm_position="post",
        norm_epsilon=1e-12,
        final_norm=False,
        dropout=0.1,
        dtype="bfloat16",
        remat="light",
    )
    config.tokenizers.text = common.every(
        text.Config, vocabulary=30_522, max_length=512, types=2, norm=True, norm_epsilon=1e-12, dropout=0.1
    )
