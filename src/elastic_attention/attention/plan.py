"""From routes and patterns to what a kernel reads per head, and the call of the kernel.

Shape letters: B sequences, T queries, S keys, H query heads, G KV heads, D head dim.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..config import SparsePattern, StreamingConfig, TriangleConfig, XAttentionConfig
from ..errors import BackendUnavailable
from ..kernels.backends import check_tensors, choose_backend, is_fused, log_choice
from ..kernels.block_lists import BlockLists, count_rows, find_first_blocks, pack_mask
from ..kernels.gather import attend_gather
from ..kernels.masked import attend_masked
from ..kernels.modes import FULL, LISTS, STREAMING, TRIANGLE
from ..kernels.reference import ChooseKeys, attend_modes
from ..kernels.spans import Spans, list_spans
from ..kernels.xattention import choose_blocks, score_blocks, select_blocks
from ..patterns import TokenChoice, TrianglePattern, XAttentionPattern, build_pattern
from .reads import note_reads

_CODES = {StreamingConfig: STREAMING, XAttentionConfig: LISTS, TriangleConfig: TRIANGLE}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What every head reads.

    Attributes:
        head_is_sparse: (B, G) bool.
        modes: (B, G) int32 or uint8, numbers of `kernels.modes`.
        config: sizes of STREAMING and TRIANGLE heads.
        lists: key blocks of LISTS heads.
        dense_rows: (B, 2) int32, positions whose queries read everything in TRIANGLE and LISTS heads.
        choose_keys: what the queries of LISTS heads read where each chooses by itself.
    """

    head_is_sparse: Tensor
    modes: Tensor
    config: StreamingConfig
    lists: BlockLists | None
    dense_rows: Tensor | None
    choose_keys: ChooseKeys | None = None

    @property
    def is_plain(self) -> bool:
        """Are there only full and streaming heads?"""
        return self.lists is None and self.dense_rows is None and self.choose_keys is None


def choose_for(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: SparsePattern,
    full_pattern: str | XAttentionConfig = "full",
    *,
    is_training: bool = False,
) -> str:
    """The backend for q (B, H, T, D), k and v (B, G, S, D) and these patterns, as `choose_backend` chooses.

    Args:
        is_training: for the verb that every backend can train.

    Raises:
        BackendUnavailable: the one that was asked for cannot run this.
        TypeError: `pattern` is no pattern configuration.
    """
    built = build_pattern(pattern)  # refuses what is no pattern
    if isinstance(built, TokenChoice):
        if is_fused(backend):
            raise BackendUnavailable(
                f"backend={backend!r} cannot run {built.name}: each query chooses its own keys. Use 'auto' or 'cpu'."
            )
        if backend == "auto":
            return log_choice("cpu", f"no fused kernel lets each query choose its own keys, as {built.name} does")
        return choose_backend(backend)
    chosen = choose_backend(
        backend,
        q.device,
        q.dtype,
        q.shape[-1],
        block_size=pattern.block_size,
        needs_gradient=not is_training and has_gradient(q, k, v),
    )
    list_block = next((c.block_size for c in (full_pattern, pattern) if isinstance(c, XAttentionConfig)), None)
    return check_tensors(backend, chosen, q, k, v, list_block=list_block)


