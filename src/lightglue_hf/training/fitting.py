"""A run: its directory, which holds the recipe and can be gone on with, and `transformers.Trainer`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..utils.optional import import_optional
from .recipes import Recipe


def fit(model: nn.Module, collator: Any, arguments: Any, recipe: Recipe) -> None:
    """Fit `model` with `transformers.Trainer` on `recipe.pairs` seeds; goes on from the last checkpoint, if any."""
    from transformers import Trainer
    from transformers.trainer_utils import get_last_checkpoint

    first = recipe.seed * 1_000_000_000  # runs with other seeds see other pairs
    seeds = range(first, first + recipe.pairs)
    trainer = Trainer(model=model, args=arguments, train_dataset=seeds, data_collator=collator)  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=get_last_checkpoint(recipe.output_dir))
    if arguments.should_save:
        Path(recipe.output_dir, "log.json").write_text(json.dumps(trainer.state.log_history, indent=1))


def training_arguments(recipe: Recipe) -> Any:
    """The recipe as `transformers.TrainingArguments`.

    Raises:
        ImportError: accelerate is not installed.
    """
    import_optional("accelerate", "train")
    from transformers import TrainingArguments

    steps = recipe.pairs // recipe.batch_size
    return TrainingArguments(
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
        gradient_checkpointing=recipe.gradient_checkpointing,
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


def keep_recipe(recipe: Recipe) -> None:
    """Write the recipe beside the run, and refuse to go on with a run of another."""
    path = Path(recipe.output_dir, "recipe.json")
    wanted = asdict(recipe)
    if path.exists():
        kept = json.loads(path.read_text())
        changed = [name for name in wanted if kept.get(name) != wanted[name]]
        if changed:
            raise ValueError(
                f"{recipe.output_dir} holds a run of another recipe (other {', '.join(changed)}): "
                "choose another output_dir"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")
