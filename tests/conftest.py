"""Every test runs strictly: four CPU devices, no silent change of dtype or rank, warnings as errors."""

import os

import jax
from hypothesis import HealthCheck, settings

from mlclip_jax import compilation_cache

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# One cache of compiled programs for all workers and their processes, kept between runs.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
compilation_cache.enable()
os.environ["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir or ""

# The same examples every time, however slow the machine.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
