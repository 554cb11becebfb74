"""Evaluations that a config attaches, one file per kind: `kinds/x_y.py` holds the frozen dataclass `XY`.

`config.evaluations.probe = dict(kind="linear_probe", source="folder:photos")` asks one more question of the model, at the
end of a run and in `launch.py eval`, on any workdir or published checkpoint.
"""
