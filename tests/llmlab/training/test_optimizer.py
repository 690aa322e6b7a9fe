"""Muon, Lion and their groups against torch, against a plain reading of the papers, and saved."""

import argparse
import copy
import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.model.build import build_model
from llmlab.model.config import ModelConfig
from llmlab.training.lion import Lion
from llmlab.training.muon import UPDATE_RMS, Muon
from llmlab.training.optimizer import build_optimizer
from llmlab.training.orthogonal import SMALLEST, orthogonalize
from llmlab.training.plan import TrainingPlan
from llmlab.training.schedule import learning_rate
from llmlab.training.step import autocast
from tests.llmlab.training.small import SmallBatches, small_model

PLAN = TrainingPlan(max_steps=10, learning_rate=1e-2, weight_decay=0.2)
KELLER_JORDAN = ((3.4445, -4.775, 2.0315),) * 5
ROOT = Path(__file__).parents[3]


def backward(model):
    model.loss(*SmallBatches().next().arguments).backward()
    return model


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96), (3, 48, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_close_to_one(shape, dtype):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    (result,) = orthogonalize([matrix], dtype=dtype)
    assert result.shape == matrix.shape
    assert result.dtype == dtype
    u, before, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    reached = before > SMALLEST * matrix.double().flatten(-2).norm(dim=-1, keepdim=True).amax()
    # the singular vectors stay: in their basis the result is diagonal
    diagonal = u.mT @ result.double() @ vh.mT
    after = diagonal.diagonal(dim1=-2, dim2=-1)
    assert after[reached].min() > 0.75
    assert after.max() < 1.25
    off = diagonal - torch.diag_embed(after)
    assert off.abs().max() < {torch.float32: 1e-3, torch.bfloat16: 0.05}[dtype]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]))
def test_only_the_direction_counts_and_nothing_grows(seed, scale):
    matrix = torch.randn(12, 20, generator=torch.Generator().manual_seed(seed))
    matrix[:, 3:] *= 1e-4  # far from well conditioned
    (one,) = orthogonalize([matrix])
    (two,) = orthogonalize([matrix * scale])
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)
    assert torch.linalg.matrix_norm(one, 2) < 1.25


def test_a_stack_is_worked_on_as_its_matrices_and_zeros_stay_zeros():
    torch.manual_seed(1)
    shapes = [(8, 16), (16, 8), (2, 8, 16), (8, 16)]
    matrices = [torch.randn(shape) for shape in shapes]
    together = orthogonalize(matrices)
    for matrix, result in zip(matrices, together, strict=True):
        alone = torch.stack([orthogonalize([m])[0] for m in matrix.view(-1, *matrix.shape[-2:])])
        torch.testing.assert_close(result, alone.view(matrix.shape), atol=1e-5, rtol=1e-4)
    assert not orthogonalize([torch.zeros(4, 6)])[0].any()


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_the_orthogonal_matrix_is_torchs_with_torchs_polynomials(shape):
    """torch.optim.Muon without momentum and decay, scaled as in arXiv:2502.16982, in bfloat16."""
    torch.manual_seed(2)
    ours, theirs = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
    ours.grad = torch.randn(shape)
    theirs.grad = ours.grad.clone()
    reference = torch.optim.Muon(
        [theirs], lr=1.0, weight_decay=0.0, momentum=0.0, adjust_lr_fn="match_rms_adamw"
    )
    reference.step()
    (mine,) = orthogonalize([ours.grad], dtype=torch.bfloat16, steps=KELLER_JORDAN)
    mine = -UPDATE_RMS * max(shape) ** 0.5 * mine.float()
    # bfloat16 products of slightly different inputs (ours are 1 % smaller at the start)
    assert (mine - theirs).norm() < 0.05 * theirs.norm()


