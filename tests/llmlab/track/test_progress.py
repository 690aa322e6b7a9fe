import io

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
    row = {"step": "3/9", "loss": 3.14159, "lr": 0.00029, "tok_per_s": 38123.4, "eta": 372}
    assert format_row({"eta": 221.0}) == "eta 3m41s"
    assert format_row(row) == "step 3/9  loss 3.142  lr 2.9e-04  tok_per_s 38.1k  eta 6m12s"
