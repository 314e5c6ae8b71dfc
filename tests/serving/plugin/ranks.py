"""An engine of two ranks, asked in processes of their own: python ranks.py LENGTHS NEW OPTIONS FILE."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def ask_ranks(served, lengths, new, **options):
    """[(tokens, report) of each prompt], and the routes (requests, L, heads of it) in the table of each rank; two ranks
    unless `options` say otherwise."""
    own = {"model": str(served.model_folder), "tensor_parallel_size": 2, "enforce_eager": True}
    own["additional_config"] = {"elastic_attention": {"routers": str(served.routers)}}
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    folder = Path(__file__).parent
    settings["PYTHONPATH"] = os.pathsep.join([str(folder), str(folder.parents[1]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name:
        answer = Path(name, "answer.json")
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(lengths), str(new), json.dumps(own | options), str(answer)],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(answer.read_text())


def join_ranks(ranks, heads):
    """Routes (requests, L, G) from those of the ranks, `heads` = G; ranks that share a head must agree."""
    copies = max(1, len(ranks) // heads)
    assert all(ranks[i] == ranks[i - i % copies] for i in range(len(ranks)))
    return [[sum(parts, []) for parts in zip(*layers, strict=True)] for layers in zip(*ranks[::copies], strict=True)]


if __name__ == "__main__":
    from served_models import make_params, make_prompts, read_routes, run_engine
    from vllm import LLM

    from elastic_attention.serving.vllm import register

    register()
    prompts = make_prompts(json.loads(sys.argv[1]))
    engine = LLM(skip_tokenizer_init=True, seed=0, **json.loads(sys.argv[3]))
    results = run_engine(engine, prompts, make_params(int(sys.argv[2])))
    Path(sys.argv[4]).write_text(json.dumps([results, read_routes(engine, len(prompts))]))
