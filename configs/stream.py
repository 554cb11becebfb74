"""Text, then pictures, then speech, then pairs, one after the other in one trunk: what is left of the first at the end?

python launch.py train --config=configs/stream.py --workdir=runs/stream --config.continual.strategy=replay

Four of the demo's tasks, 200 steps each. docs/continual.md has the strategies and what they came to. The
joint run beside it is `--config.schedule=alternate` with the other fields as they are.
"""

from ml_collections import ConfigDict

from configs import demo

ORDER = ("gpt", "vit", "wav2vec2", "clip")


def get_config() -> ConfigDict:
    config = demo.get_config()
    tasks = config.tasks
    config.update(schedule="sequence", sequence=ORDER, steps=800, eval_every=0, checkpoint_every=800)
    config.tasks = {name: tasks[name] for name in ORDER}
    # A rate that falls over the whole run would hold still by itself what comes last.
    config.optimizer.update(warmup=50, final=1.0)
    for task in config.tasks.values():
        task.weight = 1.0
    return config
