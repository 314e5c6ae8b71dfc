"""The rules of the house that a machine can check."""

import ast
import importlib
import inspect
import re
import statistics
from pathlib import Path

import pytest

import elastic_attention

ROOT = Path(elastic_attention.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path):
    return str(path.relative_to(ROOT))


def count_lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_lengths_of_the_files():
    lengths = sorted(map(count_lines, FILES))
    longest = max(FILES, key=count_lines)
    assert lengths[-1] <= 350, f"{name_of(longest)} has {lengths[-1]} lines; one idea a file"
    assert statistics.median(lengths) <= 120
    assert lengths[int(0.9 * len(lengths))] <= 220


def is_documented(path, name, node):
    """Documented here, on the base class whose method this is, or on a protocol of the module."""
    if ast.get_docstring(node) or "." not in name:
        return bool(ast.get_docstring(node))
    owner, method = name.split(".")
    module = importlib.import_module(".".join(["elastic_attention", *path.relative_to(ROOT).with_suffix("").parts]))
    bases = [
        *getattr(module, owner).__mro__[1:],
        *(c for c in vars(module).values() if getattr(c, "_is_protocol", False)),
    ]
    return any(inspect.getdoc(vars(base)[method]) for base in bases if method in vars(base))


def public_definitions(tree):
    """Public classes and functions of a module, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | FUNCTIONS) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, FUNCTIONS) and not item.name.startswith("_"):
                        yield f"{node.name}.{item.name}", item


def is_kernel(node):
    """Compiled for a GPU: arguments are pointers and numbers of the kernel language, which knows no annotations."""
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_are_documented_and_typed(path):
    missing = [] if ast.get_docstring(TREES[path]) else ["the module"]
    for name, node in public_definitions(TREES[path]):
        if not is_documented(path, name, node):
            missing.append(f"{name} (docstring)")
        if isinstance(node, FUNCTIONS) and not is_kernel(node):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.returns is None or any(a.annotation is None for a in arguments if a.arg not in ("self", "cls")):
                missing.append(f"{name} (types)")
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_unfinished_or_unsafe_code(path):
    source, found = path.read_text(encoding="utf-8"), []
    for word in ("TODO", "FIXME", "XXX", "NotImplementedError"):
        if re.search(rf"\b{word}\b", source):
            found.append(word)
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"bare except in line {node.lineno}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads", "os.system"):
                found.append(f"{called} in line {node.lineno}")
            if any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords):
                found.append(f"remote code in line {node.lineno}")
    assert not found


def test_names_of_the_files():
    forbidden = {"utils", "util", "helper", "helpers", "manager", "misc", "v2", "common"}
    assert not [name_of(p) for p in FILES if set(re.split(r"[_.]", p.stem)) & forbidden]


def count_repeated_lines(paths, block=6):
    """Lines in blocks of six that were seen before; imports, blank lines and closing brackets do not count."""
    seen, repeated, total = set(), 0, 0
    for path in paths:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [x for x in lines if len(x) > 3 and not x.startswith(("import ", "from ", "#"))]
        total += len(lines)
        marked = set()
        for i in range(len(lines) - block + 1):
            key = tuple(lines[i : i + block])
            if key in seen:
                marked.update(range(i, i + block))
            seen.add(key)
        repeated += len(marked)
    return repeated, total


def test_little_is_said_twice(tmp_path):
    repeated, total = count_repeated_lines(FILES)
    assert repeated <= 0.03 * total
    twin = tmp_path / "twin.py"
    twin.write_text("\n".join(f"value_{i} = {i}" for i in range(12)))
    assert count_repeated_lines([twin, twin]) == (12, 24)
