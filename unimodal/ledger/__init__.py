"""Weights with a history: commits in an ordinary git repository, beside tensors that are stored by their content.

| module | what it does |
|---|---|
| `git` | git's own plumbing, without hooks, a work tree or a global config |
| `locks` | who may write, and who may remove |
| `store` | tensors as safetensors files, named by their SHA-256 and checked whenever they are read |
| `manifest` | what a commit says: tensor → shape, type, logical axes and content |
| `ledger` | a ledger opened: refs, commits, history |
| `compare` | what changed between two commits, tensor by tensor |
| `arithmetic` | mean, task arithmetic, TIES and Fisher-weighted means of arrays |
| `changes` | revert, cherry-pick and merge of commits |
| `upkeep` | verify and gc |
| `exchange` | push and pull |
| `start` | a run that starts from the weights of a commit |
"""

from unimodal.ledger.ledger import Commit, Draft, Ledger
from unimodal.ledger.manifest import Entry, Manifest

__all__ = ["Commit", "Draft", "Entry", "Ledger", "Manifest"]
