"""Quality of routing methods on held-out samples: same samples for every method, one JSON line a sample, resumable."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.answers import AnswerBatch, Row, collate_rows, draw_row, pad_token, score_answers
from ..models.handle import Handle
from ..patterns import build_pattern
from ..records import write_file
from ..sparsity import count_causal_pairs, count_read_pairs, effective_sparsity_ratio, model_sparsity_ratio
from ..tasks import KINDS, load_corpora
from .methods import Method, prepare_source


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleScore:
    """Result of one sample under one method."""

    kind: str
    category: str
    index: int
    prompt_tokens: int
    score: float
    loss: float
    msr: float
    esr_prefill: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """The samples of a comparison.

    Attributes:
        kinds: kinds of `tasks.KINDS`.
        lengths: prompt lengths in tokens; samples take them in turn.
        samples: of each kind.
        split: "heldout" or "heldout_format".
        tokens_per_forward: bound on rows * columns of a forward.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    lengths: tuple[int, ...] = (2048, 4096, 8000)
    samples: int = 400
    split: str = "heldout"
    seed: int = 1
    corpora: str | None = None
    tokens_per_forward: int = 65_536


def draw_suite(config: SuiteConfig, tokenizer: Any, workers: int = 0) -> list[AnswerBatch]:
    """All samples, grouped so that a forward holds samples of one length."""
    jobs = [
        (kind, index, config.lengths[index % len(config.lengths)])
        for kind in config.kinds
        for index in range(config.samples)
    ]
    rows = list(_draw_rows(config, tokenizer, jobs, workers))
    by_length: dict[int, list[Row]] = {}
    for (_, _, length), row in zip(jobs, rows, strict=True):
        by_length.setdefault(length, []).append(row)
    pad, batches = pad_token(tokenizer), []
    for length, group in sorted(by_length.items()):
        size = max(1, config.tokens_per_forward // (length + 64))
        batches += [collate_rows(group[i : i + size], pad=pad) for i in range(0, len(group), size)]
    return batches


def _draw_rows(
    config: SuiteConfig, tokenizer: Any, jobs: Sequence[tuple[str, int, int]], workers: int
) -> Iterable[Row]:
    from torch.utils.data import DataLoader

    return DataLoader(_Jobs(config, tokenizer, jobs), batch_size=None, num_workers=workers)


class _Jobs(torch.utils.data.Dataset[Row]):
    def __init__(self, config: SuiteConfig, tokenizer: Any, jobs: Sequence[tuple[str, int, int]]) -> None:
        self.config, self.tokenizer, self.jobs = config, tokenizer, jobs
        self.corpora = load_corpora(config.corpora)

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, i: int) -> Row:
        kind, index, length = self.jobs[i]
        c = self.config
        return draw_row(
            kind, seed=c.seed, index=index, length=length, corpora=self.corpora, tokenizer=self.tokenizer, split=c.split
        )


def score_method(method: Method, handle: Handle, batches: Sequence[AnswerBatch], output: Path) -> list[SampleScore]:
    """Score every sample under `method`; appends to `output` and asks nothing twice.

    Args:
        output: JSON lines, one sample each.

    Returns:
        Scores in the order of the batches. "exact" kinds score 1 when greedy decoding with decode="sparse" yields
        the answer, "token_accuracy" kinds the share of answer tokens that are the argmax.
    """
    from rich.progress import track

    done = {(s.kind, s.index): s for s in read_scores(output)}
    # Written anew, because a killed run may have left half a line at the end.
    write_file(output, "".join(json.dumps(asdict(score)) + "\n" for score in done.values()))
    pattern, make_source = build_pattern(handle.config.sparse_pattern), prepare_source(method, handle)
    with output.open("a", encoding="utf-8") as stream:
        for batch in track(batches, description=method.label):
            if all((row.kind, row.index) in done for row in batch.rows):
                continue
            moved = batch.to(handle.model.device)
            source, lengths = make_source(moved.sample_ids), moved.prompt_lengths
            with torch.no_grad(), handle.routed_by(source, is_sampling=False, prompt_lengths=lengths) as record:
                loss, accuracy = score_answers(handle.model, moved)
            routes = record.stack()
            msr = model_sparsity_ratio(routes).tolist()
            num_heads = routes.shape[1] * routes.shape[2]
            num_sparse = routes.sum(dim=(1, 2)).tolist()
            for i, row in enumerate(batch.rows):
                n, is_exact = len(row.prompt), KINDS[row.kind].metric == "exact"
                read = count_read_pairs(pattern, 0, n, num_heads=num_heads, num_sparse=int(num_sparse[i]))
                score = SampleScore(
                    kind=row.kind,
                    category=row.category,
                    index=row.index,
                    prompt_tokens=n,
                    score=float(accuracy[i].item() == 1.0) if is_exact else accuracy[i].item(),
                    loss=loss[i].item(),
                    msr=msr[i],
                    esr_prefill=effective_sparsity_ratio(read, num_heads * count_causal_pairs(0, n)) or 0.0,
                )
                if (row.kind, row.index) not in done:
                    done[row.kind, row.index] = score
                    stream.write(json.dumps(asdict(score)) + "\n")
            stream.flush()
    return [done[row.kind, row.index] for batch in batches for row in batch.rows]


def read_scores(path: Path) -> list[SampleScore]:
    """Scores written so far; half a line left by a killed run is ignored."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [SampleScore(**json.loads(line)) for line in lines if line.endswith("}")]
