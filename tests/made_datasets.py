"""A few rows of each data set of the papers, in its own format, with its own file ending."""

import json

SENTENCE = "the cabinet met again after the harvest and the council wrote down what it had seen in the valley"
WORDS = SENTENCE.split()


def prose(index, words):
    """Text that differs from index to index."""
    return " ".join(WORDS[(index * 5 + i * 3) % len(WORDS)] for i in range(words)).capitalize() + "."


def make_chatqa2(index):
    """One row of ChatQA2-Long-SFT."""
    return {
        "question": f"User: {prose(index, 80)}\n\n{prose(index + 1, 40)}\n\nWhat is text {index} about?\n\nAssistant:",
        "answer": f"It is about number {index}.",
        "word count": 120,
    }


def make_musique(index):
    """One row of MuSiQue."""
    paragraphs = [
        {"idx": i, "title": f"Page {i}", "paragraph_text": prose(index + i, 30), "is_supporting": i < 2}
        for i in range(4)
    ]
    return {
        "id": f"2hop__{index}", "paragraphs": paragraphs, "question": f"Who met whom in {index}?",
        "question_decomposition": [], "answer": f"Person {index}", "answer_aliases": [], "answerable": True,
    }  # fmt: skip


def make_colt(index):
    """One row of CoLT-132K."""
    return {
        "prefix": f"def count_{index}(rows):\n    total = 0\n    for row in rows:\n",
        "middle": f"        total += row[{index}]\n",
        "suffix": "    return total\n",
        "code_file_path": f"pkg/count_{index}.py",
        "project_dir": "pkg",
        "cross_file_dependency": [
            {"code_file_path": "pkg/rows.py", "abstraction": f"class Rows:\n    size = {index}\n" * 4}
        ],
    }


def make_gov_report(index):
    """One row of GovReport."""
    return {"report": prose(index, 150), "summary": prose(index, 12)}


def make_xsum(index):
    """One row of XSum."""
    return {"document": prose(index, 25), "summary": prose(index, 6), "id": str(index)}


MAKERS = {
    "chatqa2": make_chatqa2,
    "musique": make_musique,
    "colt": make_colt,
    "gov_report": make_gov_report,
    "xsum": make_xsum,
}


def write_file(path, kind, count):
    """`count` rows of a data set, as JSON lines, one JSON array or Parquet, by the ending of `path`."""
    rows = [MAKERS[kind](i) for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
