"""The examples: small runs that are killed in the middle and resumed."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.example_runs import EVERY, EXAMPLES, STEPS, VOCAB, command, corpus, metrics, output


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
    while not saved.exists() and process.poll() is None:
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


@pytest.mark.slow
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
