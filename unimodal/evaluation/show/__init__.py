"""Samples for the report, one file per modality: what was asked, what the model made of it, and what is true.

Each is a function `(model, shown) → samples` once what it reads is given, which is what an evaluation's `show` takes.
"""
