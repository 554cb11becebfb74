"""Use of a trained model: load it by its path, and ask it.

| module | what it does |
|---|---|
| `loaded` | `load(path)`: a workdir of ours or a published checkpoint → a model with its tasks, ready to be asked |
| `published` | a published checkpoint as a task that can be asked, by what its outputs are |
| `inputs` | files, folders, globs, texts and sources → records, read one by one |
| `answering` | records → answers: batches of fixed shapes, errors by row |
| `embedding`, `index` | a query of several parts; embeddings that are searched |
| `export`, `preparation`, `card`, `stablehlo` | a model for other programs: weights, what prepares its inputs, a model card |
| `output` | answers → JSON lines or Parquet, which go on where they were stopped |
"""

from unimodal.use.loaded import Loaded, load

__all__ = ["Loaded", "load"]
