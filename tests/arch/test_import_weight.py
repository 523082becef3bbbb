"""Help and configuration answer before anything heavy is imported."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "numpy", "datasets")

PROBE = """
import sys
try:
    {code}
except SystemExit as stop:
    assert not stop.code, stop.code
print("HEAVY", *[name for name in {heavy!r} if name in sys.modules])
"""

CASES = {
    "config": "import openrlhf_ext.config",
    "values": "import openrlhf_ext.errors, openrlhf_ext.types",
    "commands": "from openrlhf_ext.cli import main; sys.argv[1:] = []; main.main()",
    "rl help": "from openrlhf_ext.cli import main; sys.argv[1:] = ['rl', '--help']; main.main()",
    "rl help section": "from openrlhf_ext.cli import main; sys.argv[1:] = ['rl', '--help', 'algo']; main.main()",
    "sft help": "from openrlhf_ext.cli import main; sys.argv[1:] = ['sft', '--help']; main.main()",
    "serve-rm help": "from openrlhf_ext.cli import main; sys.argv[1:] = ['serve-rm', '--help']; main.main()",
    "parse": "from openrlhf_ext.config import parse; parse('sft', "
    "['--model.model_name_or_path', 'm', '--data.dataset', 'd'])",
}


@pytest.mark.parametrize("case", CASES)
def test_light_and_fast(case: str):
    probe = PROBE.format(code=CASES[case], heavy=HEAVY)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY"
    # Processor time, not wall time: other tests may be using the machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
