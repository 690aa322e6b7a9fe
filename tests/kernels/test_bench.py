"""The benchmark, the table of tiles and what fills it, at tiny sizes."""

import json

import pytest
import torch

from llmlab.cli.main import main
from llmlab.kernels import tiles, tune
from llmlab.kernels.bench.cases_cuda import CudaCases
from llmlab.kernels.bench.measure import Case, Limits, Times, measure
from llmlab.kernels.bench.run import append, as_line, run
from llmlab.kernels.op import INTERPRETED
from tests.kernels.guards import WITH_AND_WITHOUT_INTERPRETER

CPU = torch.device("cpu")
only_interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
pytestmark = WITH_AND_WITHOUT_INTERPRETER


def test_every_operator_of_a_cpu_has_a_row(tmp_path):
    found = run(CPU, 1, is_small=True)
    ops = {row.op for row in found.rows}
    assert {"int8_linear", "w4a16_linear", "paged_attention", "paged_attention int8"} <= ops
    assert found.limits.gb_per_s > 0
    assert all(row.ms.median > 0 and row.ratios for row in found.rows if row.op != "quantize_rows")
    append(found, tmp_path / "rows.jsonl")
    append(found, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(found.rows)
    assert rows[0]["torch"] == torch.__version__
    assert rows[0]["limits"]["gb_per_s"] == pytest.approx(found.limits.gb_per_s, rel=1e-2)


def test_what_a_row_says():
    case = Case(
        "op", "8 x 8", lambda i: None, {"slow": lambda i: sum(range(20000)), "broken": broken},
        num_bytes=10**6, num_flops=2 * 10**6,
    )  # fmt: skip
    row = measure(case, Limits(gb_per_s=50, tflop_per_s=2), CPU, rounds=5)
    assert row.ratios["broken"] is None
    assert row.ratios["slow"]
    assert row.ratios["slow"] > 1
    assert row.gb_per_s
    assert row.of_bandwidth
    assert row.tflop_per_s
    assert row.of_product_rate
    assert row.gb_per_s == pytest.approx(1e-3 / (row.ms.median / 1e3))
    assert row.of_bandwidth == pytest.approx(row.gb_per_s / 50)
    assert row.of_product_rate == pytest.approx(row.tflop_per_s / 2)
    line = as_line(row)
    assert "8 x 8" in line
    assert "broken -" in line
    assert row.ms == Times(row.ms.median, row.ms.p20, row.ms.p80)


def broken(_):
    raise RuntimeError("not on this device")


@only_interpreted
def test_the_cases_of_a_gpu_run():
    ops = []
    for case in CudaCases(CPU, is_small=True):
        case.ours(0)
        for name, task in case.baselines.items():
            if "SDPA" not in name:  # its backends are a GPU's
                task(0)
        ops.append(case.op)
    assert len(set(ops)) == 15


def test_a_gpu_that_is_not_there_is_an_error_of_one_line(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["bench", "kernels", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == (
        "llmlab: error: device='cuda', and PyTorch finds no GPU here; take cpu\n"
    )
    assert main(["bench", "kernels", "--rounds", "0"]) == 1
    assert "rounds=0; it must be 1 or more" in capsys.readouterr().err
    assert main(["bench", "kernels", "--out", "nowhere/rows.jsonl"]) == 1
    assert "out='nowhere/rows.jsonl' lies in no folder; make it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune.main([])
    assert "tiles are tuned on a GPU, and there is none" in capsys.readouterr().err


def test_the_most_precise_row_is_taken(tmp_path, monkeypatch):
    def row(device, dtype, width, *numbers):
        return tiles.Row(op="op", device=device, dtype=dtype, width=width, tile=list(numbers))

    table = tmp_path / "tiles.json"
    rows = [
        row("*", "*", 0, 1), row("*", "*", 64, 2), row("sm_90", "*", 64, 3),
        row("*", "float32", 64, 4), row("sm_90", "bfloat16", 64, 5),
    ]  # fmt: skip
    tiles.write_table(rows, table)
    monkeypatch.setattr(tiles, "TABLE", table)
    assert sorted(map(str, tiles.read_table())) == sorted(map(str, rows))
    found = [
        tiles._tile.__wrapped__("op", *key)[0]
        for key in [
            ("sm_80", "float16", 32), ("sm_80", "float16", 64), ("sm_90", "float16", 64),
            ("sm_90", "float32", 64), ("sm_90", "bfloat16", 64), ("sm_90", "bfloat16", 128),
        ]
    ]  # fmt: skip
    assert found == [1, 2, 3, 4, 5, 1]
    with pytest.raises(LookupError, match="no tile for other of width 0"):
        tiles._tile.__wrapped__("other", "sm_90", "float32", 0)


def test_the_shipped_table_has_a_tile_for_every_device_and_width():
    for op in tune.OPS:
        for dtype in ("bfloat16", "float16", "float32"):
            if op.startswith("w8a8") and dtype != "bfloat16":
                continue
            for device in ("sm_70", "sm_80", "sm_90", "sm_100"):
                for width in (16, 32, 64, 128, 256):
                    numbers = tiles._tile(op, device, dtype, width)
                    assert len(numbers) == len(tune.candidates(op)[0])


@only_interpreted
def test_tuning_finds_a_tile_for_every_operator():
    said = []
    found = tune.tune(CPU, is_small=True, say=said.append)
    assert [row["op"] for row in found if row["width"] in (0, 64)] == list(tune.OPS)
    assert len(said) == len(found)
    assert all(tuple(row["tile"]) in tune.candidates(row["op"])[:2] for row in found)
