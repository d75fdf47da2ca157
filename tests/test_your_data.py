"""Every kind of data of the page `docs/your_data.md` leads to rates, in at most six lines."""

import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

PAGE = Path(__file__).parent.parent / "docs/your_data.md"
CELL = re.compile(r"^```(?:\{code-cell\}|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HIDDEN = ":tags: [remove-cell]"

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of packages, and of fits of one epoch
    pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here"),
]


def sections() -> dict[str, list[str]]:
    """Code cells by the title of their section; those before the first section have none."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    cells = {"": CELL.findall(parts[0])}
    return cells | {
        title: CELL.findall(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


SECTIONS = sections() if PAGE.exists() else {}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the page has defined before its first section, one epoch in place of thirty."""
    for package in ("pynwb", "pynapple", "neo", "spikeinterface"):
        pytest.importorskip(package)
    found: dict[str, object] = {}
    folder, back = tmp_path_factory.mktemp("page"), Path.cwd()
    os.chdir(folder)
    try:
        for cell in SECTIONS[""]:
            exec(cell.replace(HIDDEN, "").replace('"max_epochs": 30', '"max_epochs": 1'), found)
    finally:
        os.chdir(back)
    return found | {"folder": folder}


def test_the_page_has_every_kind_of_data() -> None:
    assert len(SECTIONS) == 9


SLOW = ("EEG without trials", "A continuous session of spikes")
"""Sections whose particle methods take long; the others cover what they have in common."""


@pytest.mark.parametrize(
    "title",
    [
        pytest.param(title, marks=pytest.mark.slow) if title in SLOW else title
        for title in SECTIONS
        if title
    ],
)
def test_a_section_leads_to_rates(
    title: str, names: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(names["folder"])
    cells = SECTIONS[title]
    file = "hippocampus_linear_track"
    if any(f'load("{file}")' in cell for cell in cells):
        path = Path(os.environ.get("PYRODYN_DATA", "")) / file / f"{file}.npz"
        if not path.exists():
            pytest.skip(f"{file} is not in PYRODYN_DATA")
    plt.close("all")
    for cell in cells:
        assert len(cell.strip().splitlines()) <= 6
        exec(cell, names)
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert len(figures) == 1
    figures[0].canvas.draw()
    predicted = names["pyrodyn"].predict(names["fitted"], names["valid"], num_draws=2)
    assert np.isfinite(predicted["rates"]).all()
    plt.close("all")
