"""Named recordings: public data sets used by tutorials, benchmarks and tests.

`load` searches for NAME in this order:

1. ``$PYRODYN_DATA/NAME/NAME.npz``, the source's arrays;
2. the user's cache, which holds the recordings downloaded before;
3. the public source. Its files are pinned by address and SHA-256, and files of other contents are
   discarded. A downloaded recording is converted once and kept in the cache.

Where the hashes of a source's files are not known, the arrays converted from them are pinned by
their SHA-256 instead.

Some recordings are public only as pickles. Opening a pickle can execute any code, so pyrodyn never
does; for these `load` names the archive that holds the full data as NWB files.
"""

import hashlib
import importlib.util
import os
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import xarray as xr

from pyrodyn.data import sources
from pyrodyn.data.readers import npz_arrays, read, write
from pyrodyn.data.sources import Arrays


class Source(NamedTuple):
    """One public file."""

    url: str
    """Its address, which names one commit or release."""
    sha256: str | None
    """Hash of its contents; None where the entry pins the converted arrays."""


class Entry(NamedTuple):
    """One named recording."""

    name: str
    """The argument of `load`."""
    what: str
    """Description in one line."""
    shape: str
    """Trials x bins x neurons | channels."""
    size: str
    """Of the file."""
    licence: str
    """Of the data."""
    citation: str
    """To be cited where it is used."""
    build: Callable[[Arrays], xr.Dataset]
    """Makes a recording of the source's arrays."""
    sources: tuple[Source, ...] = ()
    """The public files; empty if there are only pickles."""
    convert: Callable[[Sequence[Path]], Arrays] | None = None
    """Reads the source's arrays from those files."""
    arrays_sha256: str | None = None
    """Hash of these arrays (see `arrays_digest`), if the files have none."""
    extra: tuple[str, str] | None = None
    """A package that the conversion needs, and the extra of pyrodyn that installs it."""
    dandiset: str = ""
    """Identifier of the full data in the DANDI archive."""


class Row(NamedTuple):
    """One line of `catalog`."""

    entry: Entry
    """The recording."""
    path: Path | None
    """Its file on this machine; None if it would have to be downloaded."""


def load(name: str) -> xr.Dataset:
    """A named recording, from ``PYRODYN_DATA``, the user's cache or its public source.

    Args:
        name: one of the names of `CATALOG`.

    Returns:
        A validated recording, with its ``name``, ``licence`` and ``citation`` in attrs.

    Raises:
        ValueError: for an unknown name, a broken file, or a download whose contents are not those
            pinned.
        FileNotFoundError: if the recording is not present and has no source that can be opened.
        ConnectionError: if the source cannot be reached.
        ImportError: if the conversion needs a package that is not installed.
    """
    if name not in CATALOG:
        raise ValueError(f"no recording is named {name!r}; there are {', '.join(CATALOG)}")
    entry = CATALOG[name]
    local, cached = _local(name), _cached(name)
    if local is not None:
        return _built(entry, npz_arrays(local), local)
    if cached.exists():
        return read(cached)
    if not entry.sources or entry.convert is None:
        raise FileNotFoundError(
            f"{name} is not in PYRODYN_DATA ({os.environ.get('PYRODYN_DATA', 'not set')}) and"
            " is public only as a pickle, which pyrodyn never opens; the full data are"
            f" DANDI:{entry.dandiset}: fetch them with `dandi download DANDI:{entry.dandiset}` and"
            " bin them with pyrodyn.data.nwb.read_nwb"
        )
    if entry.extra is not None and importlib.util.find_spec(entry.extra[0]) is None:
        package, extra = entry.extra
        raise ImportError(
            f"converting {name} needs {package}, which is not installed:"
            f" pip install 'pyrodyn[{extra}]'"
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=f".{name}-") as folder:
        files = [_downloaded(name, source, Path(folder)) for source in entry.sources]
        data = _built(entry, _converted(entry, files), files[0])
    write(data, cached)
    return data


