"""The examples: the corpus, and small runs that are killed in the middle and resumed."""

import ast
import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# The examples are scripts: they find each other beside the one that runs.
sys.path.insert(0, str(EXAMPLES))
corpus = importlib.import_module("_corpus")
# One worker for all of them, where tests are distributed: they share a run that takes a while.
pytestmark = pytest.mark.xdist_group("examples")

STEPS, EVERY, VOCAB = 30, 5, 120
MULTIHOST_EVERY = 15  # a checkpoint of two processes takes a second
HELD_OUT = [5, 30, 60, 63, 68, 73]

SOURCE = '''\
import os


class Reader(object):
    """Reads a file.

    Line by line, isn't it?
    """

    def read(self, path, *names, size=-1, **options):  # the size, in bytes
        if not path[1:-2] and size == -3:
            return {'a': 1.5, "b": [os.sep for _ in range(3)]}
        raise ValueError('no') from None
'''

SOURCE_WORDS = """\
<file> import os <newline> class Reader ( object ) : <newline> <indent>
\"\"\" Reads a file . <newline> Line by line , isn't it ? \"\"\" <newline>
def read ( self , path , * names , size = - 1 , ** options ) :
# the size , in bytes <newline> <indent>
if not path [ 1 : - 2 ] and size == - 3 : <newline> <indent>
return { 'a' : 1.5 , "b" : [ os . sep for _ in range ( 3 ) ] } <newline> <dedent>
raise ValueError ( 'no' ) from None <newline> <dedent> <dedent>
"""
WORDS = SOURCE_WORDS.split()


def test_source_becomes_words():
    assert list(corpus.words_of_source(SOURCE)) == WORDS


def test_words_become_the_same_source_again():
    text = corpus.to_text(WORDS)
    assert list(corpus.words_of_source(text + "\n")) == WORDS
    assert "def read(self, path, *names, size=-1, **options):  # the size, in bytes\n" in text
    assert "return {'a': 1.5, \"b\": [os.sep for _ in range(3)]}\n" in text
    assert ast.unparse(ast.parse(text)).splitlines()[-2:] == [
        "            return {'a': 1.5, 'b': [os.sep for _ in range(3)]}",
        "        raise ValueError('no') from None",
    ]


@pytest.mark.parametrize(
    "literal", ["f'{a!r:{b}}'", "rf'{a}'", 'f"""{a} b\n{c}"""', "f'{f\"{a}\"}'", repr("x" * 50)]
)
def test_formatted_and_long_strings_are_one_rare_word(literal: str):
    words = list(corpus.words_of_source(f"x = {literal}\n"))
    assert words == ["<file>", "x", "=", "<string>", "<newline>"]


@pytest.mark.parametrize("words", [["<dedent>", ")", "]"], ["(", "<newline>", '"""', "#"], ["."]])
def test_any_words_become_text(words: list[str]):
    assert isinstance(corpus.to_text(words), str)


def source_file(i: int) -> str:
    names = " ".join(f"name_{(i * 7 + j) % 97}" for j in range(40))
    body = "".join(f"    x{j} = x{j + i % 3} + {j % 20}  # step {j}\n" for j in range(20))
    return f'"""Module {i}.\n\n{names}\n"""\n\ndef work(x0, x1, x2):\n{body}    return x0\n'


@pytest.fixture(scope="module")
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


def test_split_is_by_file_and_does_not_move(sources: Path, tmp_path: Path):
    held_out = {f"a/{i}.py": corpus.is_validation(f"a/{i}.py") for i in range(10_000)}
    assert 400 < sum(held_out.values()) < 600
    # The fixed answers hold on every platform and version.
    assert [i for i in range(100) if corpus.is_validation(f"module_{i}.py")] == HELD_OUT
    data = corpus.load(sources, VOCAB, tmp_path / "corpus.npz")
    names = [path.relative_to(sources).as_posix() for path in corpus.source_files(sources)]
    expected = sum(corpus.is_validation(name) for name in names if "module" in name)
    assert np.count_nonzero(data.validation == data.words.index("<file>")) == expected > 0


