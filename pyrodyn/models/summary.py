"""What a model shows of itself at the prompt and in a notebook: a short table, in text or HTML."""

import html
from typing import Any

from torch import nn

Row = tuple[str, str]


def model_summary(
    model: nn.Module,
    config: dict[str, Any],
    record: dict[str, Any],
    sites: dict[str, tuple[str, ...]],
) -> list[Row]:
    """Name and value of each row; the first is the class and whether and how it was fitted."""
    sizes = ", ".join(f"{name}={value!r}" for name, value in config.items())
    dims = ", ".join(f"{name} ({', '.join(('trial', *of))})" for name, of in sites.items())
    rows = [
        (type(model).__name__, _training(record)),
        ("sites", dims),
        ("arguments", sizes),
        ("weights", f"{sum(p.numel() for p in model.parameters()):,}"),
    ]
    priors = getattr(model, "priors", None)
    if priors is not None:
        rows.insert(2, ("priors", ", ".join(priors.cards)))
    if "data" in record:
        rows.insert(1, ("data", _data(record["data"])))
    return rows


def as_text(rows: list[Row]) -> str:
    """The rows under their title, aligned."""
    (title, state), *rest = rows
    width = max(len(name) for name, _ in rest)
    return "\n".join([f"{title}: {state}", *(f"  {name:<{width}}  {text}" for name, text in rest)])


def as_html(rows: list[Row]) -> str:
    """The same as a table. Colours are those of the page, so that it fits a dark one too."""
    (title, state), *rest = rows
    cells = "".join(
        f'<tr><th style="text-align:left;vertical-align:top">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in rest
    )
    return f"<div><b>{html.escape(title)}</b>: {html.escape(state)}<table>{cells}</table></div>"


def _training(record: dict[str, Any]) -> str:
    if "training" not in record:
        return "not fitted"
    training = record["training"]
    guide = f" with the guide {training['guide']}" if training.get("guide") else ""
    trials = len(training.get("trials", {}).get("train", []))
    fitted_to = f" to {trials} trials" if trials else ""
    steps = "1 step" if training["num_steps"] == 1 else f"{training['num_steps']} steps"
    return f"fitted by {training['objective']['name']}{guide}{fitted_to} in {steps}"


def _data(data: dict[str, Any]) -> str:
    units = " and ".join(
        f"{len(data[unit])} {unit}s" for unit in ("neuron", "channel") if unit in data
    )
    return f"{data['observed']} of {units}, {data['num_bins']} bins of {data['bin_width']:g} s"
