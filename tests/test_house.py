"""The rules that keep the package small: layers, file sizes, public JAX only, a quick import.

Each rule maps a folder to the list of what breaks it there, so that it can be shown to fail.
"""

import ast
import graphlib
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jsoftmax"
TESTS = Path(__file__).parent

# What a module may import lies on its own layer or below it.
LAYERS = {
    "_numerics": 0,
    "_walks": 1,
    "_labels": 2,
    "_rows": 2,
    "_checks": 0,
    "_typing": 0,
    "_pytrees": 0,
    "_compiled": 0,
    "_recomputed": 0,
    "autodiff": 1,
    "maps": 3,
    "transforms": 2,
    "statistics": 3,
    "dense": 4,
    "reductions": 4,
    "linear": 4,
    "losses": 5,
    "hierarchical": 5,
    "distillation": 5,
    "sampling": 5,
    "calibration": 5,
    "testing": 6,
    "__init__": 7,
}
MAX_LINES = 400
MAX_IMPORT_SECONDS = 0.1


def modules(package: Path) -> dict[str, Path]:
    """Dotted names below the package, without its own: `losses`, `losses.focal`, `__init__`."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"] = path
    return names


def imported(package: Path, name: str, path: Path) -> Iterator[str]:
    """Every dotted name that a module imports, inside functions and `TYPE_CHECKING` blocks too."""
    base = [package.name, *([] if name == "__init__" else name.split("."))]
    if path.name != "__init__.py":
        base = base[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = base[: len(base) + 1 - node.level] if node.level else []
            source = ".".join([*up, *(node.module.split(".") if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def dependencies(package: Path) -> dict[str, set[str]]:
    """The import graph of the package's own modules."""
    known = modules(package)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        for target in imported(package, name, path):
            if target.split(".")[0] != package.name:
                continue
            parts = target.split(".")[1:]
            # The last name may be an attribute: the longest prefix that is a module counts.
            while parts and ".".join(parts) not in known:
                parts.pop()
            graph[name].add(".".join(parts) or "__init__")
    return graph


def upward_edges(package: Path) -> list[str]:
    layer = {name: LAYERS.get(name.split(".")[0]) for name in modules(package)}
    homeless = [f"{name} has no layer" for name, level in layer.items() if level is None]
    return homeless + [
        f"{name} imports {target}"
        for name, targets in dependencies(package).items()
        for target in targets
        if (layer[target] or 0) > (layer[name] or 0)
    ]


