"""Python sources as a stream of words, with a vocabulary and the way back to text.

A word is an identifier, a keyword, an operator, a number, a short string literal, or a word of a
comment or of a triple-quoted string. The ends of lines and the edges of blocks are words too, so
that generated words can be laid out as code again.
"""

import hashlib
import io
import json
import keyword
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

FILE, NEWLINE, INDENT, DEDENT = "<file>", "<newline>", "<indent>", "<dedent>"
RARE_NAME, RARE_NUMBER, RARE_STRING = "<name>", "<number>", "<string>"
STRUCTURE = (FILE, NEWLINE, INDENT, DEDENT)
RARE = (RARE_NAME, RARE_NUMBER, RARE_STRING)

# Installed packages are not the standard library. Its tests are two thirds of it, the same few calls
# again and again, and many systems leave them out: without them the corpus is the same everywhere.
# Tables that a script wrote (code pages, build settings) are near copies of each other: they would
# leak from one split into the other.
PACKAGES = frozenset({"site-packages", "dist-packages"})
TESTS = frozenset({"test", "tests", "idle_test"})
EXCLUDED_FOLDERS = PACKAGES | TESTS | {"encodings"}
EXCLUDED_FILES = re.compile(r"_sysconfigdata.*|topics\.py")
VALIDATION_SHARE = 0.05
SHORTEST_SPLIT = 1000  # tokens
CACHE_FORMAT = 1

LONGEST_STRING = 40  # characters; a longer literal is not a word

_OPENING = re.compile(r"""([A-Za-z]*)(\"{3}|'{3}|"|')""")
_PROSE = re.compile(r"\w+(?:'\w+)*|[^\w\s]|\n")
_LINE_BREAKS = re.compile(r"\s*\n\s*")
_TRIPLE_QUOTES = ('"""', "'''")
_SIGNS = ("-", "+", "*", "**")


class CorpusError(Exception):
    """The sources cannot make the corpus asked for."""


