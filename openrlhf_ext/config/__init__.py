"""One frozen dataclass tree per command; the attribute path is the flag."""

from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.sft import SFTConfig

__all__ = ["RLConfig", "SFTConfig"]
