"""Eight fake devices, strict dtype promotion and the hypothesis profiles, before jax starts."""

import os
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"

os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="fnn-data-")  # the home stays clean

from hypothesis import HealthCheck, settings  # noqa: E402

slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("quick", max_examples=10, deadline=None, suppress_health_check=slow)
settings.register_profile("full", max_examples=300, deadline=None, suppress_health_check=slow)
settings.load_profile("quick")