def has_gradient(*tensors: Tensor) -> bool:
    """Will a result of these tensors be differentiable?"""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def make_plan(
    q: Tensor,
    k: Tensor,
    head_is_sparse: Tensor,
    pattern: SparsePattern,
    full_pattern: str | XAttentionConfig,
    scale: float,
    spans: Spans | None,
    prompt_lengths: Tensor | None,
    backend: str,
) -> Plan:
    """Modes, lists and dense rows of a call; on a GPU nothing is read by the host.

    Args:
        q: (B, H, T, D); k: (B, G, S, D). Packed: B is 1.
        head_is_sparse: (sequences, G) bool.
        prompt_lengths: (sequences,) int, as in `hybrid_attention`.
        backend: a name, not "auto".

    Raises:
        ValueError: the two patterns cannot stand beside each other.
    """
    built = build_pattern(pattern)
    choice = built if isinstance(built, TokenChoice) else None
    xattention = next((c for c in (full_pattern, pattern) if isinstance(c, XAttentionConfig)), None)
    if full_pattern != "full" and not (full_pattern is xattention and isinstance(pattern, StreamingConfig)):
        raise ValueError(
            f"full_pattern={full_pattern!r} beside pattern={pattern!r} is unknown; use 'full', or an XAttentionConfig "
            "beside a StreamingConfig."
        )
    sparse = LISTS if choice is not None else _CODES[type(pattern)]
    if choice is not None and k.shape[2] <= choice.dense_tokens:  # every query reads everything: no choice to make
        choice, sparse, head_is_sparse = None, STREAMING, torch.zeros_like(head_is_sparse)
    full = FULL if full_pattern == "full" else LISTS
    routes = head_is_sparse.to(q.device)
    is_numbered = (full, sparse) == (FULL, STREAMING) == (0, 1)  # the bytes of a bool are the numbers: no launch
    modes = routes.contiguous().view(torch.uint8) if is_numbered else torch.where(routes, sparse, full).int()
    dense_rows = None
    if isinstance(pattern, TriangleConfig):
        ends = prompt_lengths if prompt_lengths is not None else _key_lengths(q, k, spans)
        dense_rows = TrianglePattern(pattern).find_dense_rows(ends.to(q.device))
    elif choice is not None and prompt_lengths is not None:
        dense_rows = choice.find_dense_rows(prompt_lengths.to(q.device))
    elif xattention is not None and prompt_lengths is not None:
        dense_rows = XAttentionPattern(xattention).find_dense_rows(prompt_lengths.to(q.device))
    lists = None
    if xattention is not None:
        build_lists = _list_blocks
        if is_fused(backend):
            from ..kernels.triton.xattention import build_block_lists as build_lists
        with torch.no_grad():
            lists = build_lists(q, k, modes, xattention, scale, spans=spans, dense_rows=dense_rows)
    config = pattern.streaming if isinstance(pattern, TriangleConfig) else pattern
    if not isinstance(config, StreamingConfig):  # no head streams; kernels want sizes all the same
        config = StreamingConfig(
            num_sink_tokens=config.block_size, local_window=config.block_size, block_size=config.block_size
        )
    if choice is None:
        note_reads(modes, lists, dense_rows, config, q, k, spans)
    return Plan(
        head_is_sparse=head_is_sparse,
        modes=modes,
        config=config,
        lists=lists,
        dense_rows=dense_rows,
        choose_keys=None if choice is None else partial(choice.show_keys, scale=scale),
    )


def attend_planned(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, spans: Spans | None, backend: str
) -> tuple[Tensor, Tensor]:
    """out like q and lse (B, H, T) float32; rows of no sequence are 0 and -inf."""
    if is_fused(backend):
        if backend == "hopper":
            from ..kernels.hopper import attend_hopper as attend_fused
        else:
            from ..kernels.triton.prefill import attend_triton as attend_fused
        return attend_fused(
            q, k, v, plan.modes, plan.config, scale, spans=spans, lists=plan.lists, dense_rows=plan.dense_rows
        )
    if backend == "reference":
        attend = attend_modes
    elif plan.is_plain:
        return _attend_pieces(q, k, v, plan, scale, spans)
    else:
        attend = attend_masked
    return attend(
        q,
        k,
        v,
        plan.modes,
        plan.config,
        scale,
        spans=spans,
        lists=plan.lists,
        dense_rows=plan.dense_rows,
        choose_keys=plan.choose_keys,
    )


def _attend_pieces(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, spans: Spans | None
) -> tuple[Tensor, Tensor]:
    if spans is None:
        return attend_gather(q, k, v, plan.head_is_sparse, plan.config, scale)
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:-1], float("-inf"), dtype=torch.float32)
    for row, b, queries, keys in list_spans(spans, q, k):
        part = q[b : b + 1, :, queries], k[b : b + 1, :, keys], v[b : b + 1, :, keys]
        part_out, part_lse = attend_gather(*part, plan.head_is_sparse[row : row + 1], plan.config, scale)
        out[b, :, queries], lse[b, :, queries] = part_out[0], part_lse[0]
    return out, lse


def _list_blocks(
    q: Tensor,
    k: Tensor,
    modes: Tensor,
    config: XAttentionConfig,
    scale: float,
    *,
    spans: Spans | None,
    dense_rows: Tensor | None,
) -> BlockLists:
    """Block lists without a GPU kernel, one sequence after the other."""
    if spans is None:
        return choose_blocks(q, k, config, scale, dense_rows=dense_rows)
    rows, blocks = count_rows(q.shape[2], k.shape[2], config.block_size, spans)
    mask = torch.zeros(len(modes), q.shape[1], rows, blocks, dtype=torch.bool, device=q.device)
    for row, b, queries, keys in list_spans(spans, q, k):
        dense = None if dense_rows is None else dense_rows[row : row + 1]
        mass = score_blocks(q[b : b + 1, :, queries], k[b : b + 1, :, keys], config, scale, dense_rows=dense)
        chosen = select_blocks(*mass, config)[0]
        mask[row, :, : chosen.shape[1], : chosen.shape[2]] = chosen
    first = find_first_blocks(len(modes), q.shape[2], k.shape[2], config.block_size, spans)
    return pack_mask(mask, first.to(q.device), config.block_size)


def _key_lengths(q: Tensor, k: Tensor, spans: Spans | None) -> Tensor:
    return torch.full((len(q),), k.shape[2], device=q.device) if spans is None else spans.key_length
