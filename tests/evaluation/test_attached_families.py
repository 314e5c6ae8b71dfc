"""The runner on models of other families: fused projections, sliding layers, experts, partial rotation."""

import pytest
import torch
from word_suite import TokenTokenizer, WordSuite

from elastic_attention import attach
from elastic_attention.evaluation.plan import EvalPlan, parse_method
from elastic_attention.evaluation.runner import run_plan
from tiny_models import elastic_config, make_model

METHODS = tuple(map(parse_method, ("dense", "random@0", "routed", "routed/full", "triangle_mix")))
PLAN = EvalPlan(tasks=("plain", "targets"), lengths=(120,), samples=2, methods=METHODS, batch_tokens=240)


@pytest.mark.parametrize("family", ["qwen3", "phi3", "gemma3_text", "mixtral", "glm4"])
def test_every_method_answers(family, tmp_path):
    model = make_model(family)
    torch.manual_seed(1)
    handle = attach(model, elastic_config(model))
    handle.save_pretrained(tmp_path / "routers")
    handle.detach()
    lines = run_plan(
        PLAN, WordSuite(), model, TokenTokenizer(), tmp_path / "run", identity={}, routers=str(tmp_path / "routers")
    )
    by = {method.label: [line for line in lines if line.method == method.label] for method in METHODS}
    assert all(len(found) == 4 and not any(line.skipped for line in found) for found in by.values())
    dense, full = by["dense"], by["random@0.000"]
    facts = ("answer", "score", "kv_bytes", "kv_bytes_dense")
    assert [[getattr(x, f) for f in facts] for x in dense] == [[getattr(x, f) for f in facts] for x in full]
    assert any(line.msr > 0 for line in by["routed"])
    assert [x.routes for x in by["routed"]] == [x.routes for x in by["routed-full"]]
    assert "generate" not in vars(model)
