"""Eight CPU devices and JAX at its strictest, for every test."""

import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compile time dominates these tests: XLA is told to optimise less, and each worker keeps what it has compiled, so that
# a program which several tests (or their child processes) run is compiled once. One folder per worker, because the
# cache's files are not written atomically. UNIMODAL_TEST_CACHE=DIR keeps what was compiled for the next run (with -n 0).
KEPT = os.environ.get("UNIMODAL_TEST_CACHE")
CACHE = KEPT or tempfile.mkdtemp(prefix="unimodal-tests-")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ.setdefault("NPROC", "32")  # threads enough for eight devices to wait in collectives: see launch.py
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # More than halves compilation. XLA dies of flags it does not know, so only where this one is known.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionfinish() -> None:
    if not KEPT:
        shutil.rmtree(CACHE, ignore_errors=True)
