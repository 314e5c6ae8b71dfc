"""What tests of studies share: the settings of a tiny recipe, and a suite of words with categories."""

import dataclasses

from elastic_attention.tasks.suite import Skipped
from evaluation.word_suite import WordSuite

SETTINGS = """[pattern]
num_sink_tokens = 16
local_window = 32
block_size = 16
[routes]
init_std = 0.5
pooled_tokens = 8
[intervals]
single_qa = { low = 0.2, high = 0.3 }
few_shot = { low = 0.8, high = 1.0 }
code = { low = 0.8, high = 1.0 }
"""


class KindSuite(WordSuite):
    """`WordSuite` with a category for each of its tasks."""

    tasks, headline, substitutes = ("plain", "targets"), ("plain", "targets"), {}
    kinds: dict[str, str]

    def build(self, task, indexes, **arguments):
        for sample in super().build(task, indexes, **arguments):
            yield sample if isinstance(sample, Skipped) else dataclasses.replace(sample, category=self.kinds[task])
