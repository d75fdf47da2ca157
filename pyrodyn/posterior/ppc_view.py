"""A tree as ArviZ's predictive checks of counts want it: observations along one dim.

ArviZ's plots of counts, its calibration plots and its leave-one-out checks of predictions take one
variable per panel with all observations along one dim, and the log likelihood of each. `for_ppc`
gives them that view.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.schema import OBSERVED, Block, blocks, measured
from pyrodyn.posterior.groups import require_groups
from pyrodyn.posterior.predictions import CONSTANT, GROUP, Predicted

PREDICTIVE = ("posterior_predictive", "prior_predictive")

REMEDIES = {
    PREDICTIVE[0]: "see to_datatree",
    PREDICTIVE[1]: "draw it with num_prior_draws=",
    GROUP: "mark held-out neurons or forecast bins of the recording by pyrodyn.data.held_out",
}
"""What makes a group."""

Statistic = Callable[..., xr.DataArray]
"""Reduces some of the dims ``trial, time, neuron`` of observations, over any dims to their left."""


def for_ppc(
    tree: xr.DataTree,
    by: Literal["neuron", "channel", "trial", "time"] | None = None,
    *,
    statistic: Statistic | None = None,
    group: Literal["posterior_predictive", "prior_predictive", "predictions"] | None = None,
    num_draws: int | None = None,
) -> xr.DataTree:
    """A view of a tree whose observations lie along one dim ``observation``, measured entries only.

    Args:
        tree: from `to_datatree`.
        by: a dim that becomes one variable per label (``x_neuron_3``), hence one panel each; None
            stacks everything into ``x``. Counts and a signal stay apart (``counts``, ``signal``,
            ``counts_neuron_3``); a dim that only one of them has leaves the other out. A slash in a
            label becomes an underscore, and labels that repeat get their position.
        statistic: a function of `pyrodyn.posterior.statistics`, or one like them, that is applied
            to the data and to every draw; its values are then what is observed and predicted. A
            parameter ``rates`` of it gets the posterior mean rates. Values that are undefined (NaN)
            for the data or any draw are left out.
        group: the predictive group to keep; None keeps ``posterior_predictive`` and, if the tree
            has it, ``prior_predictive``. ``"predictions"`` views held-out neurons and forecast bins
            alone, and their observed values; for ArviZ's functions that do not take ``group=`` the
            same draws are also its ``posterior_predictive``.
        num_draws: evenly spaced draws to keep per chain; None keeps all.

    Returns:
        A tree, loaded, with ``observed_data`` and the predictive groups (integers where the data
        are counts); without a statistic also ``log_likelihood`` (each entry with that of its whole
        trial, the unit that was sampled: `arviz_stats.loo` belongs to the tree itself; or with its
        own, where the tree holds these), ``posterior`` with the expected value of each entry, and
        ``constant_data`` with what may explain it: ``observation_time``, ``observation_trial``, ...
        and the truth of simulations.
        The coordinates of an observation are its trial, time, unit and condition. Panels with the
        same entries share the dim ``observation``.

    Raises:
        ValueError: when ``by`` is no dim of the observations or the statistic, ``group`` is not in
            the tree, or a statistic is undefined throughout.
    """
    require_groups(tree, "observed_data", "constant_data")
    groups = [name for name in PREDICTIVE if name in tree.children]
    if group is not None:
        if group not in tree.children:
            raise ValueError(f"group={group!r} is not in the tree; {REMEDIES[group]}")
        groups = [group]
    if num_draws is not None:
        check_integer(1, num_draws=num_draws)
    source = _Source(tree, groups, num_draws)
    panels = [
        panel
        for block in source.blocks
        for panel in (
            source.panels(block, by) if statistic is None else source.values(block, by, statistic)
        )
    ]
    if not panels:
        raise ValueError(
            f"by={by!r} is no dim of the observations; these are {tuple(source.observed.dims)}"
        )
    first = panels[0]
    is_shared = all(panel.has_entries_of(first, by) for panel in panels)
    view: dict[str, dict[str, Any]] = {}
    coords: dict[str, Any] = {}
    for panel in panels:
        suffix = "" if is_shared else f"_{panel.name}"
        dim = f"observation{suffix}"
        for name, (lead, values) in panel.groups.items():
            variable = panel.rates if name == "posterior" else panel.name
            view.setdefault(name, {})[variable] = ((*lead, dim), values)
        for name, values in panel.coords.items():
            if not (is_shared and name == by):
                coords[f"{name}{suffix}"] = (dim, values)
    datasets = {name: xr.Dataset(variables, coords=coords) for name, variables in view.items()}
    for name, dataset in datasets.items():
        if "draw" in dataset.dims:
            drawn = source.groups[name]
            datasets[name] = dataset.assign_coords(chain=drawn["chain"], draw=drawn["draw"])
    if statistic is None:
        # Under other names than the coordinates, since plot_lm gives y the name of x.
        constant = {f"observation_{name}": values for name, values in coords.items()}
        for panel in panels:
            suffix = "" if is_shared else f"_{panel.name}"
            for name, values in panel.constant.items():
                own = name if by is None or not is_shared else f"{name}_{panel.name}"
                constant[f"{own}{suffix}"] = (f"observation{suffix}", values)
        datasets["constant_data"] = xr.Dataset(constant)
    if group == GROUP:
        # Under the names that ArviZ's functions without a choice of group ask for, too.
        datasets[PREDICTIVE[0]] = datasets[GROUP]
        if "constant_data" in datasets:
            datasets[CONSTANT] = datasets["constant_data"]
    return xr.DataTree.from_dict(datasets)


class _Panel:
    """One variable of the view.

    Attributes:
        name: of the variable.
        rates: name of its expected values.
        groups: by group the leading dims and the values, along observations last.
        coords: coordinates of the observations.
        constant: constant data of the observations.
    """

    def __init__(self, name: str, rates: str, coords: dict[str, NDArray[Any]]) -> None:
        self.name, self.rates, self.coords = name, rates, coords
        self.groups: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
        self.constant: dict[str, NDArray[Any]] = {}

    def has_entries_of(self, other: "_Panel", by: str | None) -> bool:
        """Whether both hold the same entries along all dims but ``by``."""
        return self.coords.keys() == other.coords.keys() and all(
            np.array_equal(values, other.coords[name])
            for name, values in self.coords.items()
            if name != by
        )


class _Source:
    """What a view is made of.

    Args:
        tree: from `to_datatree`.
        predictive: predictive groups to keep.
        num_draws: draws to keep per chain.
    """

    def __init__(self, tree: xr.DataTree, predictive: list[str], num_draws: int | None) -> None:
        self.observed = tree["observed_data"].to_dataset().load()
        self.recorded = recorded_data(tree)
        self.blocks: tuple[Block, ...] = blocks(self.recorded)
        self.predictive = predictive
        wanted = [name for name in ("log_likelihood", "posterior") if name in tree.children]
        whole = {name: tree[name].to_dataset() for name in wanted}
        if predictive == [GROUP]:
            predicted = Predicted(self.recorded)
            constant = tree[CONSTANT].to_dataset().load()
            names = {block.x: block.observed for block in predicted.blocks}
            self.observed, self.recorded = constant[list(names)], constant.rename(names)
            self.blocks = predicted.blocks
            whole = {name: predicted.restricted(drawn) for name, drawn in whole.items()}
        whole = {name: tree[name].to_dataset() for name in predictive} | whole
        self.groups = {name: _thinned(drawn, num_draws) for name, drawn in whole.items()}

    def panels(self, block: Block, by: str | None) -> list[_Panel]:
        """The measured entries of a block, whole or one panel per label of a dim."""
        if by is not None and by not in block.dims:
            return []
        where = measured(self.recorded, block).transpose(*block.dims)
        found = []
        for name, part in self._parts(block.x, block.dims, by):
            dims = [dim for dim in block.dims if dim not in part]
            keep = where.isel(part).values
            rates = name.replace(block.x, block.rates, 1)
            panel = _Panel(name, rates, self._coords(block, part, where))
            panel.groups["observed_data"] = (
                (),
                self.observed[block.x].isel(part).transpose(*dims).values[keep],
            )
            lead = ("chain", "draw")
            wanted = dict.fromkeys(self.predictive, block.x) | {"posterior": block.rates}
            for group, variable in wanted.items():
                if variable in self.groups.get(group, ()):
                    drawn = self.groups[group][variable].isel(part).transpose(*lead, *dims)
                    panel.groups[group] = (lead, drawn.values[..., keep])
            likelihood = self.groups.get("log_likelihood", xr.Dataset()).get(block.x)
            if likelihood is not None and block.unit in likelihood.dims:
                own = likelihood.isel(part).transpose(*lead, *dims)
                panel.groups["log_likelihood"] = (lead, own.values[..., keep])
            elif likelihood is not None:
                of_trial = likelihood.transpose(*lead, "trial")
                position = xr.DataArray(np.arange(where.sizes["trial"]), dims="trial")
                positions = position.broadcast_like(where).transpose(*block.dims)
                panel.groups["log_likelihood"] = (
                    lead,
                    of_trial.values[..., positions.isel(part).values[keep]],
                )
            for truth in (block.rates,):
                if truth in self.recorded:
                    values = self.recorded[truth].isel(part).transpose(*dims).values[keep]
                    panel.constant[f"true_{truth}"] = values
            found.append(panel)
        return found

    def values(self, block: Block, by: str | None, statistic: Statistic) -> list[_Panel]:
        """A statistic of the data and of every draw, whole or one panel per label of a dim."""
        where = measured(self.recorded, block)
        coords = {
            name: coordinate
            for name, coordinate in self.recorded.coords.items()
            if set(coordinate.dims) <= set(block.dims)
        }
        if "condition" in self.recorded:
            coords["condition"] = self.recorded["condition"]
        more = {}
        if takes_rates(statistic):
            more["rates"] = self.groups["posterior"][block.rates].mean(("chain", "draw"))
        of_data = statistic(self.observed[block.x].where(where).assign_coords(coords), **more)
        of_draws = {
            group: statistic(self.groups[group][block.x].where(where).assign_coords(coords), **more)
            for group in self.predictive
        }
        dims = tuple(map(str, of_data.dims))
        if by is not None and by not in dims:
            raise ValueError(f"by={by!r} is no dim of the statistic; these are {dims}")
        found = []
        for name, part in self._parts(block.x, dims, by, of_data):
            rest = [dim for dim in dims if dim not in part]
            of_part = of_data.isel(part).transpose(*rest)
            drawn = {
                group: values.isel(part).transpose("chain", "draw", *rest)
                for group, values in of_draws.items()
            }
            keep = np.isfinite(of_part.values)
            for values in drawn.values():
                keep &= np.isfinite(values.values).all((0, 1))
            if not keep.any():
                raise ValueError(
                    f"the statistic of {name} is undefined for the data or for some draw at every"
                    " entry"
                )
            place = {
                str(key): coordinate.broadcast_like(of_part).transpose(*rest).values[keep]
                for key, coordinate in of_part.coords.items()
                if set(coordinate.dims) <= set(rest) and coordinate.dims
            }
            panel = _Panel(name, name, place)
            panel.groups["observed_data"] = ((), of_part.values[keep])
            for group, values in drawn.items():
                panel.groups[group] = (("chain", "draw"), values.values[..., keep])
            found.append(panel)
        return found

    def _parts(
        self, x: str, dims: tuple[str, ...], by: str | None, labelled: xr.DataArray | None = None
    ) -> list[tuple[str, dict[str, int]]]:
        """Name and selection of each panel."""
        if by is None:
            return [(x, {})]
        source = self.observed if labelled is None else labelled
        labels = [str(label).replace("/", "_") for label in source[by].values]
        names = [
            f"{x}_{by}_{label}" + (f"_at_{i}" if labels.count(label) > 1 else "")
            for i, label in enumerate(labels)
        ]
        return [(name, {by: i}) for i, name in enumerate(names)]

    def _coords(
        self, block: Block, part: dict[str, int], where: xr.DataArray
    ) -> dict[str, NDArray[Any]]:
        """Trial, time, unit and condition of each kept entry."""
        dims = [dim for dim in block.dims if dim not in part]
        keep = where.isel(part).values
        found = {}
        wanted = {name: self.recorded[name] for name in block.dims}
        if "condition" in self.recorded:
            wanted["condition"] = self.recorded["condition"]
        for name, values in wanted.items():
            along = values.drop_vars(values.coords).broadcast_like(where).transpose(*block.dims)
            found[name] = along.isel(part).transpose(*dims).values[keep]
        return found


def recorded_data(tree: xr.DataTree) -> xr.Dataset:
    """The data of a tree as in a recording, where each observed variable goes by its own name."""
    names = {unit: name for name, unit in OBSERVED.items()}
    x = tree["observed_data"].to_dataset().data_vars.values()
    return tree["constant_data"].to_dataset().assign({names[str(v.dims[-1])]: v for v in x}).load()


def takes_rates(statistic: Statistic) -> bool:
    """Whether a statistic has a parameter ``rates`` that is yet to be given."""
    parameter = inspect.signature(statistic).parameters.get("rates")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _thinned(drawn: xr.Dataset, num_draws: int | None) -> xr.Dataset:
    size = drawn.sizes["draw"]
    if num_draws is None or num_draws >= size:
        return drawn.load()
    return drawn.isel(draw=np.linspace(0, size - 1, num_draws).round().astype(int)).load()
