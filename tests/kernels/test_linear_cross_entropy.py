"""The chunked loss against torch's own on whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels import linear_cross_entropy as module
from llmlab.kernels.linear_cross_entropy import linear_cross_entropy

# (dtype, atol, rtol): float32 sums in another order; bfloat16 rounds each product to 8 bits.
TOLERANCES = [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 2e-2, 2e-2)]


def whole(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor]:
    monkeypatch.setattr(module, "_MIN_CHUNK_LEN", 7)
    monkeypatch.setitem(module._CHUNK_LOGITS, "cpu", 1)
    torch.manual_seed(0)
    labels = torch.randint(0, 97, (23,))
    labels[[0, 8, 9]] = -100
    return torch.randn(23, 16), torch.randn(97, 16) * 0.3, labels


@pytest.mark.parametrize(("dtype", "atol", "rtol"), TOLERANCES)
def test_value_and_gradients(tensors, dtype: torch.dtype, atol: float, rtol: float):
    hidden, weight, labels = tensors
    results = []
    for function in (whole, linear_cross_entropy):
        h, w = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight))
        total = function(h, w, labels)
        (total / 20).backward()
        results.append((total.detach(), h.grad, w.grad))
    for expected, got in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, atol=atol, rtol=rtol)


def test_z_loss_is_in_the_gradient_and_not_in_the_value(tensors):
    hidden, weight, labels = (x.double() if x.is_floating_point() else x for x in tensors)
    results = []
    for is_plain in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if is_plain:
            logits = F.linear(h, w)
            value = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            normaliser = logits.logsumexp(-1)[labels != -100]
            (value + 0.3 * normaliser.square().sum()).backward()
        else:
            value = linear_cross_entropy(h, w, labels, z_loss=0.3)
            value.backward()
        results.append((value.detach(), h.grad, w.grad))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_soft_cap_and_another_label_to_ignore(tensors):
    hidden, weight, labels = (x.double() if x.is_floating_point() else x for x in tensors)
    labels[labels == -100] = 5
    results = []
    for is_plain in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if is_plain:
            logits = 2 * torch.tanh(F.linear(h, w) / 2)
            value = F.cross_entropy(logits, labels, ignore_index=5, reduction="sum")
        else:
            value = linear_cross_entropy(h, w, labels, ignore_index=5, softcap=2.0)
        value.backward()
        with torch.no_grad():
            alone = linear_cross_entropy(h, w, labels, ignore_index=5, softcap=2.0)
        results.append((value.detach(), h.grad, w.grad, alone))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients(tensors):
    hidden, weight, labels = tensors
    results = []
    for function in (whole, linear_cross_entropy):
        h, w = (x.clone().requires_grad_() for x in (hidden, weight))
        with torch.autocast("cpu", torch.bfloat16):
            total = function(h, w, labels)
        total.backward()
        results.append((total.detach(), h.grad, w.grad))
    for expected, got in zip(*results, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)


def test_a_frozen_head_gets_no_gradient(tensors):
    hidden, weight, labels = tensors
    expected = torch.func.grad(whole)(hidden, weight, labels)
    hidden.requires_grad_()
    linear_cross_entropy(hidden, weight, labels).backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, expected, atol=1e-5, rtol=1e-5)


def test_without_gradients(tensors):
    hidden, weight, labels = tensors
    with torch.no_grad():
        total = linear_cross_entropy(hidden, weight.requires_grad_(), labels)
    torch.testing.assert_close(total, whole(hidden, weight, labels).detach())
    assert not total.requires_grad


def test_nothing_scored(tensors):
    hidden, weight, labels = tensors
    total = linear_cross_entropy(hidden.requires_grad_(), weight, torch.full_like(labels, -100))
    total.backward()
    assert total.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()
