"""The rules of the judge. What is in its rubric file is checked where that is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation


def one_judge(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    judge = config.judge
    if judge.url is not None and judge.model_name_or_path is not None:
        yield Violation("--judge.url", judge.url, "--judge.model_name_or_path names another judge; leave out one")
    if judge.url is not None and judge.served_model_name is None:
        yield Violation("--judge.served_model_name", None, "it is required with --judge.url: the endpoint's model")


def a_judge_has_work(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    judge = config.judge
    if config.has_judge and judge.prompt is None and not config.reward.remote_url:
        yield Violation(
            "--judge.prompt",
            None,
            "nobody asks the judge; give it a rubric file, or a reward file that asks it (--reward.remote_url)",
            plannable=True,
        )
    if judge.prompt is not None and config.has_judge and not Path(judge.prompt).expanduser().is_file():
        yield Violation("--judge.prompt", judge.prompt, "there is no such file; give a rubric (YAML)", plannable=True)


def votes_differ(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    judge = config.judge
    if judge.n_samples > 1 and judge.temperature == 0:
        yield Violation(
            "--judge.n_samples",
            judge.n_samples,
            "at temperature 0 all of them are alike; set --judge.temperature above 0",
        )


def pairs_need_siblings(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.has_judge_reward and config.judge.mode == "pairwise" and config.rollout.n_samples_per_prompt < 2:
        yield Violation(
            "--judge.mode",
            "pairwise",
            "it compares answers to one prompt; set --rollout.n_samples_per_prompt to 2 or more",
        )
    if config.judge.max_pairs is not None and config.judge.mode != "pairwise":
        yield Violation("--judge.max_pairs", config.judge.max_pairs, "it has no effect without --judge.mode pairwise")


def comparisons_show_no_progress(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    evaluated = config.eval.dataset is not None and config.eval.remote_url is None
    alone = not (config.reward.remote_url or config.has_reward_model or config.has_student)
    if config.has_judge_reward and config.judge.mode == "pairwise" and evaluated and alone:
        yield Violation(
            "--eval.remote_url",
            None,
            "a pairwise judge holds the answers against each other, which comes to the same mean for every model; name "
            "what evaluation measures, or leave out --eval.dataset",
        )


def a_judgement_has_room(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    judge = config.judge
    if judge.max_len is not None and judge.max_len <= judge.max_new_tokens:
        yield Violation(
            "--judge.max_len",
            judge.max_len,
            f"it is for question and answer together; raise it above --judge.max_new_tokens {judge.max_new_tokens}",
        )


def a_judge_that_shares_takes_one_gpu(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    judge, train = config.judge, config.train
    shares = train.colocate_all and not train.async_enable
    if judge.enable_sleep and not shares:
        words = (
            "a judge that scores while others train never sleeps; leave it out with --train.async_enable"
            if train.async_enable
            else "nobody else uses the memory it frees; add --train.colocate_all"
        )
        yield Violation("--judge.enable_sleep", None, words)
    if shares and judge.tensor_parallel_size > 1:
        yield Violation(
            "--judge.tensor_parallel_size",
            judge.tensor_parallel_size,
            "a judge that shares GPUs with training takes one of them; leave it out with --train.colocate_all",
        )


JUDGE_RULES: tuple[Rule, ...] = (
    one_judge,
    a_judge_has_work,
    votes_differ,
    pairs_need_siblings,
    comparisons_show_no_progress,
    a_judgement_has_room,
    a_judge_that_shares_takes_one_gpu,
)
