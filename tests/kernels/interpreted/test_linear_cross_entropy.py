import pytest
import torch
import torch.nn.functional as F

from llmlab.kernels import linear_cross_entropy as module
from llmlab.kernels.linear_cross_entropy import cross_entropy_twin, linear_cross_entropy
from tests.kernels.guards import error, guarded

BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 97), (5, 16385), (0, 8)])
@pytest.mark.parametrize("options", [(0.0, 0.0), (3.0, 0.0), (0.0, 1e-2), (3.0, 1e-2)])
def test_rows_are_those_of_the_twin(shape, dtype, options):
    torch.manual_seed(0)
    wide = torch.full((shape[0], shape[1] + 3), torch.nan, dtype=dtype)
    logits = wide[:, 1 : shape[1] + 1]
    logits.copy_(4 * torch.randn(shape))
    expected = logits.clone()
    labels = torch.randint(shape[1], (shape[0], 2))[:, 0]
    labels[1:2] = -100
    with guarded():
        loss = torch.ops.llmlab.cross_entropy(logits, labels, -100, *options)
    assert error(loss, cross_entropy_twin(expected, labels, -100, *options)) <= BOUNDS[dtype]
    assert error(logits, expected) <= BOUNDS[dtype]
    assert wide[:, 0].isnan().all()
    assert wide[:, -2:].isnan().all()


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, 9999.0]])
    loss = torch.ops.llmlab.cross_entropy(logits, torch.tensor([1, 2]), -100, 0.0, 0.0)
    torch.testing.assert_close(loss, torch.tensor([2e4, 1.3132617]), atol=1e-3, rtol=0)
    assert torch.isfinite(logits).all()


def test_loss_and_gradients_of_the_head(monkeypatch):
    monkeypatch.setattr(module, "_MIN_CHUNK_LEN", 7)
    monkeypatch.setitem(module._CHUNK_LOGITS, "cpu", 1)
    torch.manual_seed(0)
    hidden, weight = (torch.randn(shape, requires_grad=True) for shape in ((23, 16), (97, 16)))
    labels = torch.randint(0, 97, (23,))
    labels[3] = -100
    found = linear_cross_entropy(hidden, weight, labels)
    expected = F.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    assert error(found, expected) <= 1e-6
    pairs = zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (found, expected)), strict=True)
    assert all(error(*pair) <= 2e-6 for pair in pairs)


def test_the_operator_is_what_pytorch_expects():
    arguments = torch.randn(3, 9), torch.tensor([0, -100, 8]), -100, 2.0, 1e-3
    torch.library.opcheck(torch.ops.llmlab.cross_entropy.default, arguments)
