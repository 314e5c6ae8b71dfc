"""Rank a model's heads by their attention on needles and write static masks that keep the best ones full.

    python benchmarks/retrieval_heads.py --model smollm2 --msr 0.5 --msr 0.7 --output runs/retrieval

writes runs/retrieval/0.50 and so on; `elastic-attn eval --methods retrieval_heads@0.5=runs/retrieval/0.50` reads them.
"""

import argparse
from pathlib import Path

from elastic_attention import ElasticConfig, StreamingConfig
from elastic_attention.evaluation.retrieval_heads import rank_retrieval_heads, save_retrieval_mask
from elastic_attention.evaluation.session import open_base
from elastic_attention.tasks import load_corpora


def main() -> None:
    """Rank once, cut at every ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="folder, hub id or smollm2")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--msr", type=float, action="append", help="share of sparse heads; may be repeated")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--corpora", help="folder of tasks.corpora; default: the texts in the package")
    parser.add_argument("--device")
    options = parser.parse_args()
    base = open_base(options.model, device=options.device)
    pattern = ElasticConfig.for_model(base.model).sparse_pattern
    assert isinstance(pattern, StreamingConfig)  # what `for_model` takes by default
    scores = rank_retrieval_heads(
        base.model, base.tokenizer, load_corpora(options.corpora), samples=options.samples, length=options.length
    )
    facts = {"samples": options.samples, "length": options.length, "model": base.describe()}
    for msr in options.msr or [0.5, 0.7]:
        folder = options.output / f"{msr:.2f}"
        mask = save_retrieval_mask(folder, base.model, scores, msr=msr, pattern=pattern, facts=facts)
        print(f"{folder}: {int((~mask).sum())} of {mask.numel()} heads stay full")
    best = scores.flatten().argsort(descending=True)[:10].tolist()
    print("most attention on needles:", *(f"{i // scores.shape[1]}.{i % scores.shape[1]}" for i in best))


if __name__ == "__main__":
    main()
