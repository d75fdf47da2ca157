"""Every public name has a page of the API reference, and links of the documentation meet names."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

import pyrodyn

DOCS = Path(__file__).parent.parent / "docs"
PACKAGES = ("data", "models", "infer", "posterior", "analysis")
ROLE = re.compile(r"\{py:\w+\}`(?:[^`<]*<)?~?(pyrodyn[\w.]*)>?`")

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not here")


def pages() -> list[str]:
    return [
        name
        for task in tomllib.loads((DOCS / "api.toml").read_text())["task"]
        for name in task["names"]
    ]


def find(name: str) -> object:
    """The object of a full name, a module or what a module or class contains."""
    parts = name.split(".")
    thing: object = pyrodyn
    for depth, part in enumerate(parts[1:], start=2):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            thing = importlib.import_module(".".join(parts[:depth]))
    return thing


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_page(package):
    names = importlib.import_module(f"pyrodyn.{package}").__all__
    assert {name for name in names if f"pyrodyn.{package}.{name}" not in pages()} == set()


def test_every_name_of_the_front_package_has_a_page():
    described = {id(find(name)) for name in pages()}
    missing = [
        name
        for name in pyrodyn.__all__
        if name not in (*PACKAGES, "__version__") and id(getattr(pyrodyn, name)) not in described
    ]
    assert missing == []


def test_every_page_is_of_a_public_name_and_there_is_one_of_each():
    for name in pages():
        package, _, public = name.rpartition(".")
        assert public in importlib.import_module(package).__all__, name
    assert len(set(pages())) == len(pages())


@pytest.mark.parametrize(
    "page",
    [page for folder in ("", "models", "howto") for page in sorted((DOCS / folder).glob("*.md"))],
    ids=lambda page: page.name,
)
def test_links_to_the_reference_are_by_public_names(page):
    """A link by the name of a private module would break when that module moves."""
    things = {id(find(name)) for name in pages()}
    for name in ROLE.findall(page.read_text()):
        package = name.rpartition(".")[0]
        is_public = name in pages() or package == "pyrodyn"
        assert id(find(name)) not in things or is_public, name
