"""One file per system. `tasks/x_y.py` holds the frozen dataclass `XY`; a config's `tasks.NAME.kind` names the file."""
