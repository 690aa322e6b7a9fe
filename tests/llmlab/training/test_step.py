import copy

import pytest
import torch

from llmlab.data.batch import Batch
from llmlab.errors import DataError, ModelError
from llmlab.training.optimizer import build_optimizer, trainable_parameters
from llmlab.training.plan import TrainingPlan
from llmlab.training.step import add_gradient, clip_gradient
from tests.llmlab.training.small import SmallBatches, small_model

CPU = torch.device("cpu")
PLAN = TrainingPlan(max_steps=10, learning_rate=1e-2, weight_decay=0.2)


def gradients(model):
    return {n: p.grad for n, p in trainable_parameters(model).items() if p.grad is not None}


def test_accumulation_weighs_every_scored_token_alike():
    whole, pieces = small_model(), small_model()
    batch = SmallBatches(8, masked=True).next()
    counts = (batch.labels != -100).sum(dim=1)
    assert len(set(counts.tolist())) > 2  # otherwise a mean of means would pass too
    one = add_gradient(whole.loss_sum, [batch], device=CPU, dtype="float32")
    rows = zip(batch.input_ids.split(2), batch.labels.split(2), strict=True)
    micro_batches = [Batch(*pair) for pair in rows]
    four = add_gradient(pieces.loss_sum, micro_batches, device=CPU, dtype="float32")
    assert four == pytest.approx(one, rel=1e-6)
    for name, gradient in gradients(whole).items():
        # the same float32 sums in another order
        torch.testing.assert_close(gradients(pieces)[name], gradient, atol=1e-6, rtol=1e-4)


def test_the_gradient_is_that_of_the_models_mean_loss():
    ours, plain = small_model(), small_model()
    batch = SmallBatches(4, masked=True).next()
    add_gradient(ours.loss_sum, [batch], device=CPU, dtype="float32")
    plain.loss(*batch.arguments).backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(ours)[name], gradient, atol=1e-7, rtol=1e-5)


def test_ten_steps_are_those_of_plain_torch():
    """Fused AdamW, our groups and our clipping against a plain loop with a plain AdamW."""
    ours, plain = small_model(), small_model()
    optimizer = build_optimizer(ours, PLAN)
    named = dict(plain.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in named.items() if p.ndim != 2 or "embed" in n]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
        betas=PLAN.optimizer_betas,
        foreach=False,
        fused=False,
    )
    batches, same_batches = SmallBatches(), SmallBatches()
    for _ in range(10):
        loss = add_gradient(ours.loss_sum, [batches.next()], device=CPU, dtype="float32")
        norm = clip_gradient(trainable_parameters(ours), loss, PLAN.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        plain.loss(*same_batches.next().arguments).backward()
        plain_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), PLAN.grad_clip)
        reference.step()
        reference.zero_grad()
        assert norm == pytest.approx(float(plain_norm), rel=1e-4)
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        # float32 rounding over ten steps; Adam's ratio magnifies it where gradients are near 0
        torch.testing.assert_close(p, q, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("tie", [True, False])
def test_decay_spares_norms_and_embeddings(tie):
    model = small_model(tie=tie)
    groups = build_optimizer(model, PLAN).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    spared = {
        names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]
    }
    assert {n for n in names.values() if "norm" in n or "embed" in n} == spared
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert len(decayed) + len(spared) == len(list(model.parameters()))
    assert all(p.ndim == 2 for p in decayed)


def test_only_trainable_parameters_are_optimized():
    model = small_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    groups = build_optimizer(model, PLAN).param_groups
    assert sum(len(group["params"]) for group in groups) == 2
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="0 trainable parameters; set requires_grad"):
        build_optimizer(model, PLAN)


def test_a_batch_without_scored_labels_is_an_error():
    model = small_model()
    batch = SmallBatches().next()
    batch.labels.fill_(-100)
    with pytest.raises(DataError, match=r"0 of 32 labels are scored.*loss mask"):
        add_gradient(model.loss_sum, [batch], device=CPU, dtype="float32")


def test_a_bad_gradient_names_its_parameter():
    model = small_model()
    add_gradient(model.loss_sum, [SmallBatches().next()], device=CPU, dtype="float32")
    named = trainable_parameters(model)
    before = copy.deepcopy(gradients(model))
    bad, good = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"
    gradients(model)[bad][3, 4] = torch.inf
    with pytest.raises(ModelError, match=f"gradient of {bad} is not finite"):
        clip_gradient(named, 1.0, 1.0)
    assert torch.equal(gradients(model)[good], before[good])
    with pytest.raises(ModelError, match="the loss is nan"):
        clip_gradient(named, float("nan"), 1.0)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    exact, rough = small_model(), small_model()
    batch = SmallBatches().next()
    want = add_gradient(exact.loss_sum, [batch], device=CPU, dtype="float32")
    got = add_gradient(rough.loss_sum, [batch], device=CPU, dtype="bfloat16")
    assert got != want
    assert got == pytest.approx(want, rel=2e-2)  # bfloat16 has 8 bits of mantissa
    assert all(gradient.dtype == torch.float32 for gradient in gradients(rough).values())
