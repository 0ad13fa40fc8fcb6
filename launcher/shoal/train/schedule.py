"""The learning rate as a pure function of the step, by transformers' own schedules."""

from collections.abc import Callable

import torch
from transformers import get_scheduler

from shoal.plan.types import OptimizerPlan

MIN_LR_RATE = 0.1
"""Where `cosine_with_min_lr` ends, as a share of the peak."""


def learning_rates(plan: OptimizerPlan, steps: int) -> Callable[[int], float]:
    """step (1-based) -> learning rate of that step. A resume asks for its own step and needs no state."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=plan.learning_rate)
    extra = {"min_lr_rate": MIN_LR_RATE} if plan.lr_scheduler_type == "cosine_with_min_lr" else {}
    schedule = get_scheduler(
        plan.lr_scheduler_type,
        optimizer,
        num_warmup_steps=plan.warmup_steps,
        num_training_steps=steps,
        scheduler_specific_kwargs=extra,
    )
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    shape = schedule.lr_lambdas[0]
    return lambda step: plan.learning_rate * float(shape(step - 1))
