"""The word2vec example: its pairs, its scores, gensim's trees in our form, and a small run."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jsoftmax import hierarchical
from tests.example_runs import EXAMPLES

pairs, scores, gensim = (
    importlib.import_module(f"_word2vec_{n}") for n in ("pairs", "scores", "gensim")
)


def test_pairs_are_words_within_reach_of_each_other():
    stream = np.arange(2000, dtype=np.int32)
    contexts, words = pairs.pairs_of(stream, np.ones(2000), 4, np.random.default_rng(0))
    distance = np.abs(contexts - words)
    assert distance.min() == 1
    assert distance.max() == 4
    # A word reaches 1 to 4 words far with equal chances: a distance d is seen by 5 − d of 4.
    share = np.bincount(distance)[1:] / (2 * 2000)
    np.testing.assert_allclose(share, [1, 3 / 4, 2 / 4, 1 / 4], atol=0.05)
    # Both sides of a word are seen alike, or not at all at the ends of the text.
    inner = (words >= 4) & (words < 1996)
    left = np.bincount(words[inner & (contexts < words)], minlength=2000)
    right = np.bincount(words[inner & (contexts > words)], minlength=2000)
    np.testing.assert_array_equal(left, right)


def test_frequent_words_are_thinned_out():
    counts = np.array([900_000, 99_900, 90, 10])
    keep = pairs.keep_probabilities(counts)
    share = np.array([0.9, 0.0999])
    np.testing.assert_allclose(keep[:2], np.sqrt(1e-3 / share) + 1e-3 / share)
    np.testing.assert_array_equal(keep[2:], 1)
    stream = np.repeat(np.arange(4, dtype=np.int32), counts)
    contexts, words = pairs.pairs_of(stream, keep, 5, np.random.default_rng(0))
    assert len(words) == pytest.approx(pairs.pairs_per_epoch(counts, 5), rel=0.01)
    assert np.bincount(words)[0] == pytest.approx(900_000 * keep[0] * 6, rel=0.02)
    assert contexts.dtype == words.dtype == np.int32


def test_batches_go_on_from_epoch_to_epoch():
    stream = np.arange(2000, dtype=np.int32)
    counts = np.bincount(stream)
    source = pairs.batches(stream, counts, 2, (3, 700), seed=1)
    found = [next(source) for _ in range(10)]
    assert all(contexts.shape == words.shape == (3, 700) for contexts, words in found)
    again = pairs.batches(stream, counts, 2, (3, 700), seed=1)
    other = pairs.batches(stream, counts, 2, (3, 700), seed=2)
    np.testing.assert_array_equal(next(again), found[0])
    assert not np.array_equal(next(other), found[0])
    contexts, words = (np.concatenate(part).reshape(-1) for part in zip(*found, strict=True))
    assert set(np.abs(contexts - words)) == {1, 2}
    # An epoch of 6,000 pairs has each neighbour of a word once: 21,000 pairs are three and a half.
    times = np.bincount(words[contexts == words + 1], minlength=2000)[:-1]
    assert set(times) == {3, 4}
    assert times.mean() == pytest.approx(3.5, abs=0.1)


def test_neighbours_are_the_nearest_directions_of_known_words():
    angles = np.linspace(0, 1, 15)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 16)[:, None]
    counts = np.full(15, scores.RARE)
    counts[1] -= 1
    near = scores.neighbours(vectors, counts, [0, 14])
    np.testing.assert_array_equal(near, [range(2, 12), range(13, 3, -1)])
    assert scores.overlap(vectors, vectors, counts, [0, 14]) == 1
    # Word 0 is now between 2 and 14, with 7 to 14 on one side.
    rolled = np.roll(vectors, 3, axis=0)
    assert scores.overlap(vectors, rolled, np.full(15, 50), [0]) == pytest.approx(0.6)


def huffman_paths(random: np.random.Generator, words: int) -> list[tuple[list[int], list[int]]]:
    """A random full binary tree in gensim's form: rows of `syn1`, and the way taken at each."""
    paths: dict[int, tuple[list[int], list[int]]] = {words - 2: ([], [])}
    open_rows, names = list(range(words - 2)), list(range(words))
    random.shuffle(names)
    ends: dict[int, tuple[list[int], list[int]]] = {}
    while paths:
        row = list(paths)[random.integers(len(paths))]
        rows, ways = paths.pop(row)
        for way in (0, 1):
            path = [*rows, row], [*ways, way]
            if open_rows and (not paths or random.random() < 0.5):
                paths[open_rows.pop()] = path
            else:
                ends[names.pop()] = path
    return [ends[word] for word in range(words)]


