"""What a history of weights says of models: runs into a ledger and out of it, and what each commit did to each task.

| module | what it does |
|---|---|
| `weights` | the arrays of a run as a ledger holds them, and a model of them |
| `runs` | a workdir or a published checkpoint → a commit, and a commit → a folder that can be used |
| `measure` | what the evaluations say of a commit, example by example, kept so that it is asked once |
| `effects` | what a change did to each task, with a paired interval |
| `search` | which commit broke a task; which coefficient merges best |
| `importance` | the diagonal of the Fisher information, for merging |
| `words`, `graph`, `page` | all of it as lines, and as a page |
"""