def catalog() -> list[Row]:
    """The named recordings, each with its file on this machine, if any."""
    rows = []
    for entry in CATALOG.values():
        cached = _cached(entry.name)
        rows.append(Row(entry, _local(entry.name) or (cached if cached.exists() else None)))
    return rows


def _local(name: str) -> Path | None:
    """The recording's file in the folder ``PYRODYN_DATA``, if any."""
    folder = os.environ.get("PYRODYN_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise ValueError(
            f"the environment variable PYRODYN_DATA names {folder}, which is not a folder"
        )
    path = Path(folder) / name / f"{name}.npz"
    return path if path.exists() else None


def _cached(name: str) -> Path:
    return Path(pooch.os_cache("pyrodyn")) / f"{name}.npz"


def _built(entry: Entry, arrays: Arrays, path: Path) -> xr.Dataset:
    try:
        data = entry.build(arrays)
    except KeyError as error:
        raise ValueError(f"{path} is not the file of {entry.name}: it has no {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not the file of {entry.name}: {error}") from None
    about = {"name": entry.name, "licence": entry.licence, "citation": entry.citation}
    return data.assign_attrs(about)


def arrays_digest(arrays: Arrays) -> str:
    """SHA-256 of names, types, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _converted(entry: Entry, files: Sequence[Path]) -> Arrays:
    """The arrays of downloaded files, which are those pinned."""
    assert entry.convert is not None
    addresses = " and ".join(source.url for source in entry.sources)
    pinned = entry.arrays_sha256
    try:
        arrays = entry.convert(files)
    except Exception as error:  # files without a hash of their own may have any contents
        if pinned is None:
            raise
        raise ValueError(
            f"{addresses} cannot be converted to {entry.name}"
            f" ({textwrap.shorten(f'{type(error).__name__}: {error}', 120)}); nothing was kept"
        ) from None
    if pinned is not None and arrays_digest(arrays) != pinned:
        raise ValueError(
            f"{addresses} do not have the contents pinned for {entry.name} (SHA-256 of their arrays"
            f" {pinned}); nothing was kept"
        )
    return arrays


def _downloaded(name: str, source: Source, folder: Path) -> Path:
    fname = source.url.rsplit("/", 1)[-1]
    try:
        path = pooch.retrieve(
            source.url,
            known_hash=source.sha256 and f"sha256:{source.sha256}",
            path=folder,
            fname=fname,
        )
    except ValueError:
        raise ValueError(
            f"{source.url} does not have the contents pinned for {name} (SHA-256 {source.sha256});"
            " nothing was kept"
        ) from None
    except OSError as error:  # includes network errors
        reason = textwrap.shorten(str(error), 120)
        raise ConnectionError(
            f"{name} could not be downloaded from {source.url} ({reason}); to use a copy, set"
            f" PYRODYN_DATA to a folder with {name}/{name}.npz"
        ) from None
    return Path(path)


_GITHUB = "https://raw.githubusercontent.com"
_PHYSIONET = "https://physionet.org/files/eegmmidb/1.0.0"

CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="lorenz_lfads_truth",
            what="simulated spikes driven by the Lorenz system, with true rates and latents",
            shape="800 x 100 x 60",
            size="1.8 MB",
            licence="MIT",
            citation="Pei, lfads-nlb-tutorials; after Sussillo et al. 2016, arXiv 1608.06315",
            build=sources.lorenz,
            sources=(
                Source(
                    f"{_GITHUB}/felixp8/lfads-nlb-tutorials/"
                    "1c50908c5366a755a5ace4a8be706046fb4fa435/data/lfads_lorenz.h5",
                    "c55b9b38d38054c2f43909a195058d1d242dc291f607a2d45fab4d85977ab54d",
                ),
            ),
            convert=sources.hdf5_arrays,
        ),
        Entry(
            name="mc_maze_large_9cond",
            what="macaque M1 and PMd, delayed reaching, with hand position and velocity",
            shape="132 x 100 x 162",
            size="0.3 MB",
            licence="CC-BY-4.0",
            citation="Churchland & Kaufman, doi 10.48324/dandi.000138; Pei, Ye et al., NeurIPS 2021"
            " Datasets and Benchmarks; cut as in Nadew et al., ICML 2024",
            build=sources.mc_maze,
            dandiset="000138",
        ),
        Entry(
            name="chewie_m1_co_1003",
            what="macaque M1, centre-out reaching to 8 targets, trials of unequal length",
            shape="159 x 7-16 x 174",
            size="0.1 MB",
            licence="Apache-2.0",
            citation="Dyer et al., Nat Biomed Eng 2017; Azabou et al., NeurIPS 2021",
            build=sources.chewie,
            dandiset="000688",
        ),
        Entry(
            name="chewie_m1_co_1219",
            what="the monkey of chewie_m1_co_1003 eleven weeks later",
            shape="180 x 3-9 x 155",
            size="0.1 MB",
            licence="Apache-2.0",
            citation="Dyer et al., Nat Biomed Eng 2017; Azabou et al., NeurIPS 2021",
            build=sources.chewie,
            dandiset="000688",
        ),
        Entry(
            name="hippocampus_linear_track",
            what="rat CA1, running on a linear track and resting, with position",
            shape="1 x 39363 x 31",
            size="0.7 MB",
            licence="MIT",
            citation="Kemere laboratory, Rice University; example data of nelpy",
            build=sources.hippocampus,
            sources=tuple(
                Source(
                    f"{_GITHUB}/nelpy/example-data/"
                    f"099548c0608ffaa92933c66346c0d96f05a18622/linear-track/{file}",
                    None,
                )
                for file in ("spikes.mat", "trajectory.videoPositionTracking")
            ),
            convert=sources.track_arrays,
            arrays_sha256="ca42a3c79e98054f3a17daa4346b93e2935eacd6d0541f73ec476505c1e6c038",
        ),
        Entry(
            name="eeg_durstewitz_smoothed",
            what="human scalp EEG at rest, 160 Hz, standardised and smoothed",
            shape="1 x 9640 x 64",
            size="2.5 MB",
            licence="ODC-By-1.0",
            citation="Schalk et al., IEEE Trans Biomed Eng 2004; Goldberger et al., Circulation"
            " 2000; smoothed by Brenner et al., ICML 2022",
            build=sources.smoothed_eeg,
            sources=(
                Source(
                    f"{_GITHUB}/DurstewitzLab/GTF-shPLRNN/"
                    "b6172ce816f1910e54c30776ff49e52b5489430a/ICML2023_datasets/EEG/EEG_train.npy",
                    "7cc56e3b648ce492e1ac3d4284c46ccd1092e4abbc4c45f020b8c4a0b2a994bf",
                ),
            ),
            convert=sources.npy_arrays,
        ),
        Entry(
            name="eegmmidb_s001_imagery",
            what="human scalp EEG, imagined movement of fists and feet, 160 Hz, raw",
            shape="2 x 20000 x 64",
            size="5.1 MB",
            licence="ODC-By-1.0",
            citation="Schalk et al., IEEE Trans Biomed Eng 2004; Goldberger et al., Circulation"
            " 2000",
            build=sources.imagery_eeg,
            sources=(
                Source(
                    f"{_PHYSIONET}/S001/S001R06.edf",
                    "5369364f2c4e81ca141679d6dd2ba6ece61c7eb53d7fae31241b308876e1b6b3",
                ),
                Source(
                    f"{_PHYSIONET}/S001/S001R10.edf",
                    "20de1c7746c2349d16bda5e9f1b0ac7b7ad1581102a2e30dd2ac422696f62fb1",
                ),
            ),
            convert=sources.edf_arrays,
            extra=("pyedflib", "edf"),
        ),
    )
}
"""The named recordings."""
