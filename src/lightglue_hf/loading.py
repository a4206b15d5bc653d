"""`from_pretrained` that reads safetensors alone and wants every weight, no more and no less; and the way back."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CheckedLoading:
    """For models, before `PreTrainedModel` among their base classes."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As in transformers, but pickles are never read, and missing or unexpected weights are an error.

        With `output_loading_info=True` those are listed instead, for the caller to judge.

        Raises:
            OSError: no safetensors file, or a broken one; where is said.
            ValueError: missing or unexpected weights, or some with NaN or Inf, listed; or `use_safetensors=False`.
        """
        where = pretrained_model_name_or_path
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError("use_safetensors=False: only safetensors are read; `lightglue-hf convert` reads others")
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(where, *model_args, **kwargs)  # type: ignore[misc]
        except SafetensorError as error:
            raise OSError(f"{where}: broken safetensors: {error}") from error
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise OSError(f"{error} Only safetensors are read: `lightglue-hf convert` converts pickles.") from error
        if wants_info:
            return model, info
        faults = [
            f"{kind} weights: {', '.join(sorted(info[f'{kind}_keys']))}"
            for kind in ("missing", "unexpected")
            if info[f"{kind}_keys"]
        ]
        if broken := [name for name, weight in model.state_dict().items() if not _is_finite(weight)]:
            faults.append(f"NaN or Inf in {', '.join(broken)}")
        if faults:
            raise ValueError(f"{where} is no checkpoint of this {cls.__name__}: {'; '.join(faults)}")
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; but others may read the weights, as far as the umask lets them read new files."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        umask = os.umask(0)
        os.umask(umask)
        for file in Path(save_directory).glob("model*.safetensors"):
            if file.stat().st_mode & 0o777 == 0o600:  # what safetensors writes
                file.chmod(0o666 & ~umask)


def _is_finite(weight: Tensor) -> bool:
    """Whether there is no NaN or Inf in it; what is not in memory, or quantised, is not looked at."""
    return weight.device.type == "meta" or weight.dtype not in FLOATS or bool(weight.isfinite().all())
