"""The corpus of the examples: words of sources, the split by file, the vocabulary, the cache."""

import ast
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.example_runs import VOCAB, corpus, source_file

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
