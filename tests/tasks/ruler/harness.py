"""What an lm-evaluation-harness says about RULER, read from its source without running it.

    python tests/tasks/ruler/harness.py FOLDER_OF_LM_EVAL

prints the JSON that stands in harness.json.
"""

import ast
import json
import re
import sys
from pathlib import Path

TEMPLATES = {"cwe": "cwe_utils.py", "fwe": "fwe_utils.py", "qa": "qa_utils.py", "vt": "vt_utils.py"}
YAML = ("niah_single_1", "vt", "cwe", "fwe", "qa_squad")


def read_harness(folder):
    """Templates, answer prefixes, longest answers and knobs."""
    ruler = Path(folder) / "tasks" / "ruler"
    found = {"niah": {"template": read_constant(ruler / "niah_utils.py", "TEMPLATE")}}
    found["niah"] |= {
        "needle": read_constant(ruler / "prepare_niah.py", "NEEDLE"),
        "noise": re.search(r'haystack = "(The grass[^"]*)"', (ruler / "prepare_niah.py").read_text())[1],
        "prefixes": sorted(read_formatted(ruler / "prepare_niah.py", "mentioned in the provided text")),
        "knobs": read_knobs(ruler / "niah_utils.py"),
    }
    for task, file in TEMPLATES.items():
        config = read_constant(ruler / file, "CONFIG")
        config = config.get("variable_tracking", config)
        found[task] = {"template": config["template"], "prefix": config["answer_prefix"]}
    found["qa"]["document"] = read_constant(ruler / "qa_utils.py", "DOCUMENT_PROMPT")
    found["longest"] = {
        name: int(re.search(r"max_gen_toks: (\d+)", (ruler / f"{name}.yaml").read_text())[1]) for name in YAML
    }
    return found


def read_constant(path, name):
    """The literal that a module assigns to `name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise LookupError(f"{path} has no {name}")


def read_formatted(path, part):
    """The f-strings that hold `part`, with {} where something is put in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            text = "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            if part in text:
                found.add(text)
    return found


def read_knobs(path):
    """function -> the literal keyword arguments of its `generate_samples`."""
    knobs = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("niah_"):
            call = next(
                c for c in ast.walk(node) if isinstance(c, ast.Call) and getattr(c.func, "id", "") == "generate_samples"
            )
            knobs[node.name] = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    return knobs


if __name__ == "__main__":
    print(json.dumps(read_harness(sys.argv[1]), indent=1))