def test_muon_moves_as_torchs_for_ten_steps():
    """Momentum, Nesterov, decay and scale are torch's; only the polynomials differ."""
    torch.manual_seed(3)
    start, target = torch.randn(24, 16), torch.randn(24, 16)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    muon = Muon([{"params": [ours], "rule": "muon", "weight_decay": 0.1}], lr=0.02)
    reference = torch.optim.Muon([theirs], lr=0.02, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        for parameter, optimizer in ((ours, muon), (theirs, reference)):
            optimizer.zero_grad()
            (parameter - target).square().sum().backward()
            optimizer.step()
    buffers = [o.state[p]["momentum_buffer"] for o, p in ((muon, ours), (reference, theirs))]
    assert (buffers[0] - buffers[1]).norm() < 0.02 * buffers[1].norm()
    moved = [(p.detach() - start).flatten() for p in (ours, theirs)]
    # torch's singular values end in [0.7, 1.2], ours in [0.8, 1.2]: nearly the same way and length
    assert torch.cosine_similarity(*moved, dim=0) > 0.97
    assert float(moved[0].norm()) == pytest.approx(float(moved[1].norm()), rel=0.1)


def test_the_rest_of_muon_is_torchs_adamw():
    ours = backward(small_model(tie=False))
    plain = copy.deepcopy(ours)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        q.grad = p.grad.clone()
    optimizer = build_optimizer(ours, dataclasses.replace(PLAN, optimizer="muon"))
    reference = build_optimizer(plain, PLAN)
    hidden = {
        id(p)
        for group in optimizer.param_groups
        if group["rule"] == "muon"
        for p in group["params"]
    }
    for _ in range(3):
        optimizer.step()
        reference.step()
    names = []
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if id(p) in hidden:
            names.append(name)
            assert not torch.equal(p, q), name
        else:
            torch.testing.assert_close(p, q, atol=0, rtol=0)
    assert all("proj" in name for name in names)
    assert len(names) == 2 * 7  # q, k, v, o, gate, up and down in each layer


def test_the_update_is_as_long_as_adamws_for_every_shape():
    torch.manual_seed(4)
    for shape in ((32, 32), (32, 128), (128, 32), (4, 32, 64)):
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        Muon([{"params": [p], "rule": "muon"}], lr=1.0).step()
        assert float(p.detach().square().mean().sqrt()) == pytest.approx(UPDATE_RMS, rel=0.1)


def test_lion_is_the_papers_algorithm():
    torch.manual_seed(5)
    p = torch.nn.Parameter(torch.randn(7, 5))
    optimizer = Lion([p], lr=0.01, betas=(0.9, 0.99), weight_decay=0.3)
    theta, m = p.detach().clone(), torch.zeros(7, 5)
    for _ in range(5):
        g = torch.randn(7, 5)
        p.grad = g.clone()
        optimizer.step()
        c = 0.9 * m + (1 - 0.9) * g
        theta -= 0.01 * (c.sign() + 0.3 * theta)
        m = 0.99 * m + (1 - 0.99) * g
        torch.testing.assert_close(p.detach(), theta, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_a_saved_state_goes_on_bit_for_bit(tmp_path, name):
    plan = dataclasses.replace(PLAN, optimizer=name)
    whole = small_model()
    optimizer = build_optimizer(whole, plan)
    for _ in range(2):
        backward(whole)
        optimizer.step()
    torch.save([whole.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = small_model(seed=9)
    again.load_state_dict(weights)
    resumed = build_optimizer(again, plan)
    resumed.load_state_dict(state)
    for model, mine in ((whole, optimizer), (again, resumed)):
        mine.zero_grad()
        backward(model)
        mine.step()
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_bfloat16_products_follow_the_autocast_and_weights_stay_float32():
    moved = {}
    for dtype in ("float32", "bfloat16"):
        model = backward(small_model())
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = build_optimizer(model, dataclasses.replace(PLAN, optimizer="muon"))
        with autocast(torch.device("cpu"), dtype):
            optimizer.step()
        name = "model.layers.0.mlp.up_proj.weight"
        weight = model.get_parameter(name)
        assert weight.dtype == torch.float32
        moved[dtype] = weight.detach() - before[name]
    assert not torch.equal(moved["float32"], moved["bfloat16"])
    error = (moved["float32"] - moved["bfloat16"]).norm() / moved["float32"].norm()
    assert error < 0.05  # 8 bits of mantissa over 12 products


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from llmlab.training.optimizer import build_optimizer
from llmlab.training.plan import TrainingPlan
from llmlab.training.schedule import learning_rate
from tests.llmlab.training.small import SmallBatches, small_model

def check(plan):
    alone, sharded = small_model(tie=False), small_model(tie=False)
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    register_fsdp_forward_method(sharded, "loss_sum")
    batch = SmallBatches().whole()
    optimizers = [build_optimizer(model, plan) for model in (alone, sharded)]
    for _ in range(3):
        for model, optimizer in zip((alone, sharded), optimizers):
            optimizer.zero_grad()
            total, count = model.loss_sum(*batch.arguments)
            (total / count).backward()
            optimizer.step()
    for (name, p), q in zip(alone.named_parameters(), sharded.parameters()):
        whole = q.full_tensor()
        assert torch.allclose(whole, p.detach(), atol=1e-5, rtol=1e-4), name

dist.init_process_group("gloo")
check(TrainingPlan(max_steps=10, optimizer=sys.argv[1], learning_rate=1e-2))
# The models are gone: one that lives until the interpreter ends keeps the group's threads, and
# these may abort the process then.
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_sharded_parameters_move_as_whole_ones(tmp_path, name):
    """FSDP2 on two gloo processes; rows are cut where 2 processes divide the first dimension."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, tmp_path / "sharded.py", name],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Text:
    """Random windows of the source of argparse, byte by byte."""

    def __init__(self) -> None:
        self.bytes = torch.frombuffer(
            bytearray(inspect.getsource(argparse).encode()), dtype=torch.uint8
        ).long()
        self.generator = torch.Generator().manual_seed(0)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(self.bytes) - 65, (8,), generator=self.generator)
        windows = torch.stack([self.bytes[start : start + 65] for start in starts])  # (8, 65)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def loss_after(optimizer_name: Any, rate: float, steps: int = 150) -> float:
    """Mean loss of the last twenty steps, nats a byte."""
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, head_dim=32,
            max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip
    plan = TrainingPlan(max_steps=steps, learning_rate=rate, optimizer=optimizer_name)
    optimizer, text, losses = build_optimizer(model, plan), Text(), []
    for step in range(1, steps + 1):
        loss = model.loss(*text.next())
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step=step, progress=step / steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


@pytest.mark.slow
def test_muon_learns_faster_than_adamw_at_its_best_rate():
    adamw = min(loss_after("adamw", rate) for rate in (2e-3, 4e-3, 8e-3, 1.6e-2))
    assert loss_after("muon", 8e-3) < 0.95 * adamw
