"""`transformers.Trainer` on a recipe."""

import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ..utils.files import write_atomically
from ..utils.optional import import_optional
from .recipes import OutOfTime, Recipe, RecipeError
from .runs import last_whole_checkpoint


def fit(model: nn.Module, collator: Any, arguments: Any, recipe: Recipe, start: float) -> None:
    """Fit `model` on `recipe.pairs` seeds, from the last whole checkpoint on, if there is one.

    Args:
        start: of the recipe's minutes, as `time.monotonic` tells it: what was prepared before counts.

    Raises:
        OutOfTime: `recipe.minutes` are over before that; there is a checkpoint.
    """
    from transformers import Trainer

    first = recipe.seed * 1_000_000_000  # runs with other seeds see other pairs
    seeds = range(first, first + recipe.pairs)
    trainer = Trainer(model=model, args=arguments, train_dataset=seeds, data_collator=collator)  # type: ignore[arg-type]
    if recipe.minutes is not None:
        trainer.add_callback(StopAt(start + 60 * recipe.minutes))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(recipe.output_dir))
    if trainer.state.global_step < trainer.state.max_steps:
        done = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
        raise OutOfTime(f"{recipe.output_dir}: {done} after {recipe.minutes} minutes; started again it goes on")
    if arguments.should_save:
        write_atomically(Path(recipe.output_dir, "log.json"), json.dumps(trainer.state.log_history, indent=1))


class StopAt(TrainerCallback):
    """Stops a training at a time of `time.monotonic`, with a checkpoint; all processes at the step of the first."""

    def __init__(self, end: float) -> None:
        self.end = end

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        over = time.monotonic() > self.end
        if args.world_size > 1:  # one that went on alone would wait for the others' gradients
            of_any = torch.tensor(float(over), device=args.device)
            torch.distributed.all_reduce(of_any, torch.distributed.ReduceOp.MAX)
            over = bool(of_any)
        if over and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


def training_arguments(recipe: Recipe) -> Any:
    """The recipe as `transformers.TrainingArguments`.

    Raises:
        ImportError: accelerate is not installed.
        RecipeError: there are fewer pairs than one step of all processes takes.
    """
    import_optional("accelerate", "train")
    from transformers import TrainingArguments

    steps = recipe.pairs // recipe.batch_size
    names = {entry.name for entry in fields(TrainingArguments)}  # renamed in transformers 5.24
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    not_reentrant: dict[str, Any] = {
        checkpointing: getattr(recipe, "gradient_checkpointing", False),
        f"{checkpointing}_kwargs": {"use_reentrant": False},
    }
    arguments = TrainingArguments(
        output_dir=recipe.output_dir,
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=1,
        dataloader_drop_last=True,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.01},
        warmup_steps=recipe.warmup_steps,
        bf16=bool(recipe.bf16),
        # layers share the rotary encoding, with its gradient: not re-entrant
        **not_reentrant,
        use_cpu=not torch.cuda.is_available(),
        # without a GPU accelerate has to be told; told of it with one process alone, it expects others
        ddp_backend="gloo" if torch.distributed.is_torchelastic_launched() and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=recipe.data_device().type == "cpu",  # what is on a GPU cannot be pinned
        remove_unused_columns=False,
        logging_steps=max(1, min(50, steps // 4)),
        save_steps=recipe.save_steps,
        save_total_limit=2,
        report_to=recipe.report_to,
    )
    if recipe.pairs < recipe.batch_size * arguments.world_size:
        raise RecipeError(
            f"pairs ({recipe.pairs}) must be at least batch_size ({recipe.batch_size}) times the "
            f"{arguments.world_size} processes: one step"
        )
    return arguments