Tokenised = tuple[
    list[str], np.ndarray, np.ndarray
]  # distinct words, their ids in file order, the files' ends


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: each word is an index into ``words``.

    Attributes:
        words: the vocabulary: the structure, the rare words' stand-ins, the most frequent others.
        train: the training files one after the other, each opened by `FILE`, int32.
        validation: the same for the validation files.
        files: how many files were read.
    """

    words: tuple[str, ...]
    train: np.ndarray
    validation: np.ndarray
    files: int

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each word occurs in the training stream, int64 [words]."""
        return np.bincount(self.train, minlength=len(self.words))

    def encode(self, words: Iterable[str]) -> np.ndarray:
        """The words' indices, int32 [words]."""
        index = {word: i for i, word in enumerate(self.words)}
        return np.array([index.get(word, index[_rare(word)]) for word in words], np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of everything above: equal for equal corpora only."""
        digest = hashlib.sha256("\0".join(self.words).encode("utf-8", "surrogatepass"))
        digest.update(self.train.tobytes())
        digest.update(self.validation.tobytes())
        return digest.hexdigest()[:16]


def source_files(root: Path) -> list[Path]:
    """The Python files under `root`, in an order that no file system can change."""

    def kept(path: Path) -> bool:
        inside = path.relative_to(root)
        excluded = EXCLUDED_FOLDERS & set(inside.parts) or EXCLUDED_FILES.fullmatch(inside.name)
        return path.is_file() and not excluded

    return sorted(filter(kept, root.rglob("*.py")), key=lambda path: path.relative_to(root).as_posix())


def is_validation(relative_path: str) -> bool:
    """Whether a file is held out: a hash of its path decides, so that the split never moves."""
    digest = hashlib.sha256(relative_path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64


def words_of_source(source: str) -> Iterator[str]:
    """Yields the words of one Python source.

    Raises:
        SyntaxError, tokenize.TokenError: the source is not Python.
    """
    yield FILE
    formatted_depth = 0
    after_comment = False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        # From Python 3.12 on an f-string arrives in pieces; here it stays one word.
        if kind in ("FSTRING_START", "TSTRING_START"):
            formatted_depth += 1
        elif kind in ("FSTRING_END", "TSTRING_END"):
            formatted_depth -= 1
            if formatted_depth == 0:
                yield RARE_STRING
        elif formatted_depth:
            continue
        elif kind == "STRING":
            yield from _string_words(token.string)
        elif kind == "COMMENT":
            yield "#"
            yield from _prose_words(token.string.lstrip("#"))
        elif kind == "NEWLINE" or (kind == "NL" and after_comment):
            yield NEWLINE
        elif kind in ("INDENT", "DEDENT"):
            yield f"<{kind.lower()}>"
        elif kind in ("NAME", "NUMBER", "OP"):
            yield token.string
        after_comment = kind == "COMMENT"


def _string_words(literal: str) -> Iterator[str]:
    prefix, quote = _OPENING.match(literal).groups()
    if len(quote) == 3 and "f" not in prefix.lower():
        yield prefix + quote
        yield from _prose_words(literal[len(prefix) + 3 : -3])
        yield quote
    else:
        yield (literal if len(literal) <= LONGEST_STRING and "f" not in prefix.lower() else RARE_STRING)


def _prose_words(text: str) -> Iterator[str]:
    for word in _PROSE.findall(_LINE_BREAKS.sub("\n", text.strip())):
        yield NEWLINE if word == "\n" else word


def load(root: Path, vocab_size: int, cache: Path) -> Corpus:
    """Reads all sources under `root`, or what `cache` holds of them, and builds the vocabulary.

    Args:
        root: the folder whose Python files are read.
        vocab_size: the number of words of the vocabulary, structure and rare words included.
        cache: a file that keeps the tokenised sources, made anew when one of them has changed.

    Raises:
        CorpusError: a split is too short, or the vocabulary larger than what the files hold.
    """
    files = source_files(root)
    if not files:
        raise CorpusError(f"there are no Python sources under {root}")
    names = [path.relative_to(root).as_posix() for path in files]
    key = _cache_key(files, names)
    tokenised = _read_cache(cache, key)
    if tokenised is None:
        tokenised = _tokenise(files)
        _write_cache(cache, key, tokenised)
    words, ids, ends = tokenised

    lengths = np.diff(ends, prepend=0)
    held_out = np.repeat([is_validation(name) for name in names], lengths)
    for split, size in (("validation", held_out.sum()), ("training", (~held_out).sum())):
        if size < SHORTEST_SPLIT:
            raise CorpusError(
                f"{root} holds {size} {split} tokens, too few to use; name a larger folder"
            )
    counts = np.bincount(ids[~held_out], minlength=len(words))
    vocabulary, fold = _vocabulary(words, counts, vocab_size)
    return Corpus(
        words=tuple(vocabulary),
        train=fold[ids[~held_out]],
        validation=fold[ids[held_out]],
        files=int(np.count_nonzero(lengths)),
    )


def _vocabulary(words: list[str], counts: np.ndarray, size: int) -> tuple[list[str], np.ndarray]:
    """The most frequent words, and for each word of the corpus its index among them."""
    fixed = (*STRUCTURE, *RARE)
    seen = [i for i in np.flatnonzero(counts) if words[i] not in fixed]
    if len(seen) + len(fixed) < size:
        raise CorpusError(
            f"the training files have {len(seen) + len(fixed)} distinct words, fewer than {size}"
        )
    seen.sort(key=lambda i: (-counts[i], words[i]))
    order = [*fixed, *(words[i] for i in seen[: size - len(fixed)])]
    index = {word: i for i, word in enumerate(order)}
    fold = np.array([index.get(word, index[_rare(word)]) for word in words], np.int32)
    return order, fold


def _rare(word: str) -> str:
    if word[0].isdigit() or (word[0] == "." and word[1:2].isdigit()):
        return RARE_NUMBER
    return RARE_STRING if word[-1] in "\"'" else RARE_NAME


def _tokenise(files: Sequence[Path]) -> Tokenised:
    index: dict[str, int] = {}
    streams: list[np.ndarray] = []
    for path in tqdm(files, desc="tokenise", unit=" files", mininterval=0.5):
        try:
            with tokenize.open(path) as file:
                words = list(words_of_source(file.read()))
        except (SyntaxError, tokenize.TokenError, UnicodeDecodeError, OSError):
            # The standard library's own tests hold files that are broken on purpose.
            words = []
        streams.append(np.array([index.setdefault(word, len(index)) for word in words], np.int32))
    ends = np.cumsum([len(stream) for stream in streams])
    return list(index), np.concatenate(streams), ends


def _cache_key(files: Sequence[Path], names: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {sys.version_info[:2]}".encode())
    for path, name in zip(files, names, strict=True):
        status = path.stat()
        digest.update(
            f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def _read_cache(cache: Path, key: str) -> Tokenised | None:
    if not cache.exists():
        return None
    with np.load(cache) as stored:
        if str(stored["key"]) != key:
            return None
        return json.loads(str(stored["words"])), stored["ids"], stored["ends"]


def _write_cache(cache: Path, key: str, tokenised: Tokenised) -> None:
    words, ids, ends = tokenised
    cache.parent.mkdir(parents=True, exist_ok=True)
    # A run that is killed here must not leave half a cache behind.
    unfinished = cache.with_suffix(".unfinished.npz")
    np.savez(unfinished, key=np.array(key), words=np.array(json.dumps(words)), ids=ids, ends=ends)
    unfinished.replace(cache)


def to_text(words: Iterable[str]) -> str:
    """Lays words out as Python source, with spaces where a programmer would put them."""
    text = ""
    brackets: list[str] = []
    level, previous, prose, sign = 0, NEWLINE, "", False
    for word in words:
        if word == FILE:
            continue
        if word in (INDENT, DEDENT):
            level = max(level + (1 if word == INDENT else -1), 0)
            # No bracket and no text reaches over the edge of a block.
            brackets, prose = [], ""
            continue
        if word == NEWLINE:
            text = text.rstrip() + "\n"
            prose = "" if prose == "#" else prose
        elif not text or text.endswith("\n"):
            text += "    " * level + word
        elif prose:
            glued = word in (prose, *").,;:!?") or (previous.endswith(prose) and prose != "#")
            text += word if glued or previous == "(" else " " + word
        elif sign or _glued(previous, word, brackets):
            text += word
        else:
            text += ("  " if word == "#" else " ") + word
        sign = not prose and word in _SIGNS and not _is_operand(previous)
        if prose:
            prose = "" if word == prose else prose
        elif word == "#" or word.endswith(_TRIPLE_QUOTES):
            prose = word[-3:]
        elif word in tuple("([{"):
            brackets.append(word)
        elif word in tuple(")]}") and brackets:
            brackets.pop()
        previous = word
    return text.strip("\n")


def _glued(previous: str, word: str, brackets: Sequence[str]) -> bool:
    """Whether no space stands between two words of code on one line."""
    if previous in ("from", "import") or word == "import":
        return False
    if word in tuple(")]},;:.") or previous in tuple("([{.@~"):
        return True
    if word in ("(", "["):
        return _is_operand(previous)
    innermost = brackets[-1] if brackets else ""
    return (innermost == "(" and "=" in (previous, word)) or (innermost == "[" and previous == ":")


def _is_operand(word: str) -> bool:
    if word[-1].isalnum() or word[-1] == "_":
        return not keyword.iskeyword(word)
    return word in RARE or word[-1] in ")]}\"'"