@pytest.mark.parametrize("seed", range(5))
def test_gensims_tree_gives_gensims_probabilities(seed: int):
    random = np.random.default_rng(seed)
    paths = huffman_paths(random, 23)
    vectors, syn1 = random.normal(size=(2, 6)), random.normal(size=(23, 6))
    tree, kernel = gensim.as_tree(paths, syn1)
    expected = [
        [-np.logaddexp(0, -(1 - 2 * np.array(ways)) * (syn1[rows] @ v)).sum() for rows, ways in paths]
        for v in vectors
    ]
    log_p = hierarchical.hierarchical_log_softmax(vectors.astype("f4"), kernel.astype("f4"), tree)
    np.testing.assert_allclose(log_p, expected, rtol=1e-5)
    labels = np.array([4, 20])
    loss = scores.mean_loss(vectors.astype("f4"), kernel.astype("f4"), tree, (np.array([0, 1]), labels))
    assert loss == pytest.approx(-np.mean([expected[0][4], expected[1][20]]), rel=1e-5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of files, each with words of its own."""
    root = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(0)
    for i in range(90):
        names = random.integers(0, 60, (60, 3)) + 60 * (i % 2)
        lines = (f"v{a} = v{b} + v{c}\n" for a, b, c in names)
        (root / f"module_{i}.py").write_text("".join(lines))
    return root


def run(out: Path, sources: Path, *more: str) -> tuple[dict[str, Any], str]:
    script = [sys.executable, "-W", "error", str(EXAMPLES / "word2vec.py")]
    sizes = ["--steps", "300", "--vocab", "120", "--dim", "16", "--epochs", "40"]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    command = [*script, *sizes, "--corpus", str(sources), "--out", str(out), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "metrics.json").read_text()), done.stdout


def test_run_learns_which_words_stand_together(sources: Path, tmp_path: Path):
    metrics, text = run(tmp_path, sources)
    (_, before), *_, (pairs_seen, after) = metrics["curves"]["held_out"]
    assert pairs_seen == 300 * 512
    assert before == pytest.approx(5, abs=0.3)  # log 2 for each step of the way
    # Each word has half of the others to go with: log 2 less than to know nothing.
    assert after < before - 0.4
    assert metrics["held_out"] == after
    assert metrics["words_per_second"] > 0
    assert f"{after:.3f} nats per pair" in text
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "vectors.npz") as stored:
        words, vectors = stored["words"].tolist(), stored["vectors"]
    assert vectors.shape == (120, 16)
    names = [i for i, word in enumerate(words) if word[0] == "v" and word[1:].isdigit()]
    kind = np.array([int(words[i][1:]) < 60 for i in names])
    same = kind[:, None] == kind
    directions = vectors[names] / np.linalg.norm(vectors[names], axis=1, keepdims=True)
    cosines = directions @ directions.T
    assert cosines[same].mean() > cosines[~same].mean() + 0.3


@pytest.mark.parametrize("bad", ["--epochs=0", "--steps=0", "--vocab=10", "--seed=-1", "--dim=0"])
def test_bad_number_is_one_clear_line(
    bad: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["word2vec.py", bad])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("word2vec").parse_arguments()
    name, given = bad.split("=")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"word2vec.py: error: {name} must be at least")
    assert line.endswith(f"got {given}")


def test_comparison_without_gensim_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["word2vec.py", "--compare"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("word2vec").parse_arguments()
    expected = "word2vec.py: error: --compare needs gensim: pip install gensim\n"
    assert capsys.readouterr().err == expected
