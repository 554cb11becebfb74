"""One task of the demo alone, in the same backbone, with the same batches and steps: what joint training is held against.

python launch.py train --config=configs/demo_solo.py:gpt --workdir=runs/solo_gpt
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(task: str = "gpt") -> ConfigDict:
    config = demo.get_config()
    if task not in config.tasks:
        raise ValueError(
            f"demo_solo takes one of {', '.join(config.tasks)}, as in configs/demo_solo.py:gpt; not {task!r}"
        )
    config.tasks = {task: config.tasks[task]}
    return config
