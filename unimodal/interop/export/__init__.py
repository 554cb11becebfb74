"""A model of ours as a published one: config.json, weights under the published names, and what prepares its inputs.

A module for each architecture says what its config.json would be for a model of ours; nothing else. The family in
`families/`, which reads such files, then says what that config means, and where that is not what our model is, the
difference is the reason for a refusal. So what is written is what would be read.
"""

from unimodal.interop.export.handed import Handed, Offer, Part
from unimodal.interop.export.matching import Exported, match
from unimodal.interop.export.writing import write_checkpoint

__all__ = ["Exported", "Handed", "Offer", "Part", "match", "write_checkpoint"]
