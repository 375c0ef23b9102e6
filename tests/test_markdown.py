"""The Python in README.md and docs/ runs as printed, top to bottom, one namespace per page."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?:python|pycon)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DOCS = [page for page in sorted(ROOT.glob("docs/*.md")) if FENCE.search(page.read_text())]


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda page: page.name)
def test_page_runs(page: Path):
    text = page.read_text()
    blocks = list(FENCE.finditer(text))
    assert blocks
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        if ">>>" not in block[1]:
            exec(compile("\n" * line + block[1], str(page), "exec"), names)
            continue
        session = doctest.DocTestParser().get_doctest(block[1], names, page.name, str(page), line)
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        report: list[str] = []
        runner.run(session, out=report.append, clear_globs=False)
        names.update(session.globs)
        assert not runner.failures, "".join(report)
