"""AdamW with the usual parameter groups, fused on every device that has the kernel.

Not here: the schedule (schedule.py sets `lr` before each step). AdamW: arXiv 1711.05101.
"""

from torch import nn, optim

from llmlab.errors import ModelError
from llmlab.training.plan import TrainingPlan


def build_optimizer(model: nn.Module, plan: TrainingPlan) -> optim.AdamW:
    """Return AdamW over the trainable parameters of `model`.

    Weight decay applies to matrices; norms, biases and embeddings (a head tied to one included)
    are left undecayed.

    Raises:
        ModelError: the model has no parameter that requires a gradient.
    """
    trainable = trainable_parameters(model)
    if not trainable:
        raise ModelError(
            "the model has 0 trainable parameters; set requires_grad on what shall be trained"
        )
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed = [p for p in trainable.values() if p.ndim >= 2 and id(p) not in embeddings]
    undecayed = [p for p in trainable.values() if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return optim.AdamW(
        [group for group in groups if group["params"]],
        lr=plan.learning_rate,
        betas=plan.betas,
        eps=plan.adam_eps,
        fused=True,
    )


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
