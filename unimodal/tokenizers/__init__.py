"""Device-side tokenizers: raw arrays of one modality → `Tokens`. Turning strings into ids happens in `unimodal.data`.

Each module here has a frozen `Config` and a `Tokenizer(config, width, rngs=…)`; a config names its tokenizer by module
(`kind`), so that a new modality is one new file.
"""
