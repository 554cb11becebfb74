"""Heads that several families have: an output and the rows that fill it."""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.interop.describe import Fields, Names, Output
from unimodal.interop.stages import Dense, Last, Stage
from unimodal.interop.table import Row, linear

Head = tuple[tuple[Output, ...], tuple[Row, ...]]
NONE: Head = ((), ())


def classifier(
    names: Names,
    tower: str,
    width: int,
    source: str,
    *,
    start: str = "hidden",
    before: Sequence[Stage] = (),
    after: Sequence[Stage] = (),
) -> Head:
    """`logits` of the linear layer `source` (NONE without one), between the stages `before` and `after`."""
    if f"{source}.weight" not in names:
        return NONE
    bias, classes = f"{source}.bias" in names, names.shape(f"{source}.weight")[0]
    stages = (*before, Dense("classifier", width, classes, bias=bias), *after)
    return (Output("logits", tower, stages, start=start),), linear(source, "heads.classifier", bias=bias)


def answers(names: Names, width: int) -> Head:
    """`answer_logits` [B,T,2]: how likely an answer begins and ends at each token (Devlin 2019, §4.2)."""
    if "qa_outputs.weight" not in names:
        return NONE
    found = Output("answer_logits", "text", (Dense("answers", width, names.shape("qa_outputs.weight")[0]),))
    return (found,), linear("qa_outputs", "heads.answers")


def scores(config: Fields, names: Names, width: int) -> Head:
    """A decoder's `score`: of each token, or of the last in a row that is not padding."""
    if config.head("ForTokenClassification"):
        return classifier(names, "text", width, "score")
    pad = config.raw("pad_token_id")
    return classifier(names, "text", width, "score", after=(Last(real=True, pad_id=pad),))


def joined(*heads: Head) -> Head:
    return tuple(o for outputs, _ in heads for o in outputs), tuple(r for _, rows in heads for r in rows)
