"""The set-up that is checked, and what the checks make of it for each other."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.config import Parsed
from openrlhf_ext.plan.types import DataSize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from openrlhf_ext.device import Device
    from openrlhf_ext.types import Prompt


class NotThereError(Exception):
    """Something that an earlier check should have made, and said why it could not."""


class Subject:
    """A command and its config. `flags_are_right` says that no rule is broken; else values may be anything.

    `device`, `tokenizer` and `prompts` are made by their own checks; to ask for one before, or where it could not
    be made, raises NotThereError. `data`: its size, as far as the rows were counted.
    `limit_s`: what all checks together have.
    """

    def __init__(self, command: str, parsed: Parsed, *, flags_are_right: bool, limit_s: float) -> None:
        self.command = command
        self.parsed = parsed
        self.flags_are_right = flags_are_right
        self.limit_s = limit_s
        self.data = DataSize(None, None, parsed.config.data.max_len)
        self.broken_models: set[str] = set()
        """Folders that their own check accused."""
        self._device: Device | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._prompts: Sequence[Prompt] = ()
        self._prompts_settled = threading.Event()

    @property
    def config(self) -> Any:
        return self.parsed.config

    @property
    def model(self) -> str | None:
        """The model that is trained, as its flag names it."""
        section = self.config.actor if self.command == "rl" else self.config.model
        return section.model_name_or_path

    @property
    def device(self) -> Device:
        if self._device is None:
            raise NotThereError("a device")
        return self._device

    @device.setter
    def device(self, device: Device) -> None:
        self._device = device

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            raise NotThereError("the tokenizer")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    def settle_prompts(self, prompts: Sequence[Prompt]) -> None:
        """The first prompts as they will be, or none where there are none to be had."""
        if not self._prompts_settled.is_set():
            self._prompts = prompts
            self._prompts_settled.set()

    def wait_for_prompts(self, seconds: float) -> Sequence[Prompt]:
        self._prompts_settled.wait(seconds)
        return self._prompts


def is_missing(path: str) -> bool:
    """Whether a model's name can only be a folder's, and there is none."""
    return not Path(path).is_dir() and (Path(path).exists() or path.startswith(("/", ".", "~")))