def test_vocabulary_is_the_most_frequent_training_words(sources: Path, tmp_path: Path):
    data = corpus.load(sources, VOCAB, tmp_path / "corpus.npz")
    assert len(data.words) == len(set(data.words)) == VOCAB
    assert "excluded" not in data.words
    training: Counter[str] = Counter()
    stream: dict[bool, int] = {False: 0, True: 0}
    for path in corpus.source_files(sources):
        name = path.relative_to(sources).as_posix()
        if "module" in name or name == "latin.py":
            encoding = "latin-1" if name == "latin.py" else "utf-8"
            words = list(corpus.words_of_source(path.read_text(encoding)))
            stream[corpus.is_validation(name)] += len(words)
            if not corpus.is_validation(name):
                training.update(words)
    assert (len(data.train), len(data.validation)) == (stream[False], stream[True])
    kept = {word: count for word, count in training.items() if word in data.words}
    assert min(kept.values()) >= max(n for word, n in training.items() if word not in kept)
    assert {word: data.counts[data.words.index(word)] for word in kept} == kept
    assert data.counts.sum() == len(data.train)


def test_rare_words_keep_their_kind(sources: Path, tmp_path: Path):
    data = corpus.load(sources, VOCAB, tmp_path / "corpus.npz")
    ids = data.encode(["never_seen", "31337", ".5e3", "0x1F", "'never seen'", "return"])
    stand_ins = ["<name>", "<number>", "<number>", "<number>", "<string>", "return"]
    assert [data.words[i] for i in ids] == stand_ins


