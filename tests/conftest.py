"""Every test runs strictly: four CPU devices, no silent change of dtype or rank, warnings as errors.

MLCLIP_TEST_PLATFORM=cuda (or tpu) runs them there instead, on as many devices as there are.
"""

import collections
import gc
import logging
import os
import signal
from pathlib import Path

import checked_types  # noqa: F401  (before the package)
import jax
import jaxtyping
import pytest
from hypothesis import HealthCheck, settings
from processes import PLATFORM

from mlclip_jax import compilation_cache

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if PLATFORM != "cpu":
    # What is compared to 1e-5 is computed in float32, not in TensorFloat-32 or bfloat16.
    jax.config.update("jax_default_matmul_precision", "highest")
    from mlclip_jax.backbones import loading

    loading.default_dtype = lambda: "float32"

# One cache of compiled programs for all workers and their processes, kept between runs.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
compilation_cache.enable()
os.environ["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir or ""

# The same examples every time, however slow the machine.
settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")

# Files whose tests take longest, by `--durations=0`, which start first: a last long one would run alone.
LONGEST = """
e2e/test_processes.py e2e/test_sweep.py training/test_image_adapters.py training/test_train.py
training/test_pretrain.py
training/test_faults.py test_launchers.py e2e/test_kill.py parity/test_towers_parity.py
backbones/test_towers.py training/test_streaming.py experiments/test_demo.py training/test_lowering.py
test_compilation_cache.py e2e/test_kill_embed.py backbones/test_hub.py e2e/test_first_run.py
adapters/test_adapters.py experiments/test_tai_adapter.py experiments/test_sweep.py
""".split()

# Seconds and numbers of JAX's events in this process, and on a controller of workers in all of them.
events = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: events.update({name: seconds, f"{name} (number)": 1})
)


@pytest.fixture(autouse=True)
def unasked():
    """Each test begins as a library call does: what a command before it was let to say is not said."""
    yield
    log = logging.getLogger("mlclip_jax")
    log.setLevel(logging.NOTSET)
    log.propagate = True
    for handler in log.handlers[:]:
        log.removeHandler(handler)


def pytest_collection_modifyitems(items):
    missing = [name for name in LONGEST if not (Path(__file__).parent / name).is_file()]
    assert not missing, f"no such files of tests: {missing}"
    places = {str(Path(__file__).parent / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


def pytest_runtest_setup(item):
    """`devices(number)` skips on an accelerator with fewer; `cpu` skips on any."""
    for mark in item.iter_markers("devices"):
        if jax.device_count() < mark.args[0]:
            pytest.skip(f"needs {mark.args[0]} devices; there are {jax.device_count()}")
    if PLATFORM != "cpu" and item.get_closest_marker("cpu"):
        pytest.skip("is about CPUs")


def pytest_collection_finish():
    """What is imported by now stays: garbage collection passes over it, which takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def _signals_stay_as_they_were():
    """A handler that is left behind would answer SIGTERM in place of pytest."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    after = signal.signal(signal.SIGTERM, before)
    assert after is before, f"the test leaves {after} to answer SIGTERM"


@pytest.fixture
def types_unchecked():
    """For values of a wrong type, which are to be refused in a line, and not by the tests' own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    events.update(getattr(node, "workeroutput", {}).get("events", {}))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["events"] = dict(events)


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    whole = sum(getattr(report, "duration", 0) for report in reports)
    compiled = "/jax/core/compile/backend_compile_duration"
    kept = "/jax/compilation_cache/cache_retrieval_time_sec"
    if events[compiled] and whole:
        seconds = events[compiled] - events[kept]
        programs, from_cache = (f"{events[f'{name} (number)']:,}" for name in (compiled, kept))
        terminalreporter.write_line(
            f"compiling took {seconds:.0f} of the tests' {whole:.0f} s ({seconds / whole:.0%}), not counting "
            f"subprocesses; {from_cache} of {programs} programs came from the cache"
        )
