"""Small runs of the examples: their corpus, their command, what they leave."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# The examples are scripts: they find each other beside the one that runs.
sys.path.insert(0, str(EXAMPLES))
corpus = importlib.import_module("_corpus")
STEPS, EVERY, VOCAB = 30, 5, 120


def source_file(i: int) -> str:
    names = " ".join(f"name_{(i * 7 + j) % 97}" for j in range(40))
    body = "".join(f"    x{j} = x{j + i % 3} + {j % 20}  # step {j}\n" for j in range(20))
    return f'"""Module {i}.\n\n{names}\n"""\n\ndef work(x0, x1, x2):\n{body}    return x0\n'


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    for i in range(120):
        path = root / f"package_{i % 4}" / f"module_{i}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source_file(i))
    (root / "broken.py").write_bytes(b"# coding: nonsense\n(")
    (root / "latin.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    (root / "open.py").write_bytes(b'x = """')
    (root / "dangling.py").symlink_to("nowhere.py")
    for excluded in ("site-packages", "encodings", "package_0/test"):
        (root / excluded).mkdir()
        (root / excluded / "other.py").write_text("excluded = 1\n" * 100)
    return root


def command(out: Path, sources: Path, *more: str) -> list[str]:
    script = [sys.executable, "-W", "error", str(EXAMPLES / "language_model.py")]
    sizes = ["--steps", str(STEPS), "--every", str(EVERY), "--vocab", str(VOCAB)]
    return [*script, *sizes, "--corpus", str(sources), "--out", str(out), *more]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    # Compilation takes most of the time of such small runs; all of them compile the same steps.
    return inherited | {
        "PYTHONPATH": str(EXAMPLES.parent),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def output(arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def metrics(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="session")
def finished(
    sources: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("finished")
    return out, output(command(out, sources), environment)
