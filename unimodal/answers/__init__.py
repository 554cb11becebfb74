"""Answers of a task about inputs that nobody has labelled: one `Answer` for each thing that it can be asked.

A task offers them by a method, `answers(model, asked) -> Sequence[Answer]`, made of the functions here. An answer names the
modality that it reads and what it gives, turns a record into the arrays of one row, runs on the device, and says one row
of what came out as JSON. So `predict`, `embed`, the server and an exported program know no task by name.

| module | an answer that is |
|---|---|
| `answer` | the protocol, and what a user may ask for |
| `classes` | a class with probabilities; classes by their names alone |
| `embeddings` | a vector of unit length |
| `transcripts` | what was said in a recording |
| `texts` | a continuation; a caption; the words behind each `[MASK]` |
| `pictures` | a picture, drawn from words or made anew of another |
"""

from unimodal.answers.answer import (
    IMAGE,
    SOUND,
    TEXT,
    Answer,
    Asked,
    both_rows,
    pair_text_row,
    picture_row,
    read_any,
    sound_row,
    sound_windows,
    spoken,
    text_row,
)
from unimodal.answers.classes import class_answer, zero_shot_answer
from unimodal.answers.embeddings import (
    composed_answers,
    embedding_answer,
    offered,
    picture_features,
    sound_features,
    text_features,
)
from unimodal.answers.pictures import drawn_from_words, from_its_codes, with_gaps_filled, with_its_half_anew
from unimodal.answers.texts import HOLE, caption_answer, continuation_answer, masked_answer
from unimodal.answers.transcripts import transcript_answer, what_was_said

__all__ = [
    "HOLE",
    "IMAGE",
    "SOUND",
    "TEXT",
    "Answer",
    "Asked",
    "both_rows",
    "caption_answer",
    "class_answer",
    "composed_answers",
    "continuation_answer",
    "drawn_from_words",
    "embedding_answer",
    "from_its_codes",
    "masked_answer",
    "offered",
    "pair_text_row",
    "picture_features",
    "picture_row",
    "read_any",
    "sound_features",
    "sound_row",
    "sound_windows",
    "spoken",
    "text_features",
    "text_row",
    "transcript_answer",
    "what_was_said",
    "with_gaps_filled",
    "with_its_half_anew",
    "zero_shot_answer",
]
