"""New weights in the middle of a generation: engines as Ray actors, as in a run, and a Hugging Face twin to judge them.

The engines stop where a test says, so that the update comes after a known step.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from served_model import SHAPE, buckets_of, build_model, perturb, reference_logprobs
from test_rollout import CPU, TOLERANCE, settings, tokens_of
from transformers import PreTrainedModel

from openrlhf_ext.cluster.generator import SAMPLING, RemoteGenerator, VllmEngineActor
from openrlhf_ext.cluster.phases import Phases
from openrlhf_ext.cluster.train_worker import EngineLinks
from openrlhf_ext.cluster.worker_group import worker_environment
from openrlhf_ext.models.tiny import build_tokenizer
from openrlhf_ext.rollout.transfer import make_sender
from openrlhf_ext.rollout.vllm_engine import GenerateRequest, engine_environment
from openrlhf_ext.types import Prompt, Rollout, Sampling

SHORT, LONG = Sampling(n=1, max_new_tokens=10, seed=5), Sampling(n=2, max_new_tokens=120, seed=5)


class StoppableEngine(VllmEngineActor):
    """The engine, whose step loop waits for an update after a given number of steps."""

    def stop_after(self, steps: int) -> None:
        step, left, self._reached = self._engine.step, iter(range(steps - 1)), threading.Event()

        def counted_step() -> Any:
            outputs = step()
            if next(left, None) is None:
                self._engine.step = step
                self._reached.set()
                while not self._turns.updating:
                    time.sleep(0.001)
            return outputs

        self._engine.step = counted_step

    def wait_stopped(self) -> None:
        assert self._reached.wait(60), "the loop does not come to its step"

    def sampled(self) -> dict[int, tuple[int, ...]]:
        """The tokens of the requests that are under way, by their place in the batch."""
        states = self._engine.output_processor.request_states.values()
        return {int(state.external_req_id): tuple(state.detokenizer.output_token_ids) for state in states}


@dataclass
class Run:
    """Two engines and the weights they have. What a test publishes is the next version."""

    model: PreTrainedModel
    engines: list[Any]
    version: int = 0

    def generate(self, asked: Sequence[GenerateRequest], engine: int = 0) -> Any:
        return self.engines[engine].generate.options(concurrency_group=SAMPLING).remote(asked)

    def stop_after(self, steps: int, engine: int = 0) -> None:
        ray.get(self.engines[engine].stop_after.remote(steps))

    def wait_stopped(self, engine: int = 0) -> None:
        ray.get(self.engines[engine].wait_stopped.remote(), timeout=60)

    def publish(self, engines: Sequence[int] = (0,), buckets: int = 3) -> list[dict[int, tuple[int, ...]]]:
        """As a training worker does it; returns what each engine had sampled when it stopped."""
        self.version += 1
        chosen = [self.engines[index] for index in engines]
        links, sender = EngineLinks(chosen, "object_store", 0, 1), make_sender("object_store")
        ray.get([engine.begin_update.remote() for engine in chosen], timeout=60)
        sampled = ray.get([engine.sampled.remote() for engine in chosen])
        for bucket in buckets_of(self.model, buckets):
            sender.send(bucket, links.call)
        ray.get([engine.end_update.remote(self.version) for engine in chosen])
        return sampled


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("model")
    model = build_model(folder, tied=True)
    # Fewer places in a step than requests: some wait for their first token when the update comes.
    made = settings(str(folder), partial=True, max_num_seqs=16)
    environment = worker_environment(CPU, 1) | engine_environment(CPU, 1)
    environment["PYTHONPATH"] = str(Path(__file__).parent)  # where the actor finds this module
    # Not by `ray_session`: its token must be in the environment before Ray is imported, and another test may have.
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, _node_ip_address="127.0.0.1")
    actor = ray.remote(concurrency_groups={SAMPLING: 1})(StoppableEngine)
    options = {"num_cpus": 0, "runtime_env": {"env_vars": environment}}
    engines = [actor.options(**options).remote(made, CPU) for _ in range(2)]
    ray.get([engine.__ray_ready__.remote() for engine in engines])
    yield Run(model, engines)
    ray.shutdown()


def prompts(count: int) -> list[Prompt]:
    tokenizer = build_tokenizer(vocab=SHAPE.vocab)
    texts = [f"Question {i}: what is {i} times {i * 13}? " + "Think. " * (i % 3) for i in range(count)]
    return [Prompt(f"p{i}", tuple(tokenizer(text).input_ids), text) for i, text in enumerate(texts)]


def requests() -> list[GenerateRequest]:
    """Four that end early, twenty that go on."""
    short = [GenerateRequest(prompt, 0, SHORT) for prompt in prompts(4)]
    return short + [GenerateRequest(prompt, k, LONG) for prompt in prompts(10) for k in (1, 2)]


def response(rollout: Rollout) -> tuple[int, ...]:
    return tuple(rollout.token_ids[-rollout.response_length :].tolist())


def logprobs(rollout: Rollout) -> tuple[float, ...]:
    return tuple(rollout.logprobs[-rollout.response_length :].tolist())


def error(model: PreTrainedModel, rollout: Rollout, start: int, stop: int) -> float:
    """The largest difference between the sampler's log-probs and the model's, over these tokens of the response."""
    expected = reference_logprobs(model, rollout.token_ids)[-rollout.response_length :]
    found = torch.tensor(logprobs(rollout))
    return (found - expected)[start:stop].abs().max().item() if start < stop else 0.0


def test_an_update_between_two_steps(run: Run):
    asked, first = requests(), run.version
    undisturbed = ray.get(run.generate(asked))
    old = copy.deepcopy(run.model)
    perturb(run.model, seed=1)
    run.stop_after(30)
    under_way = run.generate(asked)
    run.wait_stopped()
    (sampled,) = run.publish()
    rollouts = ray.get(under_way)

    waiting = {index for index, tokens in sampled.items() if not tokens}
    ended = set(range(len(asked))) - set(sampled)
    assert ended >= {0, 1, 2, 3} and waiting and len(sampled) - len(waiting) > 5, "all three kinds are met"
    for index, (rollout, before) in enumerate(zip(rollouts, undisturbed, strict=True)):
        assert rollout.versions == (first + (index in waiting), first + (index not in ended))
        length = rollout.response_length
        kept = length if index in ended else len(sampled[index])
        assert response(rollout)[:kept] == response(before)[:kept] == sampled.get(index, response(before))
        assert logprobs(rollout)[:kept] == logprobs(before)[:kept]
        assert error(old, rollout, 0, kept) < TOLERANCE
        assert error(run.model, rollout, kept, length) < TOLERANCE
        assert index in ended or error(old, rollout, kept, length) > 100 * TOLERANCE, "the new weights are seen"


def test_updates_that_bring_the_same_weights_change_no_token(run: Run):
    """Also each request's own random numbers go on where they were."""
    asked, first = requests(), run.version
    undisturbed = ray.get(run.generate(asked))
    under_way = None
    for _ in range(20):
        run.stop_after(5)
        under_way = under_way or run.generate(asked)
        run.wait_stopped()
        run.publish()
    rollouts = ray.get(under_way, timeout=60)
    assert tokens_of(rollouts) == tokens_of(undisturbed)
    assert max(rollout.versions[1] for rollout in rollouts) == run.version == first + 20
    for rollout, before in zip(rollouts, undisturbed, strict=True):
        assert logprobs(rollout) == pytest.approx(logprobs(before), abs=TOLERANCE)


