"""A report as one HTML page without network: text, tables and figures as SVG, which take the
colours of the page, light or dark.
"""

import html
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from pyrodyn.posterior.report_figures import (
    Panel,
    calibration_panels,
    evidence_panels,
    latent_panels,
    psth_panels,
    statistic_panels,
    trial_panels,
)

if TYPE_CHECKING:
    from pyrodyn.posterior.report import Report

INK = "#010203"
"""Colour of text and axes in figures, which the page replaces by that of its text."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --rule: #d5d9de;
  --card: #f4f6f8; --good: #1a7f46; --fair: #9a6700; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171a; --rule: #3a4046;
  --card: #1e2226; --good: #58c48a; --fair: #e0b04a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.role { padding: .6rem .9rem; border-left: .35rem solid; font-weight: 600; }
.unseen { border-color: var(--good); } .validated, .unknown { border-color: var(--fair); }
.trained { border-color: var(--bad); color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; padding: .9rem;
  background: var(--card); border-radius: .5rem; margin: 1rem 0; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
tr.missed td { color: var(--bad); }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; }
figcaption { font-size: .85rem; opacity: .8; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

COLUMNS = {
    "num": "values",
    "observed": "observed",
    "predicted": "predicted",
    "num_above": "above 95 %",
    "num_below": "below 95 %",
    "chance": "chance of so many",
    "num_flagged": "flagged",
}
"""Columns of the table of statistics and their headings."""


def page(report: "Report", role: str) -> str:
    """The HTML of a report.

    Args:
        report: from `check`.
        role: the sentence about the role of its trials in the fit.
    """
    model = report.card["model"].split(",")[0]
    parts = [
        f"<h1>pyrodyn check: {html.escape(model)}</h1>",
        f'<p class="role {report.role}">{html.escape(role)}</p>',
        "<dl>",
        *(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in report.card.items()),
        "</dl>",
        "<h2>Findings</h2>",
        _list(report.findings),
        "<h2>What to try next</h2>",
        _list(report.advice),
        "<h2>Statistics</h2>",
        _table(report),
    ]
    with mpl.rc_context(_colours()):
        for title, panels in _sections(report):
            shown = [_figure(panel, f"{title}-{i}") for i, panel in enumerate(panels)]
            if shown:
                parts += [f"<h2>{title}</h2>", '<div class="panels">', *shown, "</div>"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>pyrodyn check: {html.escape(model)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _sections(report: "Report") -> Iterator[tuple[str, Iterable[Panel]]]:
    for variable, p_values in report.p_values.items():
        title = "Observed and predicted statistics"
        yield (
            title if len(report.p_values) == 1 else f"{title}: {variable}",
            statistic_panels(p_values),
        )
    yield "Peristimulus time histograms", psth_panels(report.tree)
    yield "Single trials", trial_panels(report.tree)
    yield "Calibration of predictions", calibration_panels(report.pit)
    if report.evidence is not None:
        yield "Evidence and k-hat", evidence_panels(report.evidence)
    yield "Latents by condition", latent_panels(report.tree)


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(each)}</li>" for each in sentences) + "</ul>"


def _table(report: "Report") -> str:
    rows = ["<tr><th></th>" + "".join(f"<th>{each}</th>" for each in COLUMNS.values()) + "</tr>"]
    for (variable, name), row in report.statistics.iterrows():
        label = name if len(report.p_values) == 1 else f"{variable}: {name}"
        is_missed = ' class="missed"' if report.is_missed[variable, name] else ""
        cells = "".join(f"<td>{row[column]:.3g}</td>" for column in COLUMNS)
        rows.append(f"<tr{is_missed}><td>{html.escape(label)}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _figure(panel: Panel, salt: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        panel.figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    caption = html.escape(panel.caption)
    label = f'role="img" aria-label="{caption}"'
    return f"<figure {label}>{drawing}<figcaption>{caption}</figcaption></figure>"


def _colours() -> dict[Any, Any]:
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {**dict.fromkeys(inked, INK), "svg.fonttype": "none", "font.size": 9}
