"""The benchmark page and README's table are what the files of results give."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks/page.py"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("benchmark_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(page):
    assert page.PAGE.read_text() == page.page(), "run benchmarks/page.py"


def test_the_table_of_the_readme_is_current(page):
    assert page.README.read_text() == page.readme(), "run benchmarks/page.py"


def test_sections_are_short(page):
    lines = page.page().splitlines()
    num_words = sum(len(line.split()) for line in lines if not line.startswith("|"))
    assert num_words <= 60 * sum(line.startswith("## ") for line in lines)
