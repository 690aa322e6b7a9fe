import io
import os
import pty
import termios

import pytest

from llmlab.track import Progress
from llmlab.track.progress import format_row


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_piped_output_is_plain_lines_and_keeps_the_last_row():
    stream = io.StringIO()
    progress = Progress(stream, "train", every_s=3600)
    for step in range(5):
        progress({"step": step})
    progress({"note": "done soon"})
    progress({"step": 9})
    progress.close()
    assert stream.getvalue().splitlines() == [
        "train  step 0",
        "train  step 4",
        "train  done soon",
        "train  step 9",
    ]


def test_a_terminal_gets_one_live_line_that_erases_the_longer_one_before():
    stream = Terminal()
    progress = Progress(stream)
    progress({"loss": 12.25})
    progress({"loss": 1.0})
    progress.close()
    assert stream.getvalue() == "\rloss 12.25\rloss 1    \n"


def test_numbers_read_well():
    row = {
        "step": "3/9",
        "loss": 3.14159,
        "lr": 0.00029,
        "tok_per_s": 38123.4,
        "mfu": 0.4123,
        "eta": 372,
    }
    assert format_row({"eta": 221.0}) == "eta 3m41s"
    assert format_row(row) == "step 3/9  loss 3.142  lr 2.9e-04  38.1k tok/s  mfu 41%  eta 6m12s"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (80, "pretrain  step 12/50  loss 3.142  1.25 bits/byte  lr 2.9e-04  eta 6m12s"),
        (70, "step 12/50  loss 3.142  1.25 bits/byte  lr 2.9e-04  eta 6m12s"),
        (60, "step 12/50  loss 3.142  1.25 bits/byte  eta 6m12s"),
        (12, "eta 6m12s"),
    ],
)
def test_a_line_never_wraps_on_a_real_terminal(columns, shown):
    main, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    with os.fdopen(follower, "w") as stream:
        progress = Progress(stream, "pretrain")
        progress({"step": "12/50", "loss": 3.1416, "bits_per_byte": 1.25, "lr": 2.9e-4, "eta": 372})
        progress.close()
        written = b""
        while not written.endswith(b"\n"):
            written += os.read(main, 4096)
    os.close(main)
    assert written.decode() == f"\r{shown}\r\n"
