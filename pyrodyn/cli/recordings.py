"""Commands that make, list and fetch recordings, and how every command finds one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrodyn.cli.options import BinWidth, Seed

if TYPE_CHECKING:
    import xarray as xr


def simulate(
    system: Annotated[
        str, typer.Argument(help="lorenz, rossler, arneodo, chaotic_rnn, pulsed_rnn, ...")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .npz, .nc or .zarr.")],
    trials: int = 400,
    bins: int = 100,
    neurons: int = 50,
    channels: Annotated[
        int, typer.Option(help="Channels of a signal in addition to the spikes.")
    ] = 0,
    bin_width: Annotated[float, typer.Option(help="Seconds per bin.")] = 0.01,
    mean_rate: Annotated[float, typer.Option(help="Spikes per second.")] = 20.0,
    seed: Seed = 0,
) -> None:
    """Simulate a recording with known truth and write it."""
    from pyrodyn.data import simulate as simulate_recording
    from pyrodyn.data import write

    if out.exists():
        raise ValueError(f"{out} exists; choose another file, or remove it first")
    write(
        simulate_recording(
            system,
            trials,
            bins,
            neurons,
            num_channels=channels,
            bin_width=bin_width,
            mean_rate=mean_rate,
            seed=seed,
        ),
        out,
    )
    typer.echo(f"wrote {trials} trials x {bins} bins x {neurons} neurons to {out}")


def sessions(
    recordings: Annotated[
        list[str], typer.Argument(help="Files, or names of recordings: one per session.")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .npz, .nc or .zarr.")],
    bin_width: BinWidth = None,
) -> None:
    """Write several sessions as one recording, which one model fits together; each session is named
    after its file.
    """
    from pyrodyn.data import sessions as joined
    from pyrodyn.data import write

    if out.exists():
        raise ValueError(f"{out} exists; choose another file, or remove it first")
    parts: dict[str, xr.Dataset] = {}
    for name in recordings:
        session = Path(name).stem
        if session in parts:
            raise ValueError(f"two sessions are named {session}; rename one of the files")
        parts[session] = recording_of(name, bin_width)
    whole = joined(parts)
    write(whole, out)
    typer.echo(f"wrote {len(parts)} sessions, {summary(whole)}, to {out}")


def list_data() -> None:
    """List the named recordings: description, licence, size, and whether they are present; `fit`
    and `data fetch` download one that is absent.
    """
    from pyrodyn.data import catalog

    rows = catalog()
    name_width, shape_width = (
        max(len(getattr(row.entry, field)) for row in rows) for field in ("name", "shape")
    )
    for entry, path in rows:
        here = "absent" if path is None else "present"
        typer.echo(
            f"{entry.name:<{name_width}}  {here:<7}  {entry.size:>7}  {entry.shape:<{shape_width}}"
            f"  {entry.licence}\n    {entry.what}"
        )


def fetch(
    name: Annotated[str, typer.Argument(help="A named recording (see: data list).")],
) -> None:
    """Download a named recording into the cache, unless it is present."""
    from pyrodyn.data import load

    typer.echo(f"{name} is present: {summary(load(name))}")


def summary(data: "xr.Dataset") -> str:
    """Sizes, bin width and mean rate of a recording."""
    from pyrodyn.data.schema import blocks, measured

    width = data.attrs["bin_width"]
    units = " and ".join(f"{block.size} {block.unit}s" for block in blocks(data))
    sizes = f"{data.sizes['trial']} trials x {data.sizes['time']} bins of {width:g} s x {units}"
    if "counts" not in data:
        return sizes
    mean = float(data["counts"].where(measured(data, blocks(data)[0])).mean())
    return f"{sizes}, {mean / width:.3g} spikes per second and neuron"


def recording_of(name: str, bin_width: float | None, **nwb: Any) -> "xr.Dataset":
    """The file of that name, if any, otherwise the named recording."""
    from pyrodyn.data import load, read, read_nwb

    if nwb:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in nwb)
        if Path(name).suffix.lower() != ".nwb":
            raise ValueError(f"{options}: for NWB files, which {name} is not")
        if bin_width is None:
            raise ValueError(f"{name} holds spike times; give --bin-width in seconds")
        return read_nwb(name, bin_width=bin_width, **nwb)
    if Path(name).exists() or Path(name).suffix:
        return read(name) if bin_width is None else read(name, bin_width=bin_width)
    if bin_width is not None:
        raise ValueError(
            f"--bin-width {bin_width:g} is for files that do not state it; {name} is a named"
            " recording, which does"
        )
    return load(name)
