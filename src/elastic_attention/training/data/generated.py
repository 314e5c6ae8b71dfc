"""The project's own tasks as a source of records."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ... import tasks
from .encoding import Encoder


class GeneratedSource:
    """Samples of `tasks.TRAINED_KINDS`, made when they are read; kinds take turns, then lengths.

    Args:
        kinds: names of kinds.
        lengths: prompt lengths in tokens.
        count: number of samples.
        corpora: folder of texts, None = those inside the package.
        encoder: its tokenizer sizes the prompts.
        seed, split: of the samples.
    """

    def __init__(
        self,
        *,
        kinds: tuple[str, ...],
        lengths: tuple[int, ...],
        count: int,
        corpora: str | None,
        encoder: Encoder,
        seed: int,
        split: str,
    ) -> None:
        self.kinds, self.lengths, self.count, self.corpora = kinds, lengths, count, corpora
        self.encoder, self.seed, self.split = encoder, seed, split

    def __len__(self) -> int:
        return self.count

    def where(self, index: int) -> str:
        """Kind and number of a sample."""
        return f"generated {self.kinds[index % len(self.kinds)]} {index}"

    def digest(self) -> str:
        """Checksum of the texts, of the code that makes samples, and of the settings."""
        code = hashlib.sha256()
        for path in sorted(Path(tasks.__file__).parent.glob("*.py")):
            code.update(path.read_bytes())
        settings = [self.kinds, self.lengths, self.count, self.seed, self.split]
        parts = [code.hexdigest(), tasks.corpora_digest(self.corpora), self.encoder.fingerprint(), settings]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def read(self, index: int) -> Any:
        """Make the row of a sample."""
        turn = index // len(self.kinds)
        sample = tasks.generate(
            self.kinds[index % len(self.kinds)],
            seed=self.seed,
            index=index,
            target_tokens=self.lengths[turn % len(self.lengths)],
            corpora=tasks.load_corpora(self.corpora),
            tokenizer=self.encoder.tokenizer,
            split=self.split,
        )
        return tasks.to_row(sample)
