"""Eight fake devices, strict dtype promotion and the hypothesis profiles, before jax starts."""

import gc
import os
import tempfile
import threading
from importlib import metadata

# Tests compile far more than they run. `make test` compiles each program in a third of the time,
# into a slower one, and what compares bits (marker `bits`) as a user does, in a run of its own;
# `make test-full` compiles all as a user does.
QUICK = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
OLD = metadata.version("jaxlib").startswith("0.10.")
if OLD:  # later ones do not know it
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
os.environ["XLA_FLAGS"] = " ".join(flags + QUICK * ("FNN_QUICK" in os.environ))
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_TRACEBACK_FILTERING"] = "off"  # a third of the time of a test of errors

# Both workers, and tests that compile the same program, share what is compiled.
if "FNN_QUICK" in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix="fnn-compiled-")  # removed when this process ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

data = tempfile.TemporaryDirectory(prefix="fnn-data-")  # the home stays clean
os.environ["TFDS_DATA_DIR"] = data.name

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# Tracing makes millions of small objects, nearly all of which live on: collecting as seldom as this
# takes an eighth off the whole time.
gc.set_threshold(200_000, 20, 100)


def share_contexts(programs=100):
    """Let a thread lower so many programs in one MLIR context, as newer JAX does for ten.

    Making one for each takes a fourteenth of the time of all tests.
    """
    from jax._src.interpreters import mlir

    make, of_thread = mlir.make_ir_context, threading.local()

    def context():
        left = getattr(of_thread, "left", 0)
        if not left:
            of_thread.context, left = make(), programs
        of_thread.left = left - 1
        return of_thread.context

    mlir.make_ir_context = context


if OLD and "FNN_QUICK" in os.environ:
    share_contexts()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "readme_runs" not in item.name)  # the longest starts first
    for item in items:
        if item.get_closest_marker("cpu") and jax.default_backend() != "cpu":
            item.add_marker(pytest.mark.skip(reason="runs only on CPU"))
        if item.get_closest_marker("bits") and "FNN_QUICK" in os.environ:
            item.add_marker(pytest.mark.skip(reason="runs without FNN_QUICK"))
        if item.get_closest_marker("full") and "FNN_QUICK" in os.environ:
            item.add_marker(pytest.mark.skip(reason="in make test-full"))


def pytest_collection_finish():
    """What is imported by now stays, and need not be looked at again: 3% of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def programs_of_a_module():
    """In the full run, compiled programs are dropped after each module: they fill the memory."""
    yield
    if "FNN_QUICK" not in os.environ:
        jax.clear_caches()


slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("quick", max_examples=5, deadline=None, suppress_health_check=slow)
settings.register_profile("full", max_examples=300, deadline=None, suppress_health_check=slow)
settings.load_profile("quick")
