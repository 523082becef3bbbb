"""The plan as JSON: the keys that programs rely on, GB of 1e9 bytes, and numbers that agree with each other."""

from __future__ import annotations

import json
from dataclasses import replace

from planned_runs import DPO, REINFORCE, arguments

from openrlhf_ext.plan.describe import as_json
from openrlhf_ext.plan.make import make_plan

KEYS = {
    "fits", "verdict", "trainable_params", "total_params", "effective_batch", "steps_per_epoch", "leftover_rows",
    "steps_total", "saves", "evals", "gpu_peak_gb", "host_peak_gb", "states_gb_per_gpu", "phases", "terms",
    "warnings", "changes", "kv_tokens", "kv_sequences", "time", "data",
}  # fmt: skip


def test_the_object_is_json_with_every_key():
    plan = make_plan(*arguments("rl", REINFORCE, 96, host=256))
    shown = json.loads(json.dumps(as_json(plan), allow_nan=False))
    assert shown.keys() >= KEYS
    assert shown["fits"] is False and shown["verdict"] == "does not fit"
    assert shown["gpu_limit_gb"] == 96.0
    assert (shown["steps_per_epoch"], shown["leftover_rows"], shown["steps_total"]) == (9, 62, 10)
    assert all(change.keys() >= {"flag", "value", "saves_gb", "costs"} for change in shown["changes"])
    assert all(warning.keys() == {"code", "text"} for warning in shown["warnings"])


def test_the_placement_says_who_sits_on_every_gpu():
    flags = REINFORCE.replace("--actor.num_gpus_per_node 1", "--actor.num_gpus_per_node 2 --vllm.num_engines 3")
    command, config, explicit, hardware, data = arguments("rl", flags, 192, count=2)
    shown = as_json(make_plan(command, config, explicit, replace(hardware, nodes=2), data))["placement"]
    assert [(place["node"], place["device"]) for place in shown] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    first, last = ([(p["role"], p["rank"]) for p in shown[index]["processes"]] for index in (0, 2))
    assert first == [("policy", 0), ("reference", 0), ("engines", 0), ("judge", 0)]
    assert last == [("engines", 2)]
    crowded = as_json(make_plan(command, config, explicit, replace(hardware, count=1), data))
    assert crowded["placement"] is None and "and there is 1" in crowded["misfits"][0]


def test_peaks_are_the_sums_of_their_terms():
    shown = as_json(make_plan(*arguments("rl", REINFORCE, 96, host=256)))
    assert shown["gpu_peak_gb"] == max(phase["gpu_gb"] for phase in shown["phases"])
    for phase in shown["phases"]:
        terms = [
            term["gb"]
            for term in shown["terms"]
            if (term["where"], term["pool"]) == ("gpu", phase["pool"]) and phase["phase"] in term["phases"]
        ]
        assert abs(sum(terms) - phase["gpu_gb"]) < 0.001 * (len(terms) + 1)


def test_a_plan_without_changes_says_so():
    shown = as_json(make_plan(*arguments("dpo", DPO, 192)))
    assert shown["fits"] is True and shown["verdict"] == "fits" and shown["changes"] == []
    assert shown["trainable_params"] == shown["total_params"]
