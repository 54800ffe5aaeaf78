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
from collections.abc import Iterable, Iterator, Sequence
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
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]

BUDGETS = {
    "code lines": 40,
    "arguments": 7,
    "nesting": 3,
    "module lines": 400,
    "method file lines": 200,
}
# (subject, budget): (limit, reason). Subjects: "stepdistill/x.py" or "stepdistill/x.py:Class.name".
RAISED: dict[tuple[str, str], tuple[int, str]] = {
    ("stepdistill/cli.py:evaluate", "arguments"): (
        16,
        "the options of a command are its arguments",
    ),
    ("stepdistill/cli.py:sample", "arguments"): (11, "the same"),
}

# "stepdistill/x.py: construct": reason.
EXCUSED: dict[str, str] = {
    "stepdistill/doctor/stubs.py: takes **kwargs in public": "stubs take what others' parts do",
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
    "huggingface_hub": "huggingface-hub",
    "sklearn": "scikit-learn",
    "torch_fidelity": "torch-fidelity",
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
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken" in done.stdout
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


# First-level folders and flat modules of the package; a room imports what stands below it.
ROOMS = {"rooms": 26, "floors": 11, "arrows": 130}
# Folders whose files are found by name, none of which may lean on another.
FOUND_BY_NAME = (
    "stepdistill/methods/",
    "stepdistill/teachers/backbones/",
    "stepdistill/data/sources/",
    "stepdistill/evaluation/metrics/",
    "stepdistill/evaluation/suites/",
)
Graph = dict[str, set[str]]


def room_of(parts: Sequence[str]) -> str:
    """The room of a module, given by the parts of its dotted name."""
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path: str, source: str) -> Iterator[tuple[str, ...]]:
    """Parts of the dotted name of everything of the package that a module imports, anywhere."""
    package = Path(path).parts[:-1]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            where = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((*where, alias.name) for alias in node.names)


def import_graph(modules: dict[str, str]) -> Graph:
    """Room → the other rooms it imports; a name of the package's root is of the room `__init__`."""
    graph: Graph = {room_of(Path(path).with_suffix("").parts): set() for path in modules}
    for path, source in modules.items():
        room = room_of(Path(path).with_suffix("").parts)
        ours = [name for name in imported(path, source) if name[0] == "stepdistill"]
        used = {room_of(name) if room_of(name) in graph else "__init__" for name in ours}
        graph[room] |= used - {room}
    return graph


def floors(graph: Graph) -> tuple[int, set[str]]:
    """Rooms in the longest chain of imports; and those in a circle of imports, or above one."""
    count, placed = 0, set()
    while ready := {room for room in graph.keys() - placed if graph[room] <= placed}:
        count, placed = count + 1, placed | ready
    return count, graph.keys() - placed


def counted(graph: Graph) -> dict[str, int]:
    """What ROOMS limits."""
    arrows = sum(map(len, graph.values()))
    return {"rooms": len(graph), "floors": floors(graph)[0], "arrows": arrows}


def arrow_faults(graph: Graph, order: Sequence[str]) -> list[str]:
    """Arrows against a reading order, as far as it names both rooms; circles; too much of each."""
    place = {room: number for number, room in enumerate(order)}
    pairs = [(a, b) for a in graph for b in graph[a] if a in place and b in place]
    upward = [f"upward: {a} imports {b}" for a, b in pairs if place[b] > place[a]]
    circles = [f"in or above a circle: {room}" for room in sorted(floors(graph)[1])]
    counts = counted(graph)
    much = [f"{counts[kind]} {kind}, {n} allowed" for kind, n in ROOMS.items() if counts[kind] > n]
    return upward + circles + much


def reading_order(readme: str) -> list[str]:
    """Rooms as "Reading the code" names them; those that "serve" all others come first."""
    chapter = readme.partition("## Reading the code")[2].partition("\n\n")[2].partition("\n\n")[0]
    listed, _, serving = chapter.partition(";")
    room = r"`stepdistill/(\w+)(?:/|\.py)`"
    return re.findall(room, serving) + re.findall(room, listed)


def test_the_rooms_stand_on_one_another(figure):
    graph = import_graph(MODULES)
    assert graph["cli"] and "jobs" in graph["__init__"] and graph["__main__"] == {"cli"}
    for kind, count in counted(graph).items():
        figure(kind, count)
    assert arrow_faults(graph, reading_order(PROSE["README.md"])) == []


def test_the_readme_lists_every_room_once_each_standing_on_those_before_it():
    graph, order = import_graph(MODULES), reading_order(PROSE["README.md"])
    assert sorted(order) == sorted(graph)
    for number, room in enumerate(order):
        assert graph[room] <= {*order[:number]}, room


def test_the_contracts_name_every_room_in_the_order_of_reading():
    (contract,) = [c for c in CONTRACTS if c["type"] == "layers"]
    layers = [layer.split(" | ") for layer in reversed(contract["layers"])]
    level = {room: number for number, layer in enumerate(layers) for room in layer}
    assert contract["exhaustive"]
    assert level.keys() == import_graph(MODULES).keys() - {"__init__"}
    levels = [level[room] for room in reading_order(PROSE["README.md"]) if room != "__init__"]
    assert levels == sorted(levels)


def test_what_is_found_by_name_does_not_lean_on_its_like():
    independent = {name for c in CONTRACTS if c["type"] == "independence" for name in c["modules"]}
    there = [f for f in FOUND_BY_NAME if any(path.startswith(f) for path in MODULES)]
    assert independent == {folder.replace("/", ".") + "*" for folder in there}
    for folder in FOUND_BY_NAME:
        assert f"`{folder}NAME.py`" in PROSE["CONTRIBUTING.md"], folder


