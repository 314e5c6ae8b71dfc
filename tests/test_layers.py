"""The import arrows of the package, read from the source, and what `import elastic_attention` may not do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import elastic_attention

ROOT = Path(elastic_attention.__file__).parent
ROWS = [
    {"errors"},
    {"types", "locks", "records", "settings", "tasks", "workers"},
    {"config", "sparsity"},
    {"router", "patterns", "kernels"},
    {"attention", "cache", "paging"},
    {"models"},
    {"training", "evaluation", "serving", "viz"},
    {"cli", "__main__"},
]
ROW_OF = {name: number for number, names in enumerate(ROWS) for name in names}
# `ElasticConfig.for_model` describes a model, so it looks down when it is called.
SANCTIONED = {("config.py", "models.families", "for_model")}
STDLIB_ONLY = {"errors", "records", "settings", "tasks", "workers"}
OWNERS = {"transformers": {"models"}, "huggingface_hub": {"models"}, "peft": set()}

FILES = sorted(ROOT.rglob("*.py"))


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def read_imports(path):
    """(absolute dotted name, enclosing function or None) of every import that can run."""
    package = ["elastic_attention", *path.relative_to(ROOT).parts[:-1]]
    found = []

    def visit(node, function):
        if is_type_checking(node):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import name` may name a module.
            names = [f"{module}.{alias.name}" for alias in node.names] if not node.module else [module]
            found.extend((name, function) for name in names)
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), None)
    return found


def unit_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_a_row():
    unknown = {unit_of(path) for path in FILES} - set(ROW_OF) - {"__init__"}
    assert not unknown, f"give {sorted(unknown)} a row in this test and in the architecture"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_up(path):
    unit, name = unit_of(path), str(path.relative_to(ROOT))
    if unit == "__init__":
        assert not [target for target, _ in read_imports(path) if target.startswith("elastic_attention")]
        return
    wrong = []
    for target, function in read_imports(path):
        parts = target.split(".")
        if parts[0] != "elastic_attention" or parts[1:] in ([], ["__version__"]):
            continue
        other = parts[1]
        if other not in ROW_OF:  # a public name of the package itself
            wrong.append(f"{target}: import it from its own module")
        elif (
            other != unit and ROW_OF[other] >= ROW_OF[unit] and (name, ".".join(parts[1:]), function) not in SANCTIONED
        ):
            wrong.append(f"{target} stands in row {ROW_OF[other]}, {unit} in row {ROW_OF[unit]}")
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_outside_packages_stay_where_they_belong(path):
    unit = unit_of(path)
    for target, function in read_imports(path):
        top = target.split(".")[0]
        if top in OWNERS:
            assert unit in OWNERS[top], f"{target}: only {sorted(OWNERS[top])} may import {top}"
        if unit in STDLIB_ONLY and function is None:
            assert top in sys.stdlib_module_names | {"elastic_attention"}, f"{unit} is plain Python, {target} is not"


def test_the_reader_sees_what_it_should(tmp_path, monkeypatch):
    """A test of the test: every way of importing is found, with its function; type-only imports are not."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "kernels" / "one.py"
    path.parent.mkdir()
    path.write_text(
        "import torch.nn\nfrom ..models import attach\nfrom .. import cache\nfrom . import two\nfrom .three import x\n"
        "if TYPE_CHECKING:\n    from ..cli import main\ndef f():\n    from ..viz.a import b\n"
    )
    assert read_imports(path) == [
        ("torch.nn", None),
        ("elastic_attention.models", None),
        ("elastic_attention.cache", None),
        ("elastic_attention.kernels.two", None),
        ("elastic_attention.kernels.three", None),
        ("elastic_attention.viz.a", "f"),
    ]


# Importing the package --------------------------------------------------------------------------------------------


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


OPTIONAL = ("transformers", "huggingface_hub", "safetensors", "peft", "rich", "typer", "jinja2", "matplotlib", "gguf")


def test_importing_needs_torch_alone_and_says_nothing():
    said = run_python(
        "import sys, elastic_attention as e\n"
        "e.hybrid_attention, e.StreamingConfig(), e.UnsupportedModel, e.model_sparsity_ratio\n"
        f"loaded = [name for name in {OPTIONAL} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "assert 'torch' in sys.modules\n"
    )
    assert said == ""


def test_importing_everything_patches_nothing():
    said = run_python(
        "import transformers, torch\n"
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS\n"
        "from transformers import DynamicCache, LlamaForCausalLM\n"
        "before = [dict(vars(x)) for x in (DynamicCache, LlamaForCausalLM, torch.nn.Module, torch.nn.functional)]\n"
        "import elastic_attention as e\n"
        "[getattr(e, name) for name in e.__all__]\n"
        "after = [dict(vars(x)) for x in (DynamicCache, LlamaForCausalLM, torch.nn.Module, torch.nn.functional)]\n"
        "assert before == after\n"
        "assert 'elastic' not in ALL_ATTENTION_FUNCTIONS.valid_keys()\n"
    )
    assert said == ""


def test_public_names():
    from elastic_attention import errors

    names = elastic_attention.__all__
    assert names == sorted(names) and set(names) == set(elastic_attention._HOMES)
    assert set(names) <= set(dir(elastic_attention))  # what an interactive shell completes
    for name in names:
        value = getattr(elastic_attention, name)
        assert value.__doc__ and value.__name__ == name
    exceptions = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert exceptions <= set(names)
    assert all(issubclass(getattr(errors, name), errors.ElasticAttentionError) for name in exceptions)
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        elastic_attention.atach  # noqa: B018
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    typed = [a.name for node in ast.walk(tree) if is_type_checking(node) for i in node.body for a in i.names]
    assert set(typed) == set(names)  # what a type checker sees is what runs
