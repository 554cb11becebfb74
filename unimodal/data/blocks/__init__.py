"""Blocks of data in a task's config: one small frozen dataclass for each modality, nested in the task's config.

A block knows which column of a record it reads and what becomes of it. Bound to a size or an encoder it gives a `Part`:
the array's spec, how the column is read once, and how an example is made of it. `columns` joins parts into `Inputs`.
So every task reads every source that has the columns it needs. Fields that are `brought` belong to the weights rather than
to the data: normalisation, rate, vocabulary. A config that leaves them unset takes those of the checkpoint it starts from.

| block | reads | gives |
|---|---|---|
| `Images` | a picture | float32 `[H, W, C]`, augmented in training |
| `Views` | a picture | several views of it, float32 `[views, H, W, C]`, each drawn at random |
| `Changes` | a picture | it, and several that are made of it or come with it, with the words for what is different |
| `Pixels` | a picture | numbers of colours int32 `[H·W]` |
| `Texts` | a text, or several columns joined | ids int32 `[length]` |
| `Captions` | the same, to be written | ids int32 `[length]` with their end |
| `Sounds` | a recording, or marked stretches of it | float32 `[samples]` and its true length |
| `Transcripts` | what is said in a recording | characters as ids `[characters]` |
| `Labels` | a class, by name or number | int32 |
"""

from unimodal.data.blocks.changes import Changes
from unimodal.data.blocks.images import Images
from unimodal.data.blocks.inputs import Inputs, Part, brought, columns, noise
from unimodal.data.blocks.labels import Labels
from unimodal.data.blocks.pixels import Pixels
from unimodal.data.blocks.sounds import Sounds
from unimodal.data.blocks.texts import Captions, Texts
from unimodal.data.blocks.transcripts import Transcripts
from unimodal.data.blocks.views import Views

__all__ = [
    "Captions",
    "Changes",
    "Images",
    "Inputs",
    "Labels",
    "Part",
    "Pixels",
    "Sounds",
    "Texts",
    "Transcripts",
    "Views",
    "brought",
    "columns",
    "noise",
]