@pytest.mark.parametrize(
    ("path", "statement", "rooms"),
    [
        ("a.py", "from .b import x", {"b"}),
        ("a.py", "from . import b, c", {"b", "c"}),
        ("a.py", "from . import b as other, RunConfig", {"b", "__init__"}),
        ("a.py", "from .c.d import x\nfrom .c import y", {"c"}),
        ("a.py", "def f():\n  from .b import x", {"b"}),
        ("a.py", "import stepdistill.c.d", {"c"}),
        ("a.py", "import stepdistill", {"__init__"}),
        ("a.py", "from stepdistill import b", {"b"}),
        ("a.py", "from stepdistill.b import x", {"b"}),
        ("a.py", "import b, torch.c\nfrom torch import a\nfrom os import path", set()),
        ("c/d.py", "from ..b import x\nfrom . import e\nfrom .e import x", {"b"}),
        ("c/d.py", "from .. import a", {"a"}),
        ("c/e/f.py", "from ...b import x\nfrom ..d import y\nfrom . import b", {"b"}),
        ("c/__init__.py", "from .d import x\nfrom ..a import y", {"a"}),
        ("__init__.py", "from .a import x\nfrom .c.d import x", {"a", "c"}),
    ],
)
def test_arrows_are_seen(path: str, statement: str, rooms: set[str]):
    names = ("__init__.py", "a.py", "b.py", "c/__init__.py", "c/d.py")
    modules = {f"stepdistill/{name}": "" for name in names}
    graph = import_graph({**modules, f"stepdistill/{path}": statement})
    assert set().union(*graph.values()) == rooms
    assert graph.keys() == {"__init__", "a", "b", "c"}


def pile(rooms: int, below: int) -> dict[str, str]:
    """Sources of rooms each of which imports the last `below` before it."""
    names = [f"r{number}" for number in range(rooms)]
    used = {name: names[max(0, n - below) : n] for n, name in enumerate(names)}
    return {f"stepdistill/{n}.py": "\n".join(f"from .{u} import x" for u in used[n]) for n in names}


@pytest.mark.parametrize(
    ("modules", "fault"),
    [
        (pile(26, 0), None),
        (pile(27, 0), "27 rooms, 26 allowed"),
        (pile(11, 1), None),
        (pile(12, 1), "12 floors, 11 allowed"),
        (pile(17, 17), "136 arrows, 130 allowed"),
        ({**pile(3, 1), "stepdistill/r1.py": "from . import r2"}, "upward: r1 imports r2"),
        (
            {"stepdistill/a.py": "from . import b", "stepdistill/b.py": "def f(): from . import a"},
            "in or above a circle: a",
        ),
    ],
)
def test_a_wrong_house_is_seen(modules: dict[str, str], fault: str | None):
    seen = arrow_faults(import_graph(modules), ["r0", "r1", "r2"])
    assert fault in seen if fault else seen == []


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


KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def changelog_faults(text: str, version: str) -> list[str]:
    """What a changelog lacks of the form that keepachangelog.com describes."""
    heads = re.findall(r"^## (.*)$", text, re.M)
    form = r"\[(?:Unreleased\]|(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d)"
    told = [re.fullmatch(form, head) for head in heads]
    strange = [f"heading: {head}" for head, match in zip(heads, told) if match is None]
    kinds = [f"kind: {k}" for k in re.findall(r"^### (.*)$", text, re.M) if k not in KINDS]
    names = [match[1] for match in told if match]
    order = [tuple(map(int, name.split("."))) for name in names if name]
    newest_first = order == sorted({*order}, reverse=True) and None not in names[1:]
    silent = [] if {version, None} & {*names} else [f"nothing of {version}"]
    return strange + kinds + silent + ([] if newest_first else ["order of versions"])


def renamed_keys(modules: dict[str, str]) -> set[tuple[str, str]]:
    """(old, new) of every key of the YAML that is refused with its new name."""
    return {
        pair
        for source in modules.values()
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "renamed"
        for pair in ast.literal_eval(node.value).items()
    }


def test_the_changelog_tells_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert changelog_faults(text, PROJECT["project"]["version"]) == []
    assert "(CHANGELOG.md)" in PROSE["README.md"]


def test_the_changelog_tells_of_every_key_that_is_refused():
    keys, rows = renamed_keys(MODULES), (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert keys
    for old, new in keys:
        assert any(re.search(rf"\b{old}`.*\|.*\b{new}`", row) for row in rows), (old, new)


GOOD = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n## [0.1.0] - 2026-01-01\n"


@pytest.mark.parametrize(
    ("text", "version", "fault"),
    [
        (GOOD, "0.1.0", None),
        (GOOD, "0.2.0", None),
        (GOOD.replace("[Unreleased]", "[0.2.0] - 2026-02-01"), "0.2.0", None),
        (GOOD.replace("[Unreleased]", "[0.2.0] - 2026-02-01"), "0.3.0", "nothing of 0.3.0"),
        (GOOD.replace("[Unreleased]", "[0.0.9] - 2026-02-01"), "0.1.0", "order of versions"),
        (GOOD + "## [Unreleased]\n", "0.1.0", "order of versions"),
        (GOOD.replace(" - 2026-01-01", ""), "0.1.0", "heading: [0.1.0]"),
        (GOOD.replace("Added", "New"), "0.1.0", "kind: New"),
    ],
)
def test_a_wrong_changelog_is_seen(text: str, version: str, fault: str | None):
    seen = changelog_faults(text, version)
    assert fault in seen if fault else seen == []