def test_cache_is_used_until_a_source_changes(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "corpus.npz"
    first = corpus.load(sources, VOCAB, cache)
    tokenise = corpus._tokenise
    monkeypatch.setattr(corpus, "_tokenise", lambda files: pytest.fail("tokenised again"))
    again = corpus.load(sources, VOCAB, cache)
    assert again.fingerprint == first.fingerprint
    assert corpus.load(sources, VOCAB - 1, cache).fingerprint != first.fingerprint
    monkeypatch.setattr(corpus, "_tokenise", tokenise)
    path = sources / "package_0" / "module_0.py"
    before = path.read_text()
    path.write_text(before + "y = 2\n" * 50)
    assert corpus.load(sources, VOCAB, cache).fingerprint != first.fingerprint
    path.write_text(before)
    assert corpus.load(sources, VOCAB, cache).fingerprint == first.fingerprint


def test_corpus_that_does_not_do_is_refused(sources: Path, tmp_path: Path):
    cache = tmp_path / "corpus.npz"
    with pytest.raises(corpus.CorpusError, match="no Python sources under"):
        corpus.load(tmp_path, VOCAB, cache)
    with pytest.raises(corpus.CorpusError, match=r"have \d+ distinct words, fewer than 100000"):
        corpus.load(sources, 100_000, cache)
    (tmp_path / "module_0.py").write_text(source_file(0) * 20)
    with pytest.raises(corpus.CorpusError, match=r"holds 0 validation tokens, too few"):
        corpus.load(tmp_path, VOCAB, cache)


def test_standard_library_is_large_and_its_own():
    root = Path(sysconfig.get_paths()["stdlib"])
    files = corpus.source_files(root)
    assert len(files) > 300
    assert sum(path.stat().st_size for path in files) > 5e6
    assert not {"site-packages", "test"} & {part for path in files for part in path.parts}


def command(out: Path, sources: Path, *more: str) -> list[str]:
    script = [sys.executable, "-W", "error", str(EXAMPLES / "language_model.py")]
    sizes = ["--steps", str(STEPS), "--every", str(EVERY), "--vocab", str(VOCAB)]
    return [*script, *sizes, "--corpus", str(sources), "--out", str(out), *more]


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def finished(
    sources: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("finished")
    return out, output(command(out, sources), environment)


def test_run_learns_and_writes_everything_down(finished: tuple[Path, str]):
    out, text = finished
    results = metrics(out)
    loss = results["curves"]["jsoftmax"]["loss"]
    validation = results["curves"]["jsoftmax"]["validation"]
    assert len(loss) == STEPS
    assert [step for step, _, _ in validation] == list(range(0, STEPS + 1, EVERY))
    assert loss[-1] < 0.6 * loss[0] < 0.6 * np.log(VOCAB)
    assert validation[-1][1] < validation[0][1]
    assert validation[-1][2] > validation[0][2]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    samples = results["samples"]
    assert samples["0.5"] != samples["0.9"]
    for sample in samples.values():
        assert sample in text
        assert "def" in sample
        assert "<file>" not in sample
        assert len(sample.split()) > 30
    assert "validation perplexity" in text


def test_losses_equal_those_of_optax(finished: tuple[Path, str]):
    comparison = metrics(finished[0])["comparison"]
    assert comparison["gaps"]["same_parameters"] <= 1e-6
    assert comparison["gaps"]["whole_curve"] <= 1e-4
    ours, theirs = (comparison["rows"][name] for name in ("jsoftmax", "optax"))
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-4)
    for row in (ours, theirs):
        assert row["step_seconds"] > 0
        assert row["temporary_bytes"] > 0


def test_killed_run_resumes_on_the_same_curve(
    finished: tuple[Path, str], sources: Path, environment: dict[str, str], tmp_path: Path
):
    process = subprocess.Popen(
        command(tmp_path, sources, "--no-compare"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    saved = tmp_path / "checkpoints" / "jsoftmax" / str(EVERY)
    deadline = time.monotonic() + 60
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    text = output(command(tmp_path, sources, "--no-compare", "--resume"), environment)
    assert "jsoftmax: resumed after step " in text
    assert f"resumed after step {STEPS} " not in text
    resumed, whole = metrics(tmp_path), metrics(finished[0])
    # Equal floats, not close ones; the two runs also show that a seed decides everything.
    assert resumed["curves"]["jsoftmax"] == whole["curves"]["jsoftmax"]
    assert resumed["samples"] == whole["samples"]


def test_checkpoint_of_another_run_is_refused(finished: tuple[Path, str]):
    checkpoints = importlib.import_module("_checkpoints")
    training = importlib.import_module("_training")
    stored = metrics(finished[0])["run"]
    with checkpoints.open_folder(finished[0] / "checkpoints" / "jsoftmax") as folder:
        other = training.Run(**(stored | {"seed": 7}))
        with pytest.raises(checkpoints.OtherRunError, match=r"has seed 0, this run 7; give the"):
            checkpoints.restore(folder, other, {})


def test_resume_without_a_checkpoint_starts_afresh(tmp_path: Path):
    checkpoints = importlib.import_module("_checkpoints")
    training = importlib.import_module("_training")
    with checkpoints.open_folder(tmp_path) as folder:
        run = training.Run(head="dense", steps=1, vocab=1, seed=0, corpus="")
        assert checkpoints.restore(folder, run, {}) is None


def test_seed_decides_parameters_and_batches(sources: Path, tmp_path: Path):
    training, heads = (importlib.import_module(name) for name in ("_training", "_heads"))
    data = corpus.load(sources, VOCAB, tmp_path / "corpus.npz")
    zero, one = (training.Run("dense", STEPS, VOCAB, seed, data.fingerprint) for seed in (0, 1))

    def start(run: Any) -> list[jax.Array]:
        state = training.init_state(heads.HEADS["dense"](data.counts), run, data.counts)
        return [state["params"]["network"]["attention"], state["params"]["head"]["kernel"]]

    for array, other in zip(start(zero), start(one), strict=True):
        assert not np.array_equal(array, other)
    batch = training.training_batch(data, zero, 3)
    assert np.array_equal(batch, training.training_batch(data, zero, 3))
    assert not np.array_equal(batch, training.training_batch(data, one, 3))
    assert not np.array_equal(batch, training.training_batch(data, zero, 4))


@pytest.mark.parametrize("bad", ["--steps=0", "--vocab=10", "--seed=-1", "--every=0"])
def test_bad_number_is_one_clear_line(
    bad: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["language_model.py", bad])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("language_model").parse_arguments()
    name, given = bad.split("=")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"language_model.py: error: {name} must be at least")
    assert lines[0].endswith(f"got {given}")


@pytest.mark.parametrize("name", ["chunked", "hierarchical", "adaptive", "sampled"])
def test_head_for_many_words_learns_and_is_scored_by_all_log_probabilities(
    name: str, sources: Path, tmp_path: Path
):
    heads = importlib.import_module("_heads")
    data = corpus.load(sources, VOCAB, tmp_path / "corpus.npz")
    head = heads.HEADS[name](data.counts)
    labels = data.train[:200]
    hidden = np.random.default_rng(0).normal(size=(200, 96)).astype("f4")
    params = head.init(jax.random.key(0), 96, data.counts)
    losses = []
    step = jax.jit(jax.value_and_grad(head.mean_loss))
    for _ in range(15):
        loss, gradients = step(params, hidden, labels)
        params = jax.tree.map(lambda x, g: x - 0.5 * g, params, gradients)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    nll, correct = head.scores(params, hidden, labels)
    logits = np.asarray(head.logits(params, hidden), np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    np.testing.assert_allclose(nll, -log_p[np.arange(200), labels], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(correct, log_p.argmax(axis=-1) == labels)
    if name != "sampled":
        # What it is trained with is what it is scored with.
        mean = float(jax.numpy.mean(nll))
        assert float(head.mean_loss(params, hidden, labels)) == pytest.approx(mean, rel=1e-4)


def test_table_has_a_column_for_each_head():
    comparison = importlib.import_module("_comparison")
    rows = {
        name: comparison.Row(30.0, 0.5, milliseconds / 1e3, 10**7 * milliseconds, None)
        for name, milliseconds in {"chunked": 6, "dense": 9, "optax": 12}.items()
    }
    lines = [line.split() for line in comparison.table(rows).splitlines()]
    assert lines[0] == ["chunked", "dense", "optax", "ratio"]
    assert lines[3][-7:] == ["6.0", "ms", "9.0", "ms", "12.0", "ms", "0.50"]
    assert lines[4][-7:] == ["60", "MB", "90", "MB", "120", "MB", "0.50"]
    assert lines[5][-3:] == ["–", "–", "–"]


@pytest.mark.slow
def test_chunked_head_is_compared_with_dense_and_optax(
    sources: Path, environment: dict[str, str], tmp_path: Path
):
    text = output(command(tmp_path, sources, "--head", "chunked"), environment)
    results = metrics(tmp_path)
    assert (
        list(results["curves"]) == list(results["comparison"]["rows"]) == ["chunked", "dense", "optax"]
    )
    assert results["comparison"]["gaps"]["same_parameters"] <= 1e-6
    assert results["comparison"]["gaps"]["whole_curve"] <= 1e-4
    assert "the same training with each loss" in text


@pytest.mark.parametrize(("limit", "largest"), [(5_500, 10_000), (23_000, 35_000), (10**8, 66_686_333)])
def test_largest_vocabulary_is_found_without_running_anything(limit: int, largest: int):
    memory = importlib.import_module("vocabulary_memory")
    tried: list[int] = []

    def bytes_of(words: int) -> int:
        tried.append(words)
        # A chunk has fewer rows where words are many: two lines.
        return 500 + words // 2 + max(words - 30_000, 0)

    (words, size), (_, beyond) = memory.around(memory.measure(bytes_of, limit), limit)
    assert size == bytes_of(words) <= limit < beyond
    assert 0.98 * largest <= words <= largest
    assert len(tried) < 15


def test_chunked_layer_takes_less_memory_and_the_dense_one_that_of_optax():
    memory = importlib.import_module("vocabulary_memory")
    found = {name: memory.layer_bytes(head, 5000) for name, head in memory.HEADS.items()}
    assert found["chunked"] < 0.3 * found["optax"]
    assert found["dense"] <= 1.05 * found["optax"]


@pytest.mark.slow
def test_vocabulary_memory_is_drawn(environment: dict[str, str], tmp_path: Path):
    script = [sys.executable, "-W", "error", str(EXAMPLES / "vocabulary_memory.py")]
    text = output([*script, "--memory-limit=100", f"--out={tmp_path}"], environment)
    results = json.loads((tmp_path / "vocabulary.json").read_text())
    for largest in results["largest"].values():
        assert largest["chunked"] > 1.3 * largest["optax"] > 0
        assert all(f"{words:,} words" in text for words in largest.values())
    assert (tmp_path / "vocabulary.png").read_bytes().startswith(b"\x89PNG")


def test_heads_are_compared(sources: Path, environment: dict[str, str], tmp_path: Path):
    script = [sys.executable, "-W", "error", str(EXAMPLES / "compare_heads.py")]
    sizes = ["--steps", "12", "--vocab", str(VOCAB), "--corpus", str(sources), "--out", str(tmp_path)]
    text = output([*script, *sizes, "--heads", "dense", "adaptive"], environment)
    results = json.loads((tmp_path / "heads.json").read_text())["heads"]
    assert list(results) == ["dense", "adaptive"]
    for name, row in results.items():
        (_, before), *_, (seconds, after) = row["curve"]
        assert row["steps"] == 12
        assert after < 0.9 * before
        assert seconds > 0
        assert f"{row['perplexity']:.2f}" in text
        assert name in text
    assert "adaptive: a step takes" in text
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "estimator",
    [
        "gumbel",
        pytest.param("straight_through", marks=pytest.mark.slow),
        pytest.param("hard", marks=pytest.mark.slow),
        pytest.param("rao_blackwell", marks=pytest.mark.slow),
        pytest.param("reinmax", marks=pytest.mark.slow),
    ],
)
def test_discrete_vae_learns_and_is_compiled_once(
    estimator: str, environment: dict[str, str], tmp_path: Path
):
    script = [sys.executable, "-W", "error", str(EXAMPLES / "discrete_vae.py")]
    text = output([*script, "--steps=60", f"--estimator={estimator}", f"--out={tmp_path}"], environment)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["curves"]["traces"] == 1
    assert len(set(found["curves"]["temperature"])) == len(found["curves"]["loss"]) == 60
    assert found["after"]["elbo"] > found["before"]["elbo"] + 1
    after = found["after"]
    assert after["elbo"] == pytest.approx(-after["reconstruction"] - after["kl"])
    assert "compiled 1 time" in text
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_sparse_attention_is_sparse(environment: dict[str, str], tmp_path: Path):
    script = [sys.executable, "-W", "error", str(EXAMPLES / "sparse_attention.py")]
    text = output([*script, "--steps=40", f"--out={tmp_path}"], environment)
    found = json.loads((tmp_path / "metrics.json").read_text())
    zeros = [found[name]["share_of_zeros"] for name in ("softmax", "entmax 1.5", "sparsemax")]
    # Those of a softmax are powers that underflow.
    assert zeros[0] < 0.05 < 0.3 < zeros[1] < zeros[2]
    for row in found.values():
        assert row["loss"][-1] < 0.9 * row["loss"][0]
    learned = found["learned α"]["alpha"]
    assert all(1 < alpha < 2 and alpha != 1.5 for alpha in learned)
    assert "of the rows are masked altogether" in text
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def multihost_command(out: Path, sources: Path, *more: str) -> list[str]:
    # jax 0.7.0 warns of what it does itself.
    warnings = ["-W", "error", "-W", "ignore:jax.interpreters.xla:DeprecationWarning"]
    script = [sys.executable, *warnings, str(EXAMPLES / "multihost_language_model.py")]
    sizes = ["--steps", str(STEPS), "--every", str(MULTIHOST_EVERY), "--vocab", str(VOCAB)]
    return [*script, *sizes, "--corpus", str(sources), "--out", str(out), *more]


@pytest.fixture(scope="module")
def on_a_mesh(
    sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float], jax.stages.Compiled]:
    """A checkpoint of the vocab-parallel head, made by one process that has all eight devices.

    Returns the output folder, the losses up to the checkpoint, and the compiled step.
    """
    out = tmp_path_factory.mktemp("multihost")
    checkpoints, loop, multihost, training = (
        importlib.import_module(name)
        for name in ("_checkpoints", "_loop", "multihost_language_model", "_training")
    )
    data = corpus.load(sources, VOCAB, out / "corpus.npz")
    run = training.Run("vocab_parallel", STEPS, VOCAB, 0, data.fingerprint)
    mesh = multihost.make_mesh()
    head = multihost.vocab_parallel_head(mesh)
    batches = training.validation_batches(data, loop.CURVE_BATCHES)
    losses: list[float] = []
    with jax.numpy_dtype_promotion("standard"):
        state, step, place = multihost.sharded_training(head, run, mesh, data.counts)
        for leaf in (state["params"]["head"]["kernel"], state["optimizer"][0].mu["head"]["kernel"]):
            assert leaf.addressable_shards[0].data.shape == (96, VOCAB // multihost.VOCAB)
        scores = [[0, *training.evaluate(head, state["params"], batches)]]
        for i in range(MULTIHOST_EVERY):
            state, loss = step(state, place(training.training_batch(data, run, i)))
            losses.append(float(loss))
        scores.append([MULTIHOST_EVERY, *training.evaluate(head, state["params"], batches)])
    with checkpoints.open_folder(out / "checkpoints" / run.head) as folder:
        checkpoints.save(folder, run, state, {"loss": losses, "validation": scores})
    return out, losses, step


def test_vocab_parallel_step_gathers_no_classes(
    on_a_mesh: tuple[Path, list[float], jax.stages.Compiled],
):
    text = on_a_mesh[2].as_text()
    assert text is not None
    results = re.findall(r"= (.*) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text)
    sizes: dict[str, int] = {}
    for shapes, operation in results:
        size = sum(
            math.prod(int(axis) for axis in shape.split(",") if axis)
            for shape in re.findall(r"\[([\d,]*)\]", shapes)
        )
        sizes[operation] = max(size, sizes.get(operation, 0))
    # Gradients are summed over the axis of data, and nothing else of that size goes anywhere.
    assert sizes.pop("all-reduce") > VOCAB
    assert max(sizes.values(), default=0) < VOCAB


@pytest.fixture(scope="module")
def two_processes(
    on_a_mesh: tuple[Path, list[float], jax.stages.Compiled],
    sources: Path,
    environment: dict[str, str],
) -> tuple[dict[str, Any], str]:
    out, losses, _ = on_a_mesh
    text = output(multihost_command(out, sources, "--resume"), environment)
    results = metrics(out)
    assert results["curves"]["vocab_parallel"]["loss"][: len(losses)] == losses
    return results, text


def test_two_processes_resume_and_give_the_curve_of_one(two_processes: tuple[dict[str, Any], str]):
    results, text = two_processes
    assert f"resumed after step {MULTIHOST_EVERY} of {STEPS}\n" in text
    check_multihost(results, text)


def check_multihost(results: dict[str, Any], text: str) -> None:
    several, alone = (results["curves"][name] for name in ("vocab_parallel", "chunked"))
    assert len(several["loss"]) == len(alone["loss"]) == STEPS
    np.testing.assert_allclose(several["loss"], alone["loss"], rtol=1e-5)
    np.testing.assert_allclose(several["validation"], alone["validation"], rtol=1e-4)
    assert several["loss"][-1] < 0.6 * several["loss"][0]
    gap = np.max(np.abs(np.array(several["loss"]) / alone["loss"] - 1))
    assert results["gap"] == pytest.approx(gap, rel=1e-3)
    end = f"{STEPS} steps on 2 processes of 4 devices: losses within {gap:.1e} of those of one process"
    assert text.splitlines()[-1].startswith(end)


def test_chunked_head_gives_the_curve_of_the_dense_one(
    two_processes: tuple[dict[str, Any], str], finished: tuple[Path, str]
):
    chunked = two_processes[0]["curves"]["chunked"]["loss"]
    dense = metrics(finished[0])["curves"]["jsoftmax"]["loss"]
    np.testing.assert_allclose(chunked, dense, rtol=1e-5)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill_one(
    arguments: list[str], environment: dict[str, str], killed: str, once: Path
) -> tuple[int, str]:
    """Kills a process once the path exists; returns the parent's status and errors."""
    parent = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    lines = [parent.stdout.readline() for _ in range(3)]
    workers = [int(line.rsplit(" ", 1)[1]) for line in lines[1:]]
    deadline = time.monotonic() + 120
    while not once.exists() and parent.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(workers[1] if killed == "worker" else parent.pid, signal.SIGKILL)
    _, errors = parent.communicate()
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, workers))
    return parent.returncode, errors


def test_death_of_a_process_ends_the_others(sources: Path, environment: dict[str, str], tmp_path: Path):
    status, errors = kill_one(multihost_command(tmp_path, sources), environment, "worker", tmp_path)
    assert status == 1
    assert errors.splitlines()[-1] == (
        "multihost_language_model.py: error: process 1 has died (-9), the others were stopped; "
        "--resume goes on from the last checkpoint"
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["worker", "parent"])
def test_two_processes_survive_a_kill(
    killed: str, sources: Path, environment: dict[str, str], tmp_path: Path
):
    saved = tmp_path / "checkpoints" / "vocab_parallel" / str(MULTIHOST_EVERY)
    status, _ = kill_one(multihost_command(tmp_path, sources), environment, killed, saved)
    assert status == (1 if killed == "worker" else -signal.SIGKILL)
    text = output(multihost_command(tmp_path, sources, "--resume"), environment)
    assert re.search(rf"resumed after step (?!{STEPS} )\d+ of {STEPS}\n", text)
    check_multihost(metrics(tmp_path), text)


@pytest.mark.parametrize(
    ("script", "bad", "text"),
    [
        ("multihost_language_model", "--vocab=1001", "--vocab must be a multiple of 4, got 1001"),
        ("vocabulary_memory", "--memory-limit=1", "--memory-limit must be at least 100, got 1"),
    ],
)
def test_number_that_does_not_do_is_one_clear_line(
    script: str,
    bad: str,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", bad])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).parse_arguments()
    assert capsys.readouterr().err == f"{script}.py: error: {text}\n"
