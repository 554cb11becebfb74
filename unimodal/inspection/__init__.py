"""The data of an experiment, looked at before it is trained on: `look` counts and measures, `write_page` shows it.

| module | what it does |
|---|---|
| `looking` | splits, labels, lengths, what cannot be decoded, rows in two splits, examples a second |
| `twins` | records that are the same, or nearly so, in two splits |
| `views` | the arrays of an example as pictures, sounds and texts |
| `page` | one self-contained HTML page |
"""

from unimodal.inspection.looking import Looked, look
from unimodal.inspection.page import write_page

__all__ = ["Looked", "look", "write_page"]
