"""One module per `model_type`: describe(config, names, directory) → Description. No model code."""
