"""Golden scores of LongBench: run the official scorers on random cases and note what they say.

`python benchmarks/longbench_golden.py FOLDER OUTPUT`, where FOLDER is a clone of github.com/THUDM/LongBench, in an
environment with rouge 1.0.1, jieba 0.42.1, fuzzywuzzy 0.18.0 (without python-Levenshtein) and numpy. The output holds
strings, numbers and checksums alone. Tests make the same cases again from their seeds and score them with this
project's metrics.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from golden import write_golden
from longbench_cases import METRICS, SHOWN, digest, make_cases, make_records, make_responses

OFFICIAL = {
    "qa_f1": "qa_f1_score",
    "qa_f1_zh": "qa_f1_zh_score",
    "rouge": "rouge_score",
    "rouge_zh": "rouge_zh_score",
    "classification": "classification_score",
    "retrieval": "retrieval_score",
    "retrieval_zh": "retrieval_zh_score",
    "count": "count_score",
    "code_sim": "code_sim_score",
}


def run_official(folder: Path) -> dict[str, Any]:
    """Everything that the golden file holds."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(folder / "LongBench"))
    import eval as official  # type: ignore[import-not-found]
    import metrics

    names = {function: metric for metric, function in OFFICIAL.items()}
    result: dict[str, Any] = {"metrics": {}, "tasks": {}}
    for metric in METRICS:
        score = getattr(metrics, OFFICIAL[metric])
        cases = list(make_cases(metric))
        scores = [float(score(p, a, all_classes=c)) for p, a, c in cases]
        shown = [[p, a, c, s] for (p, a, c), s in zip(cases[:SHOWN], scores[:SHOWN], strict=True)]
        result["metrics"][metric] = {"digests": digest(scores), "cases": shown}
    config = folder / "LongBench" / "config"
    prompts, longest = (json.loads((config / f"dataset2{n}.json").read_text("utf-8")) for n in ("prompt", "maxlen"))
    predicting = ast.parse((folder / "LongBench" / "pred.py").read_text("utf-8"))
    plain = next(ast.literal_eval(n.comparators[0]) for n in ast.walk(predicting)
                 if isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.NotIn))  # fmt: skip
    extended = next(ast.literal_eval(n.value) for n in ast.walk(predicting)
                    if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "datasets")  # fmt: skip
    for task, function in official.dataset2metric.items():
        metric = names[function.__name__]
        records = make_records(task, metric)
        columns = [[r[key] for r in records] for key in ("prediction", "answers", "length")]
        classes = records[0]["all_classes"]
        result["tasks"][task] = {
            "metric": metric,
            "prompt": hashlib.sha256(prompts[task].encode()).hexdigest(),
            "max_new_tokens": longest[task],
            "is_chat": task not in plain,
            "is_extended": task in extended,
            "score": official.scorer(task, columns[0], columns[1], classes),
            "score_by_bucket": official.scorer_e(task, *columns, classes),
        }
    prompt = (folder / "prompts" / "0shot.txt").read_text("utf-8")
    choices = ast.parse((folder / "pred.py").read_text("utf-8"))
    choices.body = [n for n in choices.body if isinstance(n, ast.FunctionDef) and n.name == "extract_answer"]
    scope: dict[str, Any] = {"re": re}
    exec(compile(choices, "pred.py", "exec"), scope)
    found = [scope["extract_answer"](response) for response in make_responses()]
    result["choices"] = {"prompt": hashlib.sha256(prompt.encode()).hexdigest(), "digests": digest(found)}
    result["choices"]["cases"] = [[r, f] for r, f in zip(make_responses(SHOWN), found[:SHOWN], strict=True)]
    return result


if __name__ == "__main__":
    write_golden(__doc__, "THUDM/LongBench", run_official)
