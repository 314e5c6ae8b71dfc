"""Engines of vLLM's CPU build on a tiny random Qwen3, and the transformers path beside them."""

import importlib.util
import os

import pytest
from served_models import Engines, make_folder

for name, value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, so that tests can look inside
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",  # it grows with every new shape, which would hide what we may leak
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}.items():
    os.environ.setdefault(name, value)


class _Skipped(pytest.Module):
    """A test file whose imports need vLLM."""

    def collect(self):
        pytest.skip("the serving environment has vLLM: make test-serving", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """Skip every file here where vLLM is missing; a skip of this conftest would stop pytest itself."""
    if importlib.util.find_spec("vllm") is None:
        return _Skipped.from_parent(parent, path=module_path)
    return None


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A tiny Qwen3 with routers, in folders and in memory."""
    return make_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def layered(tmp_path_factory):
    """The same model with routers that decide once a layer."""
    return make_folder(tmp_path_factory.mktemp("layered"), granularity="layer")


@pytest.fixture(scope="session")
def engines(served):
    """Engines by their settings, one at a time."""
    made = Engines(served)
    yield made
    made.close()
