"""For tests of what a CPU computes in another way where it is the only device."""

import jax
import pytest


@pytest.fixture
def devices(monkeypatch, request):
    """JAX says that there is one device, or as many as a test asks for; there are eight."""
    monkeypatch.setattr(jax, "device_count", lambda: getattr(request, "param", 1))
