"""A model with its adapters merged, as a folder of its own."""

from __future__ import annotations

from pathlib import Path

from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.export import SHARD_BYTES, named_weights, plan_buckets, write_model_folder
from openrlhf_ext.models.load import load_config
from openrlhf_ext.models.lora import read_adapter_folder
from openrlhf_ext.models.spec import Dtype, ModelSpec, torch_dtype

DTYPES: tuple[Dtype, ...] = ("fp32", "bf16", "fp16")


def write_merged_model(base: str, adapters: Path, folder: Path) -> None:
    """`base` with the adapters of a folder of peft's merged, in the number format that it is stored in.

    Raises DataError for adapters of another model.
    """
    stored = getattr(load_config(base), "dtype", None)
    dtype: Dtype = next((name for name in DTYPES if torch_dtype(name) == stored), "fp32")
    _, lora = read_adapter_folder(adapters)
    model = build_model(ModelSpec(base, dtype, lora=lora, adapters=str(adapters))).model
    weights = list(named_weights(model))
    buckets = plan_buckets([weight.nbytes for weight in weights], SHARD_BYTES)
    parts = ([(weight.name, weight.full()) for weight in weights[part]] for part in buckets)
    write_model_folder(model, base, folder, parts, len(buckets))
