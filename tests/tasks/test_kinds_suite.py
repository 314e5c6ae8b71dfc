"""The project's own kinds as a suite: also for models that know no conversation."""

import pytest
from fake_tokenizer import FakeTokenizer

from elastic_attention.tasks.kinds_suite import KindsSuite
from elastic_attention.tasks.suite import SuiteSample, open_suite


class PlainTokenizer(FakeTokenizer):
    """A base model's; transformers raises ValueError for such a one."""

    chat_template = None

    def apply_chat_template(self, messages, **_):
        raise ValueError("tokenizer.chat_template is not set")


@pytest.mark.parametrize("task", ["needle", "classes", "prose"])
def test_models_without_a_chat_template_read_plain_prompts(task):
    (sample,) = open_suite("mixture").build(task, [0], length=1024, seed=1, tokenizer=PlainTokenizer())
    assert isinstance(sample, SuiteSample), sample
    assert "<user>" not in sample.prompt and len(sample.prompt_ids) <= 1024 and sample.target_ids


def test_a_length_that_is_too_small_is_named():
    (skipped,) = KindsSuite("mixture").build("needle", [0], length=100, seed=1, tokenizer=FakeTokenizer())
    assert "100" in skipped.reason and "512" in skipped.reason
