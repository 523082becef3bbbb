"""Weights in buckets, and the Hugging Face folder written from them."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.lora import ADAPTER, adapted_layers, halves, is_adapter, is_of_adapters, merged
from openrlhf_ext.models.quantised import whole, whole_bytes

SHARD_BYTES = 4 << 30
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def plan_buckets(sizes: Sequence[int], bucket_bytes: int) -> list[slice]:
    """Consecutive runs of at most `bucket_bytes` each (or a single larger item)."""
    assert bucket_bytes > 0, "a bucket holds something"
    starts, used = [0], 0
    for index, size in enumerate(sizes):
        if used and used + size > bucket_bytes:
            starts.append(index)
            used = 0
        used += size
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def write_model_folder(
    model: PreTrainedModel, source: str, folder: Path, buckets: Iterable[list[tuple[str, Tensor]]], shards: int
) -> None:
    """A folder that transformers and vLLM load, from `shards` buckets of full weights; it appears whole or not at all.

    Config and generation config are the model's, the tokenizer is that of `source`. Only one bucket
    is in memory at a time. An older folder of that name is replaced.
    """
    with _appearing_whole(folder) as partial:
        _write_shards(partial, buckets, shards)
        config = copy.deepcopy(model.config)
        if hasattr(config, "quantization_config"):  # the weights are whole
            del config.quantization_config
        config.save_pretrained(partial)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(partial)
        _copy_tokenizer(source, partial)


def write_adapter_folder(config: LoraConfig, base: str, folder: Path, adapters: Mapping[str, Tensor]) -> None:
    """A folder that `PeftModel.from_pretrained` loads on top of the model `base`; it appears whole or not at all.

    `adapters` are A and B under the names they have in the model. What else is there, a head that was trained with
    them, takes the place of the base's: the base is then to be loaded as a sequence classifier.
    """
    config = copy.copy(config)
    heads = sorted({name.rpartition(".")[0] for name in adapters if not is_adapter(name)})
    config.task_type, config.modules_to_save = ("SEQ_CLS", heads) if heads else ("CAUSAL_LM", None)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.target_modules = sorted(config.target_modules or ())  # a set, in no order of its own
    with _appearing_whole(folder) as partial:
        config.save_pretrained(str(partial))
        tensors = {f"base_model.model.{name}".replace(f".{ADAPTER}.", "."): part for name, part in adapters.items()}
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})


def _copy_tokenizer(source: str, partial: Path) -> None:
    # Without a vocabulary transformers may build an empty tokenizer instead of failing.
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in VOCABULARY_FILES):
        raise DataError(f"{source} has no tokenizer that can be exported with the model: add its tokenizer.json.")
    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(partial)


def _write_shards(partial: Path, buckets: Iterable[list[tuple[str, Tensor]]], shards: int) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    for index, bucket in enumerate(buckets, start=1):
        name = "model.safetensors" if shards == 1 else f"model-{index:05d}-of-{shards:05d}.safetensors"
        tensors = {key: tensor.detach().to("cpu").contiguous() for key, tensor in bucket}
        save_file(tensors, partial / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if shards > 1:
        index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=2) + "\n")


@contextmanager
def _appearing_whole(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which then takes the place of `folder`: a reader sees the old one, none for an
    instant, or the new one."""
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight under its Hugging Face name, and what it is computed from."""

    name: str
    parameter: nn.Parameter
    layer: LoraLayer | None = None  # whose adapter adds to it

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters that must be whole, where they are sharded, before `full` is called."""
        if self.layer is None:
            return [self.parameter]
        return [self.parameter, *halves(self.layer)]

    @property
    def nbytes(self) -> int:
        """Of the full weight."""
        return whole_bytes(self.parameter)

    def full(self) -> Tensor:
        """The parameter itself, or a new tensor: without its quantisation, with its adapter merged."""
        weight = whole(self.parameter)
        return weight if self.layer is None else merged(weight, self.layer)


def named_weights(model: PreTrainedModel) -> Iterator[Weight]:
    """The weights of the model as if it had no adapters; a tied one once (the embedding comes before the head)."""
    layers = {layer.get_base_layer().weight: layer for layer in adapted_layers(model)}
    for name, parameter in model.named_parameters(remove_duplicate=True):
        if not is_of_adapters(name):
            yield Weight(name.replace(".base_layer.", "."), parameter, layers.get(parameter))
