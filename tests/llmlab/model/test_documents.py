"""Packed rows against each document by itself: states, gradients, positions, compiled or not."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from llmlab.model import LanguageModel
from llmlab.model.attention import in_window
from llmlab.model.config_json import ARCHITECTURES
from llmlab.model.document_attention import document_lens
from llmlab.model.documents import block_mask, restarting_positions, within_documents
from llmlab.model.window_config import FULL, SLIDING
from tests.tiny import tiny_model

# float32; products over other shapes may sum in another order.
ATOL = 2e-5

LENS = [[5, 11, 4], [20], [1, 1, 18]]


def document_ids(lens: list[list[int]] = LENS) -> Tensor:
    """Ids that begin again in each row, as positions in a shard do not."""
    rows = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lens]
    return torch.stack(rows).to(torch.int32)


@pytest.fixture(params=[*ARCHITECTURES, "window"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    if request.param == "window":
        return tiny_model(sliding_window=3, layer_types=(SLIDING, FULL, SLIDING))
    return tiny_model(request.param)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 384, (3, 20)), torch.randint(0, 384, (3, 20))


def test_each_document_is_as_if_alone(model: LanguageModel):
    input_ids, _ = batch()
    with torch.inference_mode():
        packed = model.states_of_documents(input_ids, document_ids()).hidden
        parts = [
            part for row, lens in zip(input_ids, LENS, strict=True) for part in row.split(lens)
        ]
        alone = torch.cat([model.hidden(part[None])[0] for part in parts])
    torch.testing.assert_close(packed.flatten(0, 1), alone, atol=ATOL, rtol=0)


def test_loss_and_gradient(model: LanguageModel):
    input_ids, labels = batch()
    total, count = model.loss_sum(input_ids, labels, document_ids())
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(total, parameters, allow_unused=True)
    lens = [n for row in LENS for n in row]
    parts = zip(input_ids.flatten().split(lens), labels.flatten().split(lens), strict=True)
    alone = torch.stack([model.loss_sum(ids[None], wanted[None])[0] for ids, wanted in parts]).sum()
    torch.testing.assert_close(total, alone, atol=0, rtol=1e-5)
    assert count == 60
    if model.config.experts is not None:
        return  # the balancing loss is that of the whole batch
    expected = torch.autograd.grad(alone, parameters, allow_unused=True)
    for name, mine, theirs in zip(names, got, expected, strict=True):
        if not name.endswith("wpe.weight"):
            torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        pytest.param("qwen3_moe", {}, marks=pytest.mark.slow),
        ("qwen3", {"sliding_window": 3}),
        pytest.param("gpt2", {}, marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_graph_break(architecture: str, changes: dict[str, int]):
    model = tiny_model(architecture, num_hidden_layers=1, **changes)
    input_ids, _ = batch()
    ids = document_ids()
    attend = within_documents(ids, model.config.windows)
    compiled = torch.compile(model.states, fullgraph=True, backend="aot_eager", dynamic=False)
    plain = model.states(input_ids, restarting_positions(ids), attend).hidden
    got = compiled(input_ids, restarting_positions(ids), attend).hidden
    torch.testing.assert_close(got, plain, atol=ATOL, rtol=0)
    parameter = next(model.parameters())
    mine, theirs = (torch.autograd.grad(x.square().sum(), parameter)[0] for x in (got, plain))
    torch.testing.assert_close(mine, theirs, atol=ATOL, rtol=1e-4)


def test_other_borders_need_no_new_graph():
    model = tiny_model(num_hidden_layers=1)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    input_ids, _ = batch()
    compiled = torch.compile(model.states, fullgraph=True, backend=backend, dynamic=False)
    for lens in (LENS, [[10, 10], [20], [4, 4, 4, 8]]):
        ids = document_ids(lens)
        attend = within_documents(ids, model.config.windows)
        compiled(input_ids, restarting_positions(ids), attend)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*:UserWarning")
@pytest.mark.parametrize("window", [None, 3])
def test_block_mask_for_gpus(window: int | None):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, heads, 20, 8) for heads in (4, 2, 2))
    mask = block_mask(document_ids(), window)
    expected = within_documents(document_ids(), [window])(0, q, k, v)
    got = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    torch.testing.assert_close(got, expected, atol=ATOL, rtol=0)


@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=3),
    window=st.one_of(st.none(), st.integers(1, 8)),
)
@settings(max_examples=30, deadline=None)
def test_any_borders(rows: list[list[int]], window: int | None):
    longest = max(sum(row) for row in rows)
    lens = [[*row, longest - sum(row)] if sum(row) < longest else row for row in rows]
    ids = document_ids(lens)
    assert document_lens(ids) == [n for row in lens for n in row]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lens])
    assert torch.equal(restarting_positions(ids), positions)
    q, k, v = (torch.randn(len(lens), 2, longest, 4) for _ in range(3))
    got = within_documents(ids, [window])(0, q, k, v)
    for row, row_lens in enumerate(lens):
        parts = zip(*(x[row : row + 1].split(row_lens, dim=2) for x in (q, k, v)), strict=True)
        alone = torch.cat([in_window(*part, window=window) for part in parts], dim=2)
        torch.testing.assert_close(got[row : row + 1], alone)
