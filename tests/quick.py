"""What several tests share: compiling in a hurry, and the names of parameters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unimodal.sharding import path_name


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that this version of XLA has."""
    found = {}
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        found[name] = value
    return found


# Nearly all the time of small tests goes into compiling; this is four to six times faster and no less exact.
_OPTIONS = _known(
    {
        "xla_backend_optimization_level": "0",
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_llvm_disable_expensive_passes": True,
    }
)


def quick(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit`, compiled for haste rather than speed."""
    return jax.jit(function, compiler_options=_OPTIONS, **options)


def named(tree: Any) -> dict[str, np.ndarray]:
    """Every array of a module (or of its gradients) under its dotted name."""
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
