"""The progress line: one line, overwritten or logged, with the time that is left at most."""

import io
import re
import sys

import pytest

import pyrodyn
from pyrodyn.data import simulate
from pyrodyn.infer.training import progress
from pyrodyn.models import LFADS


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def recording():
    return simulate("lorenz", 8, 10, 4)


def shown(monkeypatch, recording, stream, valid=None, **limits):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(progress, "SECONDS_SHOWN", 0.0)
    model = LFADS.for_recording(recording, generator_dim=4, encoder_dim=4, seed=0)
    fitted = pyrodyn.fit(model, recording, valid, batch_size=4, **limits)
    monkeypatch.undo()
    return stream.getvalue(), fitted


@pytest.mark.filterwarnings("ignore::pyrodyn.infer.FitWarning")
def test_a_terminal_shows_one_line_that_is_overwritten(monkeypatch, recording):
    text, fitted = shown(
        monkeypatch, recording, Terminal(), recording, max_epochs=3, max_minutes=100.0
    )
    assert text.count("\n") == 1 and text.endswith("\n")
    states = [state.rstrip() for state in text.strip("\r\n").split("\r")]
    assert len(states) == 7  # after each of 6 steps, and at the end
    assert re.fullmatch(r"step 1 of at most 6, 0:0\d, at most \d+:\d\d left", states[0])
    best = fitted.history["valid_loss"].values.min()
    assert re.fullmatch(
        rf"step 6 of at most 6, 0:0\d; validation loss [\d.]+, best {best:.2f}"
        rf" \(epoch {fitted.best_epoch}\)",
        states[-1],
    )
    # A shorter line erases a longer one.
    lengths = [len(state) for state in text.strip("\r\n").split("\r")]
    assert all(later >= len(earlier) for earlier, later in zip(states, lengths[1:], strict=False))


@pytest.mark.filterwarnings("ignore::pyrodyn.infer.FitWarning")
def test_a_log_file_gets_whole_lines_and_few(monkeypatch, recording):
    text, fitted = shown(monkeypatch, recording, io.StringIO(), max_epochs=2)
    loss = float(fitted.history["train_loss"][-1])
    assert re.fullmatch(rf"step 4 of at most 4, 0:0\d; training loss {loss:.2f}\n", text)


def test_progress_false_writes_nothing(monkeypatch, recording):
    text, _ = shown(monkeypatch, recording, Terminal(), max_epochs=1, progress=False)
    assert text == ""


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0:00"), (75.0, "1:15"), (3700.0, "1:01:40"), (-3.0, "0:00")]
)
def test_clock(seconds, expected):
    assert progress._clock(seconds) == expected