def test_updates_one_after_another_leave_room_for_steps(run: Run):
    asked = requests()
    run.stop_after(1)
    under_way = run.generate(asked)
    run.wait_stopped()
    longest = [max(map(len, run.publish(buckets=1)[0].values())) for _ in range(20)]
    assert longest == sorted(set(longest)), "a token between two updates"
    assert [rollout.key for rollout in ray.get(under_way)] == [request.key for request in asked]


def test_without_an_update_nothing_changes(run: Run):
    asked = requests()
    apart = ray.get(run.generate(asked))
    assert ray.get(run.engines[0].generate.remote(asked)) == apart, "bit for bit, in whichever thread"


def test_the_generator_goes_on_while_another_thread_publishes(run: Run):
    generator = RemoteGenerator(run.engines, Phases({}), partial=True)
    run.publish(engines=[0, 1])
    old, first = copy.deepcopy(run.model), run.version
    perturb(run.model, seed=2)
    for engine in (0, 1):
        run.stop_after(20, engine)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(generator.generate, prompts(9), LONG)
        for engine in (0, 1):
            run.wait_stopped(engine)
        run.publish(engines=[0, 1])
        groups = under_way.result(timeout=60)
    for prompt, group in zip(prompts(9), groups, strict=True):
        for k, rollout in enumerate(group):
            length = rollout.response_length
            assert rollout.key == (prompt.id, k)
            assert rollout.versions == (first, first + (length > 20))
            assert error(old, rollout, 0, min(length, 20)) < TOLERANCE
            assert error(run.model, rollout, 20, length) < TOLERANCE


def test_an_update_that_fails_ends_the_generation_that_waits_for_it(run: Run):
    """The last of the file: the second engine is of no use afterwards."""
    run.stop_after(10, engine=1)
    under_way = run.generate(requests(), engine=1)
    run.wait_stopped(engine=1)
    engine = run.engines[1]
    ray.get(engine.begin_update.remote())
    links, sender = EngineLinks([engine], "object_store", 0, 1), make_sender("object_store")
    name, tensor = next(iter(run.model.named_parameters()))
    with pytest.raises(Exception, match=r"shape|size"):
        sender.send([(name, tensor[:3])], links.call)
    for call in (under_way, run.generate(requests(), engine=1), engine.begin_update.remote()):
        with pytest.raises(RuntimeError, match="failed half-way"):
            ray.get(call, timeout=60)
