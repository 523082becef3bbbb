"""The limit, first half: vLLM alone. It generates what ours generated, token for token, and loads weights.

No Ray, no seeds, no log-probs, no text: the same prompts, and answers of the very lengths that ours had.
"""

from __future__ import annotations

import time
from typing import Any

from measure import Turn

from sides.gate import Gate
from sides.workload import Workload


def serve(workload: Workload, gate: Gate) -> None:
    from safetensors.torch import load_file
    from vllm import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

    engine = LLMEngine.from_engine_args(_arguments(workload))
    weights = load_file(workload.model / "model.safetensors")
    while (answers := gate.wait()) is not None:
        start = time.perf_counter()
        for index, (tokens, length) in enumerate(answers):
            wanted = SamplingParams(temperature=1.0, max_tokens=length, ignore_eos=True, detokenize=False)
            engine.add_request(str(index), {"prompt_token_ids": tokens[: len(tokens) - length]}, wanted)
        lengths = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                lengths[output.request_id] = len(output.outputs[0].token_ids)
        generated = time.perf_counter()
        engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        engine.reset_prefix_cache()
        phases = {"generate": generated - start, "publish": time.perf_counter() - generated}
        gate.finish(Turn(sum(phases.values()), phases, [lengths[str(index)] for index in range(len(answers))]))


def _arguments(workload: Workload) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    of_device: dict[str, Any] = {"gpu_memory_utilization": workload.memory_share}
    if workload.device == "cpu":
        of_device = {
            "enforce_eager": True,
            "kv_cache_memory_bytes": 256 << 20,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": 8192,
        }
    return EngineArgs(
        model=str(workload.model),
        dtype=workload.dtype,  # type: ignore[arg-type]
        max_model_len=workload.max_len,
        max_num_seqs=256,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **of_device,
    )
