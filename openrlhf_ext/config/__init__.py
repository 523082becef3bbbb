"""One frozen dataclass tree per command; the attribute path is the flag.

`parse("rl", argv)` gives a checked `RLConfig`; `write_yaml` writes one that `--config` takes back.
"""

from openrlhf_ext.config.dpo import DPOConfig
from openrlhf_ext.config.fields import Flag, flags_of, get, replaced
from openrlhf_ext.config.load import COMMANDS, TREES, Parsed, examine, parse
from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rm import RMConfig
from openrlhf_ext.config.rules import Violation
from openrlhf_ext.config.serve_rm import ServeRMConfig
from openrlhf_ext.config.sft import SFTConfig
from openrlhf_ext.config.write import dump, write_yaml

__all__ = [
    "COMMANDS",
    "TREES",
    "DPOConfig",
    "Flag",
    "Parsed",
    "RLConfig",
    "RMConfig",
    "SFTConfig",
    "ServeRMConfig",
    "Violation",
    "dump",
    "examine",
    "flags_of",
    "get",
    "parse",
    "replaced",
    "write_yaml",
]
