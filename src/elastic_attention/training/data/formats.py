"""Data sets in their own formats: what makes a training record of a row. A new format is one function and one line.

Each function takes a row and returns context, question, answer, and what differs from a chat record as metadata.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from .sources import RecordSource

# Raise it when a function makes another record of the same row.
VERSION = 1
Row = Mapping[str, Any]


def read_chatqa2(row: Row) -> dict[str, Any]:
    """ChatQA2-Long-SFT: `question` is "User: context, blank line, question, Assistant:"; `answer` a text or several.

    Records with a `document` beside a bare question (NarrativeQA) are read as well.
    """
    text = row["question"].removeprefix("User:").strip().removesuffix("Assistant:").strip()
    context, _, question = text.rpartition("\n\n")
    if isinstance(row.get("document"), str):
        context, question = row["document"], text
    answer = row["answer"]
    return {"context": context, "question": question, "answer": answer[0] if isinstance(answer, list) else answer}


def read_musique(row: Row) -> dict[str, Any]:
    """MuSiQue: `paragraphs` with `title` and `paragraph_text`, `question`, `answer`."""
    return {
        "context": "\n\n".join(f"{item['title']}\n{item['paragraph_text']}" for item in row["paragraphs"]),
        "question": f"Answer from the passages above, with nothing but the answer.\n\n{row['question']}",
        "answer": row["answer"],
    }


def read_colt(row: Row) -> dict[str, Any]:
    """CoLT-132K: `middle` completes `prefix`; `cross_file_dependency` lists `code_file_path` and `abstraction`."""
    files = [f"{item['code_file_path']}\n{item['abstraction']}\n\n" for item in row.get("cross_file_dependency") or []]
    return {
        "context": "".join([*files, f"{row.get('code_file_path', '')}\n", row["prefix"]]),
        "question": "",
        "answer": row["middle"],
        "metadata": {"is_chat": False},
    }


def read_gov_report(row: Row) -> dict[str, Any]:
    """GovReport: `report` and `summary`."""
    return {"context": row["report"], "question": "Write a summary of this report.", "answer": row["summary"]}


def read_xsum(row: Row) -> dict[str, Any]:
    """XSum: `document` and `summary`."""
    return {"context": row["document"], "question": "Summarise this article in one sentence.", "answer": row["summary"]}


FORMATS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "chatqa2": read_chatqa2,
    "musique": read_musique,
    "colt": read_colt,
    "gov_report": read_gov_report,
    "xsum": read_xsum,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FormattedSource:
    """Rows of a data set as records.

    Attributes:
        rows: in their own format.
        format: of `FORMATS`.
        category, task: of every record.
        shots: rows that stand before each record's own as worked examples; every row is in one record.
    """

    rows: RecordSource
    format: str
    category: str
    task: str
    shots: int = 0

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.shots + 1))

    def where(self, index: int) -> str:
        """Place of the row that is asked about."""
        return self.rows.where(self._places(index)[-1])

    def digest(self) -> str:
        """Checksum of the rows and of what is made of them."""
        parts = [VERSION, self.rows.digest(), self.format, self.category, self.task, self.shots]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def read(self, index: int) -> Any:
        """Make a record.

        Raises:
            DataError: a row misses a key or has another form; format, key and place are named.
        """
        *examples, asked = (self._convert(place) for place in self._places(index))
        shown = [f"{e['context']}\n\n{e['question']}\n\n{e['answer']}\n\n" for e in examples]
        metadata = asked.get("metadata", {}) | {"task": self.task}
        return asked | {
            "context": "".join([*shown, asked["context"]]),
            "category": self.category,
            "metadata": metadata,
        }

    def _places(self, index: int) -> range:
        size = self.shots + 1
        return range(index * size, min((index + 1) * size, len(self.rows)))

    def _convert(self, place: int) -> dict[str, Any]:
        row, where = self.rows.read(place), self.rows.where(place)
        try:
            record = FORMATS[self.format](row)
        except KeyError as error:
            raise DataError(
                f"{where}: misses {error}, which the format {self.format!r} has; check data.packs.sources.format."
            ) from error
        except (TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{where}: no row of the format {self.format!r} ({error}).") from error
        for key in ("context", "question", "answer"):
            if not isinstance(record[key], str):
                raise DataError(
                    f"{where}: the {key} of the format {self.format!r} must be text, got {record[key]!r:.60}."
                )
        return record
