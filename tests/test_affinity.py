"""How tasks' gradients agree: against cosines taken one by one, and on the report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from unimodal.report import Report
from unimodal.sharding import make_mesh
from unimodal.training.affinity import affinity

RNG = np.random.default_rng(0)
# Four batches of each task's gradients: a and b share `layer`, c has a backbone of its own, and heads do not count.
GRADIENTS = {
    "a": [dict(layer=RNG.standard_normal((3, 4)), other=np.zeros(5), head=np.ones(7)) for _ in range(4)],
    "b": [dict(layer=RNG.standard_normal((3, 4)), other=np.zeros(5), head=-np.ones(7)) for _ in range(4)],
    "c": [dict(layer=np.zeros((3, 4)), other=RNG.standard_normal(5), head=np.ones(7)) for _ in range(4)],
}


def program() -> Any:
    """Stands in for a Program: batches are numbered, and gradients are looked up."""

    def gradient(name: str, _loss: Any) -> Any:
        def found(_state: Any, batch: Any, _key: Any) -> Any:
            g = {k: v.astype(np.float32) for k, v in GRADIENTS[name][int(batch["number"])].items()}
            return {"backbones": {"layer": g["layer"], "other": g["other"]}, "heads": {"head": g["head"]}}

        return found

    return SimpleNamespace(gradient=gradient, mesh=make_mesh(data=1), seed=0)


def compared(count: int = 2) -> dict[str, Any]:
    tasks: Any = {name: SimpleNamespace(loss=None) for name in GRADIENTS}
    batches = lambda _name: ({"number": np.int32(i)} for i in range(4))  # noqa: E731
    state: Any = None
    return affinity(program(), tasks, state, batches, count)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_cosines_by_hand() -> None:
    found = compared()
    layer = {name: [g["layer"] for g in each] for name, each in GRADIENTS.items()}
    mean = {name: np.mean(each, axis=0) for name, each in layer.items()}
    assert found["tasks"] == ["a", "b", "c"] and found["batches"] == 4
    table = found["cosine"]
    np.testing.assert_allclose(table[0][1], cosine(mean["a"], mean["b"]), rtol=1e-5)
    assert table[0][1] == table[1][0]
    np.testing.assert_allclose(
        table[0][0], cosine(np.mean(layer["a"][:2], axis=0), np.mean(layer["a"][2:], axis=0)), rtol=1e-5
    )
    assert table[0][2] is None and table[2][1] is None and table[2][2] is not None
    np.testing.assert_allclose(found["norm"][0], np.linalg.norm(mean["a"]), rtol=1e-5)


def test_nan_stays_nan(monkeypatch: Any) -> None:
    monkeypatch.setitem(GRADIENTS["b"][0], "layer", np.full((3, 4), np.nan))
    found = compared()
    assert np.isnan(found["norm"][1]) and np.isnan(found["cosine"][0][1])
    assert np.isfinite(found["norm"][0]) and np.isfinite(found["cosine"][0][0])


def test_the_report_shows_the_table(tmp_path: Any) -> None:
    page = Report(title="x", affinity=compared()).write(tmp_path / "report.html").read_text()
    assert "How the tasks agree" in page and page.count('class="own"') == 3 and "–" in page
    assert "How the tasks agree" not in Report(title="x").write(tmp_path / "none.html").read_text()


def test_gradients_are_the_step_s(tmp_path: Any) -> None:
    """Of the real program: the gradient that a step of plain SGD takes."""
    import tiny

    from unimodal.sharding import from_local_rows

    experiment = tiny.build(tiny.plain("vit"))
    task, program = experiment.tasks[0], experiment.program
    state = program.init()
    batch = from_local_rows(next(experiment.train_batches(task)), experiment.mesh)
    with jax.set_mesh(experiment.mesh):
        found = program.gradient("vit", task.loss)(state, batch, jax.random.key(3))
        again = program.gradient("vit", task.loss)(state, batch, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, found, again)
    norm = float(np.sqrt(sum(float((np.asarray(x) ** 2).sum()) for x in jax.tree.leaves(found))))
    metrics = program.step({"vit": (task.loss, 1.0)})(state, {"vit": batch})[1]
    np.testing.assert_allclose(norm, metrics["vit"]["gradient_norm"], rtol=1e-4)
