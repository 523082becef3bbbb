"""What crosses between the driver and its workers, and weighs nothing on the way.

A tensor travels as the array that it is: Ray then keeps its bytes out of the pickle, copies them once into the object
store and maps them on the other side, where they can be read but not written to. Nothing here imports torch, so that
a process which only hands things on need not have it.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.util

if TYPE_CHECKING:
    from torch import Tensor


def tensors_travel_as_arrays() -> None:
    """From this process and in it, once it is connected to Ray: CPU tensors of a type that numpy knows."""
    import torch

    # What arrives is looked at and copied from, never written to.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    ray.util.register_serializer(torch.Tensor, serializer=array_of, deserializer=tensor_of)


def array_of(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def tensor_of(array: np.ndarray) -> Tensor:
    """Over the array's own memory, which is read-only where it came through the object store."""
    import torch

    return torch.from_numpy(array)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A value that is the same for all ranks: pickled once, and opened by who uses it."""

    content: bytes

    @classmethod
    def of(cls, value: Any) -> Sealed:
        return cls(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))

    def open(self) -> Any:
        return pickle.loads(self.content)
