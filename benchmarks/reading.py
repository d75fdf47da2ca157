"""Memory needed to read a large file: the peak of a process that reads it, beside the file's size.

A file of each format is made, with as many bytes of data as asked for and nothing that compresses.
A process of its own then imports pyrodyn, notes the memory in use, reads the file and prints the
peak. The peak above the start, divided by the size of the data, is what reading takes; 1 is the
recording itself.

    uv run python benchmarks/reading.py
    uv run python benchmarks/reading.py --megabytes 100
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pynwb
import results

from pyrodyn.data import recording, write

TRIALS, NEURONS = 50, 100
READER = """
import sys
from pathlib import Path
import pynwb
import pyrodyn
from pyrodyn.data import read, read_nwb

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

path, before = sys.argv[1], memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
if path.endswith(".nwb"):
    data = read_nwb(path, bin_width=0.02, behavior=["raw"])
else:
    data = read(path, **({"bin_width": 0.01} if path.endswith(".h5") else {}))
print(before, memory("VmHWM"), data.nbytes)
"""


def counts(size: int) -> np.ndarray:
    """Spike counts of so many bytes."""
    shape = (TRIALS, size // (4 * TRIALS * NEURONS), NEURONS)
    return np.random.default_rng(0).poisson(0.3, shape).astype(np.int32)


def signal(size: int) -> np.ndarray:
    shape = (TRIALS, size // (4 * TRIALS * NEURONS), NEURONS)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def npz(path: Path, size: int) -> None:
    np.savez(path, signal=signal(size), bin_width=0.01)


def written(path: Path, size: int) -> None:
    write(recording(signal=signal(size), bin_width=0.01), path)


def lfads(path: Path, size: int) -> None:
    every = counts(size)
    with h5py.File(path, "w") as file:
        file["train_data"], file["valid_data"] = every[: 4 * TRIALS // 5], every[4 * TRIALS // 5 :]


def nwb(path: Path, size: int) -> None:
    """A fiftieth spike times, the rest a raw field potential that becomes behaviour."""
    rng = np.random.default_rng(0)
    file = pynwb.NWBFile("benchmark", "a", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
    seconds = 1000.0
    for start in np.arange(0, seconds, 10.0):
        file.add_trial(start_time=start, stop_time=start + 5)
    for _ in range(NEURONS):
        file.add_unit(spike_times=np.sort(rng.uniform(0, seconds, size // (400 * NEURONS))))
    raw = rng.integers(-2000, 2000, (size // 16, 8), dtype=np.int16)
    series = {"data": raw, "unit": "V", "rate": len(raw) / seconds, "conversion": 1e-6}
    file.add_acquisition(pynwb.TimeSeries(name="raw", **series))
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)


FORMATS: dict[str, Callable[[Path, int], None]] = {
    ".npz": npz,
    ".nc": written,
    ".zarr": written,
    ".h5": lfads,
    ".nwb": nwb,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    arguments = parser.parse_args()
    size = arguments.megabytes * 10**6
    rows = []
    print(f"{'format':>8}{'file, MB':>12}{'peak, MB':>12}{'peak / file':>14}")
    for suffix in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"large{suffix}"
            FORMATS[suffix](path, size)
            found = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", READER, str(path)],
                check=True,
                capture_output=True,
                text=True,
            )
        before, peak, num_bytes = map(int, found.stdout.split())
        row = {
            "format": suffix,
            "file_mb": size / 1e6,
            "recording_mb": num_bytes / 1e6,
            "start_mb": before / 1e6,
            "peak_mb": (peak - before) / 1e6,
            "ratio": (peak - before) / size,
        }
        rows.append(row)
        print(f"{suffix:>8}{size / 1e6:>12.0f}{row['peak_mb']:>12.0f}{row['ratio']:>14.2f}")
    results.save("reading", rows)


if __name__ == "__main__":
    main()
