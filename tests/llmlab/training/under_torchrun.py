"""What test_torchrun.py has torchrun start: a small training run, in which a rank may be killed.

torchrun ... -m tests.llmlab.training.under_torchrun OUT PARALLEL VICTIM
"""

import os
import signal
import sys
from pathlib import Path

from llmlab.training import Hooks, TrainingPlan, find_latest, train
from llmlab.training.distributed import on_first, process_group, rank
from tests.llmlab.training.small import SmallBatches, small_model

STEPS, EVERY, KILLED_AT = 20, 4, 10


def main(out: Path, parallel: str, victim: int) -> None:
    """Train for 20 steps; the first time, the rank `victim` dies at the tenth."""
    is_first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

    def evaluate(step: int) -> dict[str, float]:
        if is_first_start and step == KILLED_AT and rank() == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    plan = TrainingPlan(
        max_steps=STEPS,
        checkpoint_every=EVERY,
        eval_every=1,
        dtype="float32",
        compile="off",
        parallel="fsdp" if parallel == "fsdp" else "ddp",
    )
    with process_group():
        resume = on_first(lambda: find_latest(out) is not None)
        batches = SmallBatches(masked=True)
        hooks = Hooks(evaluate=evaluate)
        train(small_model(), batches, plan, out=out, hooks=hooks, resume=resume)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
