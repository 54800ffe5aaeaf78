"""The package reads like a short book: budgets, forbidden constructs, import contracts.

Every rule is a pure function of a module's source, so that the last test of each kind can show
it a violation: a rule that cannot fail is no rule. To raise a budget, add a line with its reason
to RAISED; a line that is no longer needed fails too.
"""

import ast
import io
import re
import shutil
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "stepdistill"


def texts(paths: Iterable[Path]) -> dict[str, str]:
    """Contents of files by their names in the tree."""
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(paths)}


# An exported folder among the assets brings its pipeline file along; that is no chapter.
MODULES = texts(p for p in PACKAGE.rglob("*.py") if PACKAGE / "assets" not in p.parents)
PIPELINES = texts((ROOT / "pipelines").glob("*.py"))
PROSE = texts([ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

BUDGETS = {
    "code lines": 40,
    "arguments": 7,
    "nesting": 3,
    "module lines": 400,
    "method file lines": 200,
}
# (subject, budget): (limit, reason). Subjects: "stepdistill/x.py" or "stepdistill/x.py:Class.name".
RAISED: dict[tuple[str, str], tuple[int, str]] = {}

# "stepdistill/x.py: construct": reason.
EXCUSED: dict[str, str] = {
    "stepdistill/networks/lora.py: takes **kwargs in public": "a view hands on its network's own",
    "stepdistill/networks/lora.py: has an untyped public argument": "the same arguments",
    "stepdistill/networks/inputs.py: takes **kwargs in public": "a view, too",
    "stepdistill/networks/inputs.py: has an untyped public argument": "the same arguments",
}

PREDICTIONS = {"x0", "eps", "v", "flow", "edm"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NOWHERE_NAMES = {"utils", "common", "core", "helpers", "misc"}
OWN_OBJECTS = {"self", "players", "method", "turn", "batch", "config"}
# Where a package is imported by another name than it is installed by.
INSTALLED_AS = {
    "PIL": "pillow",
    "cleanfid": "clean-fid",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def parse(source: str) -> ast.Module:
    return ast.parse(source)


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Every function in a module, nested ones too, with its dotted name."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, Definition | ast.ClassDef)
        name = f"{prefix}{child.name}" if named else prefix
        if isinstance(child, Definition):
            yield name, child
        yield from functions(child, f"{name}." if named else prefix)


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Top-level functions and methods that a reader may call: no leading underscore, or dunder."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(member, Definition) and not re.match(r"_(?!_)", member.name):
                yield member.name, member


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that are neither blank, nor comment, nor docstring."""
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet | {tokenize.ENDMARKER}:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(parse(source)):
        if isinstance(node, Definition | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            text = node.body[0]
            lines -= set(range(text.lineno, text.end_lineno + 1))
    return lines


def function_lengths(source: str) -> dict[str, int]:
    """Code lines of each function, signature included."""
    code = code_lines(source)
    found = list(functions(parse(source)))
    return {n: len(code & set(range(f.lineno, f.end_lineno + 1))) for n, f in found}


def arguments(function: Definition | ast.Lambda) -> list[ast.arg]:
    """All arguments but `self` and `cls`."""
    a = function.args
    every = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [arg for arg in every if arg is not None and arg.arg not in ("self", "cls")]


def nesting(node: ast.AST, inside_else: bool = False) -> int:
    """How deep compound statements lie in each other below `node`; `elif` opens no level."""
    deep = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)
    own = isinstance(node, (*deep, Definition)) and not inside_else
    below = [nesting(child, is_elif(node, child)) for child in ast.iter_child_nodes(node)]
    return own + max(below, default=0)


def is_elif(node: ast.AST, child: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]


def measures(path: str, source: str) -> Iterator[tuple[str, str, int]]:
    """(subject, budget, value) for everything in a module that has a budget."""
    lines = source.splitlines()
    yield path, "module lines", len(lines)
    if path.startswith("stepdistill/methods/"):
        yield path, "method file lines", len(lines)
    for name, length in function_lengths(source).items():
        yield f"{path}:{name}", "code lines", length
    for name, function in functions(parse(source)):
        yield f"{path}:{name}", "arguments", len(arguments(function))
        yield f"{path}:{name}", "nesting", nesting(function) - 1


def too_much(modules: dict[str, str], raised: dict[tuple[str, str], tuple[int, str]]) -> list[str]:
    """What exceeds its budget, and raised budgets that nothing needs."""
    taken = {(s, b): v for path, text in modules.items() for s, b, v in measures(path, text)}
    limits = {key: raised.get(key, (BUDGETS[key[1]],))[0] for key in taken}
    over = [f"{key}: {v}, {limits[key]} allowed" for key, v in taken.items() if v > limits[key]]
    idle = [f"{key}: no need to raise" for key in raised if taken.get(key, 0) <= BUDGETS[key[1]]]
    return over + idle


def test_everything_is_within_its_budget():
    assert MODULES and any(path.startswith("stepdistill/methods/") for path in MODULES)
    assert sum(len(function_lengths(text)) for text in MODULES.values()) > 50
    assert too_much(MODULES, RAISED) == []


def test_most_functions_are_short():
    lengths = [n for text in MODULES.values() for n in function_lengths(text).values()]
    assert statistics.median(lengths) <= 8
    assert statistics.quantiles(lengths, n=20)[-1] <= 30


DEEP = "def f():\n  if a:\n    for b in c:\n      while d:\n        with e:\n          pass\n"
FLAT = "def f():\n  if a: pass\n  elif b: pass\n  elif c: pass\n  elif d: pass\n  else: pass\n"
LONG = "def f():\n" + "  a = 1\n" * 39


@pytest.mark.parametrize(
    ("source", "budget"),
    [
        (LONG + "  a = 1\n", "code lines"),
        ("def f(a, b, *c, d, e, g, h, **k): pass\n", "arguments"),
        (DEEP, "nesting"),
        ("a = 1\n" * 401, "module lines"),
        ("a = 1\n" * 201, "method file lines"),
    ],
)
def test_a_broken_budget_is_seen(source: str, budget: str):
    seen = too_much({"stepdistill/methods/x.py": source}, {})
    assert any(budget in each for each in seen)


@pytest.mark.parametrize(
    "source",
    [
        LONG + '\n\n  # why\n\n  """no docstring, but the budget is full"""\n'.replace('"""', "#"),
        'def f():\n  """' + "words\n" * 60 + '"""\n',
        "class A:\n  def f(self, a, b, c, d, e, g, h): pass\n",
        FLAT,
    ],
    ids=["comments", "docstring", "self", "elif"],
)
def test_what_costs_nothing(source: str):
    assert too_much({"stepdistill/x.py": source}, {}) == []


def test_a_raised_budget_must_be_needed():
    raised = {("stepdistill/x.py:f", "nesting"): (4, "shows the rule")}
    assert too_much({"stepdistill/x.py": DEEP}, raised) == []
    assert too_much({"stepdistill/x.py": FLAT}, raised) != []


def called(node: ast.AST) -> str:
    """The dotted name a call calls, as far as it is written as one; else nothing."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def roots(node: ast.AST) -> set[str]:
    """Top-level names of the foreign packages an import statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return {node.module.partition(".")[0]}
    return set()


def own_names(node: ast.AST) -> set[str]:
    """Parts of the names of our own modules in an import statement."""
    if isinstance(node, ast.Import):
        ours = [alias.name for alias in node.names if alias.name.startswith("stepdistill.")]
        return {part for name in ours for part in name.split(".")}
    if isinstance(node, ast.ImportFrom) and (node.level or "stepdistill" in roots(node)):
        return {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return set()


def keyword(node: ast.AST, name: str) -> bool:
    """Whether a call sets the keyword `name` to something other than False."""
    given = [k.value for k in node.keywords if k.arg == name] if isinstance(node, ast.Call) else []
    return any(getattr(value, "value", True) is not False for value in given)


def touches_own_attributes(node: ast.AST) -> bool:
    if called(node) not in ("getattr", "hasattr", "setattr") or not node.args:
        return False
    return ast.unparse(node.args[0]).partition(".")[0] in OWN_OBJECTS


CONSTRUCTS = {
    "moves to a fixed device": lambda n: called(n).endswith(".cuda"),
    "prints": lambda n: called(n) == "print",
    "unpickles": lambda n: (
        bool(roots(n) & UNPICKLERS)
        or called(n) in ("torch.load", "torch.save")
        or (isinstance(n, ast.ImportFrom) and n.module == "torch" and names_load(n))
        or keyword(n, "allow_pickle")
    ),
    "catches everything": lambda n: isinstance(n, ast.ExceptHandler) and n.type is None,
    "asserts": lambda n: isinstance(n, ast.Assert),
    "imports a nowhere module": lambda n: bool(own_names(n) & NOWHERE_NAMES),
    "asks its own objects what they are": touches_own_attributes,
}


def names_load(node: ast.ImportFrom) -> bool:
    return any(alias.name in ("load", "save") for alias in node.names)


def signature_faults(tree: ast.Module) -> set[str]:
    """What public signatures must not have."""
    faults = set()
    for _, function in public_functions(tree):
        if function.args.kwarg is not None:
            faults.add("takes **kwargs in public")
        if any(argument.annotation is None for argument in arguments(function)):
            faults.add("has an untyped public argument")
    return faults


def prediction_names(node: ast.AST) -> set[str]:
    """Prediction names that a statement compares with or dispatches on."""
    match node:
        case ast.Compare():
            compared = [node.left, *node.comparators]
        case ast.MatchValue():
            compared = [node.value]
        case ast.Dict() if len(node.keys) > 1:
            compared = node.keys
        case _:
            return set()
    held = [e for c in compared for e in (c.elts if hasattr(c, "elts") else [c])]
    return {e.value for e in held if isinstance(e, ast.Constant) and e.value in PREDICTIONS}


def faults(path: str, source: str) -> set[str]:
    """Everything forbidden that a module does."""
    tree = parse(source)
    nodes = list(ast.walk(tree))
    found = {name for name, is_one in CONSTRUCTS.items() if any(map(is_one, nodes))}
    found |= signature_faults(tree)
    if tree.body and not ast.get_docstring(tree):
        found.add("does not say what it is about")
    if path != "stepdistill/process.py" and any(map(prediction_names, nodes)):
        found.add("knows parameterisations")
    if NOWHERE_NAMES & set(Path(path).with_suffix("").parts):
        found.add("has a nowhere name")
    return {f"{path}: {fault}" for fault in found}


def test_nothing_forbidden_is_done():
    assert any(map(prediction_names, ast.walk(parse(MODULES["stepdistill/process.py"]))))
    found = set().union(*(faults(path, text) for path, text in MODULES.items()))
    assert found - EXCUSED.keys() == set(), "forbidden"
    assert EXCUSED.keys() - found == set(), "excused for nothing"


SINS = {
    "x.cuda()": "moves to a fixed device",
    "print(1)": "prints",
    "import pickle": "unpickles",
    "from joblib import load": "unpickles",
    "torch.load('x')": "unpickles",
    "from torch import load": "unpickles",
    "np.load('x', allow_pickle=True)": "unpickles",
    "try: pass\nexcept: pass": "catches everything",
    "assert x": "asserts",
    "from .utils import x": "imports a nowhere module",
    "from stepdistill import common": "imports a nowhere module",
    "import stepdistill.core": "imports a nowhere module",
    "getattr(self, 'x')": "asks its own objects what they are",
    "hasattr(players.student, 'x')": "asks its own objects what they are",
    "def f(**kwargs: int): pass": "takes **kwargs in public",
    "class A:\n  def __init__(self, **kwargs: int): pass": "takes **kwargs in public",
    "def f(x): pass": "has an untyped public argument",
    "a = prediction == 'eps'": "knows parameterisations",
    "a = p in ('x0', 'v')": "knows parameterisations",
    "match p:\n  case 'v' | 'x': pass": "knows parameterisations",
    "{'eps': 1, 'v': 2}[p]": "knows parameterisations",
    "x = 1": "does not say what it is about",
}
VIRTUES = [
    "console.print(x)",
    "np.load('x', allow_pickle=False)",
    "try: pass\nexcept ValueError: pass",
    "from torch.utils.data import Dataset",
    "from diffusers.utils import logging",
    "getattr(torch, name)",
    "def _f(x, **kwargs): pass",
    "def f(x: int):\n  def g(y, **kwargs): pass",
    "a = role == 'critic'",
    "d = Denoiser(net, process, 'eps')",
]


@pytest.mark.parametrize(("source", "fault"), SINS.items())
def test_a_sin_is_seen(source: str, fault: str):
    assert f"stepdistill/x.py: {fault}" in faults("stepdistill/x.py", source)


@pytest.mark.parametrize("source", VIRTUES)
def test_a_virtue_is_left_alone(source: str):
    assert faults("stepdistill/x.py", f'"""About."""\n{source}') == set()


def test_a_nowhere_folder_is_seen():
    assert faults("stepdistill/utils/x.py", "") == {"stepdistill/utils/x.py: has a nowhere name"}


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Check the import contracts of the package in a folder."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    return subprocess.run([*command, "--no-cache"], cwd=folder, capture_output=True, text=True)


def test_imports_point_one_way():
    done = lint_imports(ROOT)
    contracts = len(PROJECT["tool"]["importlinter"]["contracts"])
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {contracts} kept, 0 broken" in done.stdout
    assert int(re.search(r"Analyzed (\d+) files", done.stdout)[1]) >= len(MODULES)


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("process.py", "from . import trainer", "bottom-up"),
        ("solver.py", "from . import critic", "bottom-up"),
        ("methods/diffusion.py", "from . import consistency", "one another"),
        ("somewhere.py", "", "bottom-up"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, module: str, statement: str, contract: str):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(PACKAGE, tmp_path / "stepdistill", ignore=ignored)
    with (tmp_path / "stepdistill" / module).open("a") as file:
        file.write(f"\n{statement}\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert re.search(f"{contract}.* BROKEN", done.stdout), done.stdout


def foreign(source: str, nodes: str = "all") -> set[str]:
    """Packages a module imports that are neither its own nor Python's; "top": when imported."""
    tree = parse(source)
    inner = {id(n) for _, f in functions(tree) for n in ast.walk(f)} if nodes == "top" else set()
    found = set().union(*(roots(node) for node in ast.walk(tree) if id(node) not in inner))
    return found - sys.stdlib_module_names - {"stepdistill"}


def declared(*extras: str) -> set[str]:
    """Names of the distributions pyproject asks for."""
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + sum((optional[e] for e in extras), [])
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted}


def undeclared(modules: dict[str, str]) -> set[str]:
    """Packages imported but not asked for; extras may be imported inside functions only."""
    extras = [e for e in PROJECT["project"]["optional-dependencies"] if e != "dev"]
    missing = set()
    for nodes, allowed in (("top", declared()), ("all", declared(*extras))):
        used = set().union(*(foreign(text, nodes) for text in modules.values()))
        missing |= {name for name in used if INSTALLED_AS.get(name, name) not in allowed}
    return missing


def test_what_is_imported_is_declared():
    assert {"torch", "diffusers"} <= set().union(*map(foreign, MODULES.values()))
    assert undeclared(MODULES) == set()


def test_an_undeclared_import_is_seen():
    assert undeclared({"x.py": "import nowhere.found"}) == {"nowhere"}
    assert undeclared({"x.py": "import cleanfid"}) == {"cleanfid"}
    assert undeclared({"x.py": "import os\nimport yaml\ndef f():\n  import cleanfid"}) == set()


def test_pipelines_stand_alone():
    assert PIPELINES
    for name, source in PIPELINES.items():
        alien = foreign(source) | {"stepdistill"} & set(re.findall(r"\w+", source))
        assert alien <= {"torch", "diffusers"}, name


def ruff(*arguments: str, source: str | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", *arguments]
    return subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)


def test_ruff_finds_nothing():
    done = ruff()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(ruff("--show-files").stdout.splitlines()) > len(MODULES)


def test_ruff_sees_a_long_line():
    done = ruff("--stdin-filename", "stepdistill/x.py", "-", source=f"x = '{96 * 'a'}'\n")
    assert done.returncode == 1 and "E501" in done.stdout


def test_the_prose_names_what_exists():
    """Make targets and files of the tree that README and CONTRIBUTING name in backticks."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    folders = r"(?:stepdistill|configs|pipelines|eval|tests|docs|notebooks)"
    for document, text in PROSE.items():
        makes = set(re.findall(r"(?:`|^)make ([a-z-]+)(?=`|\s*#|$)", text, re.M))
        paths = set(re.findall(rf"`({folders}/[\w./-]*)`", text))
        assert makes and paths, document
        assert makes <= targets, document
        real = {path for path in paths if "NAME" not in path}
        assert [path for path in sorted(real) if not (ROOT / path).exists()] == [], document
