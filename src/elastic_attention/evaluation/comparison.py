"""Dense, all-sparse, routed and random heads on the same held-out samples: the work of `elastic-attn eval`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from ..models.handle import Handle
from ..records import write_file
from .methods import Method
from .quality import SampleScore, SuiteConfig, draw_suite, score_method
from .summary import summarize_methods


def compare_methods(
    handle: Handle, tokenizer: Any, suite: SuiteConfig, output: Path, *, identity: dict[str, Any], workers: int = 0
) -> dict[str, Any]:
    """Score the routers of `handle` beside dense, all sparse, and random heads at the routers' own MSR.

    Args:
        output: folder of the JSON lines, one file a method; a killed comparison goes on there.
        identity: what else decides the scores, such as model, routers and budget.

    Returns:
        Metrics of a quality record, see `summarize_methods`.

    Raises:
        ElasticAttentionError: `output` holds scores of another comparison.
        ValueError: the dense model masters none of the kinds.
    """
    claim_folder(output, identity | {"suite": dataclasses.asdict(suite)})
    batches = draw_suite(suite, tokenizer, workers)
    results: list[tuple[Method, Sequence[SampleScore]]] = []
    for name in ("dense", "all_sparse", "routed"):
        method = Method(name=name)
        results.append((method, score_method(method, handle, batches, output / f"{method.label}.jsonl")))
    msr = sum(s.msr for s in results[-1][1]) / len(results[-1][1])
    random = Method(name="random", target=round(msr, 3))
    results.append((random, score_method(random, handle, batches, output / f"{random.label}.jsonl")))
    return summarize_methods(results)


def claim_folder(output: Path, identity: dict[str, Any]) -> None:
    """Note whose scores a folder holds, so that scores of different models or samples never mix.

    Raises:
        ElasticAttentionError: it holds those of another comparison.
    """
    path, text = output / "comparison.json", json.dumps(identity, indent=2, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ElasticAttentionError(
            f"{output} holds scores of another model, other routers or other samples; choose another --output or "
            "remove that folder."
        )
    write_file(path, text)
