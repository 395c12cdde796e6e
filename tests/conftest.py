"""Settings every test shares."""

import importlib.metadata
import os

# Compiling is most of the cost of these tests: XLA's cheap optimisation level, and where they are known to exist the
# older emitters, which compile a blockwise gradient four times faster. Set before jax starts its backend.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def rng():
    return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Each holds a few mappings of memory, of which a process may have 65,530: thousands of programs would crash it."""
    yield
    jax.clear_caches()


def pytest_collection_modifyitems(items):
    if jax.default_backend() != "gpu":
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
