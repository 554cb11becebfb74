"""Training: the loop, the compiled step, the optimizer, checkpoints, metrics and the progress line.

Knows the task *protocol* (`unimodal.task`), never a task, tokenizer or head.
"""
