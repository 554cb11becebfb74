"""The loss of each example by itself, every so many steps: which records a model finds hard, or has wrong."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from unimodal.objectives.terms import WholeBatch, as_scalars, terms
from unimodal.sharding import local_rows
from unimodal.storage import is_remote
from unimodal.task import Task
from unimodal.training.step import Program, TrainState

FOLDER = "example_losses"


class ExampleLosses:
    """Writes WORKDIR/example_losses/TASK-STEP.parquet (.jsonl without pyarrow) with the columns step, id and loss.

    A loss is that of a batch of this example alone, with the weights before the step; chance (dropout, say) is drawn anew.
    Losses that judge examples by one another, such as CLIP's, have none of the kind, and `note` is told so, once.
    """

    def __init__(
        self,
        program: Program,
        tasks: Mapping[str, Task],
        workdir: epath.PathLike,
        every: int,
        note: Callable[[str], None],
    ) -> None:
        self._program, self._tasks, self._every, self._note = program, tasks, every, note
        self._folder = epath.Path(workdir) / FOLDER
        self._compiled: dict[str, Callable[..., Any] | None] = {}

    def look(self, step: int, state: TrainState, batches: Mapping[str, Any], ids: Mapping[str, Any]) -> None:
        """Write the losses of the batches of step number `step`, before it changes the state. Without ids nothing is."""
        if not self._every or step % self._every:
            return
        for name, found in ids.items():
            if name not in self._compiled:
                self._compiled[name] = self._compile(name, state, batches[name])
            if (losses := self._compiled[name]) is None:
                continue
            values = losses(state, batches[name])
            whole = multihost_utils.process_allgather(values, tiled=True) if jax.process_count() > 1 else values
            rows = local_rows(self._program.mesh, self._tasks[name].batch_size, self._program.accumulate)
            self._write(name, step, list(map(str, found)), np.asarray(whole)[rows])

    def _compile(self, name: str, state: TrainState, batch: Any) -> Callable[..., Any] | None:
        program, task, parts = self._program, self._tasks[name], []

        def one(state: TrainState, example: Any, key: jax.Array) -> jax.Array:
            model = nnx.merge(program.structure(), state.parameters, state.variables, state.kept)
            alone = jax.tree.map(lambda x: x[None], example)
            loss, metrics = task.loss(model, alone, key=key, step=state.step)
            parts.extend(terms(loss))
            return as_scalars(loss, metrics)[0]

        def every(state: TrainState, batch: Any) -> jax.Array:
            if program.accumulate > 1:
                batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
            key = jax.random.fold_in(jax.random.key(program.seed), state.step)
            keys = jax.random.split(jax.random.fold_in(key, zlib.crc32(name.encode())), task.batch_size)
            return jax.vmap(one, in_axes=(None, 0, 0))(state, batch, keys)

        jax.eval_shape(every, state, batch)
        if any(isinstance(part, WholeBatch) for part in parts):
            self._note(f"{name} judges examples by one another: there is no loss of each to write")
            return None
        return jax.jit(every)

    def _write(self, name: str, step: int, ids: list[str], losses: np.ndarray) -> None:
        process = jax.process_index()
        stem = f"{name}-{step:08}" + (f"-{process}" if process else "")
        if not is_remote(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            import pyarrow as pa
            import pyarrow.parquet as parquet
        except ImportError:
            lines = [json.dumps({"step": step, "id": i, "loss": float(v)}) for i, v in zip(ids, losses, strict=True)]
            (self._folder / f"{stem}.jsonl").write_text("\n".join(lines) + "\n")
            return
        table = pa.table(
            {"step": pa.array([step] * len(ids), pa.int64()), "id": ids, "loss": losses.astype(np.float32)}
        )
        out = io.BytesIO()
        parquet.write_table(table, out)
        (self._folder / f"{stem}.parquet").write_bytes(out.getvalue())
