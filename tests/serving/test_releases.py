"""A vLLM that is too old is named before anything is loaded."""

import pytest

from elastic_attention.errors import BackendUnavailable
from elastic_attention.serving.vllm.layout import check_release


def test_releases():
    for release in ((0, 26, 0), (0, 33, 0), (1, 0, 0), (0, 0, "dev"), (0, 1, "dev1", "g1a2b3c4")):
        check_release(release)
    with pytest.raises(BackendUnavailable, match=r"vLLM 0\.25\.1 is too old.*vllm>=0\.26"):
        check_release((0, 25, 1))
