"""Asks an engine of two ranks, in a process of its own: python ask_ranks.py MODEL ROUTERS; prints JSON."""

import json
import sys

if __name__ == "__main__":
    from served_models import make_params, make_prompts, run_engine
    from vllm import LLM

    from elastic_attention.serving.vllm import register

    register()
    engine = LLM(
        sys.argv[1],
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        tensor_parallel_size=2,
        additional_config={"elastic_attention": {"routers": sys.argv[2]}},
    )
    print(json.dumps(run_engine(engine, make_prompts([40, 150, 300, 97]), make_params(12))), flush=True)
