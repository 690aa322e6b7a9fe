"""What the machine can do is measured, and said in words."""

import os

import pytest
import torch

from llmlab.errors import ConfigError
from llmlab.hardware import gemm_flops_per_s, physical_cores, pick_device, pick_dtype


def test_the_dtype_comes_with_its_reason():
    dtype, reason = pick_dtype("cpu")
    assert dtype in (torch.float32, torch.bfloat16)
    assert reason.startswith(str(dtype).removeprefix("torch."))
    assert "GFLOP/s" in reason


def test_a_rate_is_plausible():
    # A core multiplies between 0.1 and 10 000 GFLOP/s.
    assert 1e8 < gemm_flops_per_s(torch.float32, size=128, min_time_s=0.001) < 1e13 * 64


def test_cores_are_not_more_than_cpus():
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


def test_the_device_can_hold_a_tensor():
    assert torch.ones(1, device=pick_device()).item() == 1
    assert pick_device("cpu").type == "cpu"


def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match="device='tpu' is not supported; supported: auto, cpu"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device; use --device cpu"):
            pick_device("cuda")


@pytest.mark.gpu
def test_a_gpu_is_preferred_and_takes_bfloat16():
    assert pick_device().type == "cuda"
    assert pick_dtype("cuda")[0] is torch.bfloat16
