"""These tests run Triton kernels on a CPU: `TRITON_INTERPRET=1 pytest -m interpreter`."""

from pathlib import Path

import pytest

from llmlab.kernels.op import INTERPRETED

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interpreter)


@pytest.fixture(autouse=True)
def _interpreted() -> None:
    if not INTERPRETED:
        pytest.fail("set TRITON_INTERPRET=1: the kernels are read when they are imported")
