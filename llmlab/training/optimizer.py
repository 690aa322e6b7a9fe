"""The optimizer of a plan over the parameters of a model: who is decayed, who goes by which rule.

    rule      hidden matrices          head             embeddings, norms, biases
    adamw     AdamW, decayed           AdamW, decayed   AdamW
    muon      Muon, decayed            AdamW, decayed   AdamW
    lion      Lion, decayed            Lion, decayed    Lion

A head tied to the embedding counts as the embedding. AdamW (arXiv:1711.05101) runs fused on every
device that has the kernel. Not here: the schedule (schedule.py sets `lr` before each step), the
rules (muon.py, lion.py, torch).
"""

from typing import Any

from torch import nn, optim

from llmlab.errors import ModelError
from llmlab.model.language_model import LanguageModel
from llmlab.training.lion import Lion
from llmlab.training.muon import Muon
from llmlab.training.plan import TrainingPlan


def build_optimizer(model: nn.Module, plan: TrainingPlan) -> optim.Optimizer:
    """Return the optimizer that `plan.optimizer` names, over the trainable parameters of `model`.

    Raises:
        ModelError: the model has no parameter that requires a gradient.
    """
    groups = _groups(model, plan)
    betas = plan.optimizer_betas
    if plan.optimizer == "muon":
        return Muon(
            groups, lr=plan.learning_rate, momentum=plan.momentum, betas=betas, eps=plan.adam_eps
        )
    for group in groups:
        del group["rule"]
    if plan.optimizer == "lion":
        return Lion(groups, lr=plan.learning_rate, betas=betas)
    return optim.AdamW(groups, lr=plan.learning_rate, betas=betas, eps=plan.adam_eps, fused=True)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _groups(model: nn.Module, plan: TrainingPlan) -> list[dict[str, Any]]:
    trainable = trainable_parameters(model)
    if not trainable:
        raise ModelError(
            "the model has 0 trainable parameters; set requires_grad on what shall be trained"
        )
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    head = id(model.head_weight()) if isinstance(model, LanguageModel) else None
    matrices: list[nn.Parameter] = []
    heads: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for p in trainable.values():
        if p.ndim < 2 or id(p) in embeddings:
            undecayed.append(p)
        else:
            (heads if id(p) == head else matrices).append(p)
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay, "rule": "muon"},
        {"params": heads, "weight_decay": plan.weight_decay, "rule": "adamw"},
        {"params": undecayed, "weight_decay": 0.0, "rule": "adamw"},
    ]
    return [group for group in groups if group["params"]]