def cycles(package: Path) -> list[str]:
    try:
        graphlib.TopologicalSorter(dependencies(package)).prepare()
    except graphlib.CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def long_files(package: Path) -> list[str]:
    sizes = {path: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    return [f"{path.name}: {size} lines" for path, size in sizes.items() if size > MAX_LINES]


def private_jax(package: Path) -> list[str]:
    private = re.compile(r"jax(lib)?(\.\w+)*\._|jax\.interpreters")
    return [
        f"{name} imports {target}"
        for name, path in modules(package).items()
        for target in imported(package, name, path)
        if private.match(target)
    ]


def grab_bags(package: Path) -> list[str]:
    return [name for name in modules(package) if re.search(r"(^|[._])util(s|ities)?$", name)]


def matches(package: Path, pattern: str) -> list[str]:
    return [
        f"{path.name}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(pattern, line)
    ]


def suppressions(package: Path) -> list[str]:
    comments = r"type:\s*ignore|noqa|pyright:"
    return matches(package, comments + r"|simplefilter|filterwarnings|catch_warnings")


def unfinished(package: Path) -> list[str]:
    return matches(package, r"\b(TODO|FIXME|XXX)\b|NotImplementedError")


def unbounded_loops(package: Path) -> list[str]:
    """Loops that end by a condition alone: but for the one in `repeated`, which counts its steps."""
    return [
        f"{path.name}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.Module) and function_name(function) != "repeated"
        for node in own_nodes(function)
        if isinstance(node, ast.Attribute) and node.attr == "while_loop"
    ]


def function_name(node: ast.FunctionDef | ast.Module) -> str:
    return node.name if isinstance(node, ast.FunctionDef) else ""


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function, and not in one inside of it."""
    for child in ast.iter_child_nodes(function):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from own_nodes(child)


def unexplained_skips(tests: Path) -> list[str]:
    found = []
    for path in sorted(tests.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        explained = {
            id(node.func)
            for node in nodes
            if isinstance(node, ast.Call) and any(keyword.arg == "reason" for keyword in node.keywords)
        }
        found += [
            f"{path.name}:{node.lineno}"
            for node in nodes
            if isinstance(node, ast.Attribute)
            and node.attr in ("skip", "skipif", "xfail")
            and id(node) not in explained
        ]
    return found


Rule = Callable[[Path], list[str]]
RULES: list[Rule] = [
    upward_edges,
    cycles,
    long_files,
    private_jax,
    grab_bags,
    suppressions,
    unfinished,
    unbounded_loops,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps(rule: Rule):
    assert "__init__" in modules(PACKAGE)
    assert rule(PACKAGE) == []


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_no_file_is_long(folder: str):
    assert any((TESTS.parent / folder).glob("*.py"))
    assert long_files(TESTS.parent / folder) == []


def test_tests_explain_their_skips():
    assert unexplained_skips(TESTS) == []


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (upward_edges, {"maps.py": "from jsoftmax import losses", "losses.py": ""}),
        (upward_edges, {"maps.py": "from .losses.focal import f", "losses/focal.py": ""}),
        (upward_edges, {"losses/focal.py": "from .. import testing", "testing.py": ""}),
        (upward_edges, {"maps.py": "def f():\n  import jsoftmax.losses", "losses.py": ""}),
        (upward_edges, {"elsewhere.py": ""}),
        (cycles, {"maps.py": "from . import transforms", "transforms.py": "from . import maps"}),
        (long_files, {"maps.py": "x = 1\n" * (MAX_LINES + 1)}),
        (private_jax, {"maps.py": "from jax._src import core"}),
        (private_jax, {"maps.py": "import jax._src.core"}),
        (private_jax, {"maps.py": "from jax.interpreters import ad"}),
        (grab_bags, {"utils.py": ""}),
        (grab_bags, {"losses/_utils.py": ""}),
        (suppressions, {"maps.py": "x = 1  # noqa"}),
        (suppressions, {"maps.py": "x = 1  # type: ignore"}),
        (unfinished, {"maps.py": "# TODO"}),
        (unbounded_loops, {"maps.py": "def f():\n  jax.lax.while_loop(go, step, 0)"}),
        (unbounded_loops, {"maps.py": "from jax import lax\nloop = lax.while_loop"}),
        (unbounded_loops, {"maps.py": "f = lambda: lax.while_loop(go, step, 0)"}),
        # Nothing is skipped by this text: it has no reason, and the rule must object to it.
        (unexplained_skips, {"maps.py": "@pytest.mark.xfail\ndef f(): ..."}),
        # Nor by this one, for the same purpose.
        (unexplained_skips, {"maps.py": "@pytest.mark.skipif(True)\ndef f(): ..."}),
    ],
)
def test_rules_can_fail(rule: Rule, files: dict[str, str], tmp_path: Path):
    package = tmp_path / "jsoftmax"
    for name, text in {"__init__.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert len(rule(package)) == 1


def run_python(code: str) -> str:
    # Without this variable the first run leaves bytecode behind, as on a user's machine.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_import_is_quick():
    # Processor time, since a busy machine stretches any other.
    code = (
        "import time, jax.numpy; start = time.process_time(); import jsoftmax;"
        "print(time.process_time() - start)"
    )
    run_python(code)
    assert statistics.median(float(run_python(code)) for _ in range(5)) <= MAX_IMPORT_SECONDS


def test_import_leaves_optax_and_chex_out():
    code = "import sys, jsoftmax; print(*sorted({'optax', 'chex'} & set(sys.modules)))"
    assert run_python(code) == ""
