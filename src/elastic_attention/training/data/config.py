"""What a recipe says about its data: files and their formats, packs, generated samples."""

from dataclasses import dataclass, field
from typing import Any

from .fitting import POLICIES
from .formats import FORMATS


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A data set in its own format.

    Attributes:
        format: of `data.formats.FORMATS`.
        category: of its samples.
        files, heldout_files: `*.jsonl`, `*.json` (one array), `*.parquet` or a Hugging Face dataset on disk.
        task: name of its samples in reports, None = the format.
        shots: rows before each sample's own that become worked examples in its context.
    """

    format: str
    category: str
    files: tuple[str, ...]
    heldout_files: tuple[str, ...] = ()
    task: str | None = None
    shots: int = 0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"data.packs.sources.format={self.format!r} is unknown; use one of {list(FORMATS)}.")
        if self.shots < 0:
            raise ValueError(f"data.packs.sources.shots={self.shots} must be at least 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """Samples joined to packs without padding, from files of records or from the generated kinds.

    Attributes:
        files: records as `*.jsonl`, `*.parquet` or a Hugging Face dataset on disk.
        heldout_files: records to validate on.
        sources: data sets in formats of their own, beside the files; without files and sources samples are generated.
        samples: number of generated samples; files tell theirs.
        tokens: of a pack, at most.
        per_step: packs of an optimiser step, on all ranks together.
        bad_records: what becomes of records that miss an answer, say: "error" or "skip".
        over_long: what becomes of samples longer than a pack: "error", "skip", or "truncate_middle" (of the context).
        lookahead: samples that may wait for a pack with room; more fill packs better and shuffle less.
        cache: folder of tokenised samples, None = the user's cache.
        template: further variables of the chat template, such as `enable_thinking = false`.
    """

    files: tuple[str, ...] = ()
    heldout_files: tuple[str, ...] = ()
    sources: tuple[SourceConfig, ...] = ()
    samples: int = 1024
    tokens: int = 65_536
    per_step: int = 24
    bad_records: str = "error"
    over_long: str = "error"
    lookahead: int = 64
    cache: str | None = None
    template: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("samples", "tokens", "per_step", "lookahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.packs.{name}={getattr(self, name)} must be at least 1.")
        if self.over_long not in POLICIES:
            raise ValueError(f"data.packs.over_long={self.over_long!r} is unknown; use one of {list(POLICIES)}.")
        if self.bad_records not in ("error", "skip"):
            raise ValueError(f"data.packs.bad_records={self.bad_records!r} is unknown; use 'error' or 'skip'.")

    @property
    def has_files(self) -> bool:
        """Are there files, so that nothing is generated?"""
        return bool(self.files or self.sources)

    @property
    def has_heldout(self) -> bool:
        """Is there anything to validate on?"""
        return not self.has_files or bool(self.heldout_files or any(s.heldout_files for s in self.sources))


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Samples of a run; the packs of a step are a function of (seed, step) alone.

    Attributes:
        kinds: kinds of `tasks.TRAINED_KINDS` in equal shares; empty = all of `tasks.KINDS`.
        corpora: folder made by `python -m elastic_attention.tasks.corpora`, None = the texts inside the package.
        lengths: prompt lengths of generated samples in tokens, taken in turn.
        workers: processes that make samples and tokens; any number gives the same ones.
        loss_on: "response" (answer tokens) or "all" (prompt tokens too, as the released code does).
        packs: how samples come together.
    """

    kinds: tuple[str, ...] = ()
    corpora: str | None = None
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    workers: int = 0
    loss_on: str = "response"
    packs: PackConfig = field(default_factory=PackConfig)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers} must be at least 0.")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"data.lengths={list(self.lengths)} must name prompt lengths of at least 1 token.")
