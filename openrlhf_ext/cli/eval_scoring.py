"""What grades the answers of `eval`: all that can be wrong is found before a model loads, models come later."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.cli.judge_calibration import fingerprint
from openrlhf_ext.cli.judge_model import open_judge
from openrlhf_ext.cli.rl_judge import endpoint_of
from openrlhf_ext.cli.rl_rewards import source_settings
from openrlhf_ext.cli.serve_rm_run import scorer_spec, split_of
from openrlhf_ext.cli.specs import model_path
from openrlhf_ext.config import Parsed
from openrlhf_ext.config.evaluation import JUDGE, REWARD_MODEL, UNGRADED, EvalConfig, is_answer_rule
from openrlhf_ext.data.hub import local_files
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import Device
from openrlhf_ext.errors import RewardError, missing_file
from openrlhf_ext.evaluation.asked import AskedRow
from openrlhf_ext.evaluation.extraction import answer_rule, check_labels
from openrlhf_ext.evaluation.generation import PASS_AT
from openrlhf_ext.evaluation.grading import Grader, RewardGrader, RuleGrader
from openrlhf_ext.models.build import check_spec
from openrlhf_ext.models.load import check_model, load_config
from openrlhf_ext.rewards.judge.cache import VerdictCache
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.judge.prompt import Case, write_prompt
from openrlhf_ext.rewards.judge.rubric import Mode
from openrlhf_ext.rewards.judge.rubric_file import load_rubric
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.source import JudgeSource
from openrlhf_ext.rewards.load import RoleSource, load_reward
from openrlhf_ext.rewards.model import ModelSource, Scorer
from openrlhf_ext.track.progress import waiting
from openrlhf_ext.track.reference_cache import model_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from openrlhf_ext.models.spec import ModelSpec
    from openrlhf_ext.rewards.judge.types import LanguageModel


@dataclass(slots=True)
class LateRoles:
    """The models that grade, once the evaluated one has gone."""

    scorer: Scorer | None = None
    judge: LanguageModel | None = None


@dataclass(frozen=True, slots=True)
class Scoring:
    """`rule` names the scorer and what it depends on: with another rule results cannot be compared. `meet` is called
    before the grader is asked. No grader: answers are for people.
    """

    rule: str
    grader: Grader | None
    meet: Callable[[LateRoles], None] = lambda _: None
    spec: ModelSpec | None = None  # of the reward model


@contextmanager
def open_scoring(
    parsed: Parsed, rows: Sequence[AskedRow], tokenizer: PreTrainedTokenizerBase | None, device: Device
) -> Iterator[Scoring]:
    """Files are tried and rows looked at, no model is loaded. Raises UserError for what cannot grade."""
    cfg: EvalConfig = parsed.config
    scorer = cfg.eval.scorer
    if scorer in (None, UNGRADED):
        yield Scoring(UNGRADED, None)
    elif is_answer_rule(scorer):
        rule = answer_rule(scorer)
        check_labels(rule, [(row.where, row.prompt.label) for row in rows])
        yield Scoring(rule.spec, RuleGrader(rule, cfg.reward.verify_timeout_s))
    else:
        with ExitStack() as stack:
            yield _by_rewards(parsed, rows, tokenizer, device, stack)


def _by_rewards(
    parsed: Parsed,
    rows: Sequence[AskedRow],
    tokenizer: PreTrainedTokenizerBase | None,
    device: Device,
    stack: ExitStack,
) -> Scoring:
    cfg: EvalConfig = parsed.config
    scorer, threshold = str(cfg.eval.scorer), cfg.eval.threshold
    specs: list[str] = []
    roles: list[RoleSource] = []
    asked, spec = None, None
    origin, passes = scorer, _from(PASS_AT if threshold is None else threshold)
    if scorer == REWARD_MODEL:
        spec = _reward_spec(parsed, device)
        roles = [_model_source(cfg, spec.path, tokenizer)]
        origin = f"{REWARD_MODEL} {model_digest(local_files(spec.path), spec.dtype)}"
        passes = _from(threshold)
    elif scorer == JUDGE:
        asked = judge_of(cfg, "pointwise")
        assert asked.rubric is not None
        low, high = asked.rubric.reward_range
        passes = _from(low + (high - low) * (PASS_AT if threshold is None else threshold))
        origin = f"{JUDGE} {judge_rule(cfg)}"
        source = JudgeSource(asked, origin)
        source.check_rows([row.prompt for row in rows])
        roles = [source]
    else:
        specs = [scorer]
        asked = judge_of(cfg, "pointwise") if cfg.has_judge else None
        origin = _origin(scorer)
    reward = stack.enter_context(load_reward(specs, source_settings(cfg.reward), tokenizer, roles, asked))
    reward.probe([row.prompt for row in rows])

    def meet(late: LateRoles) -> None:
        for role in roles:
            role.connect(late)
        if asked is not None and not roles:
            assert late.judge is not None
            asked.connect(late.judge)

    tokens = None if tokenizer is None else lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    grader = RewardGrader(reward, passes, tokens, None if tokenizer is None else tokenizer.eos_token_id)
    words = "" if threshold is None else f", right from {threshold:g}"
    return Scoring(f"{origin}{words}", grader, meet, spec)


def _from(threshold: float | None) -> Callable[[float], bool | None]:
    """Rounding apart: a mean of criteria may come out a hair below the threshold that it equals."""
    return lambda score: None if threshold is None else score >= threshold - 1e-9


def _origin(scorer: str) -> str:
    """A file by its content."""
    path = Path(scorer).expanduser()
    if scorer.startswith(("http://", "https://")) or path.suffix != ".py":
        return scorer
    if not path.is_file():
        raise RewardError(f"--eval.scorer: the file {missing_file(path)}")
    return f"{path.name} {hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()}"


def _reward_spec(parsed: Parsed, device: Device) -> ModelSpec:
    cfg: EvalConfig = parsed.config
    assert cfg.reward.model_name_or_path is not None
    explicit = "ds.attn_implementation" in parsed.explicit
    normalize = cfg.reward.normalize_enable
    spec = scorer_spec(cfg.reward.model_name_or_path, cfg.ds, device, normalize=normalize, explicit=explicit)
    check_spec(spec)
    return spec


def _model_source(cfg: EvalConfig, path: str, tokenizer: PreTrainedTokenizerBase | None) -> ModelSource:
    longest = getattr(load_config(path).get_text_config(), "max_position_embeddings", None) or 1 << 20
    templated = cfg.data.apply_chat_template or cfg.model.url is not None
    return ModelSource(path, load_tokenizer(path), tokenizer, max_tokens=longest, templated=templated)


# --- the judge ---------------------------------------------------------------------------


def judge_of(cfg: EvalConfig, mode: Mode) -> Judge:
    """The judge before its model is there. Raises ConfigError for a rubric that is none, or an endpoint that does not
    answer, DataError for a model that is not there.
    """
    flags = cfg.judge
    rubric = None if flags.prompt is None else load_rubric(flags.prompt)
    special: Sequence[str] = ()
    if flags.url is not None:
        endpoint = endpoint_of(flags)
        try:
            endpoint.check()
        finally:
            endpoint.close()
    else:
        assert flags.model_name_or_path is not None
        path = model_path(flags.model_name_or_path)
        check_model(path)
        special = load_tokenizer(path).all_special_tokens
    settings = JudgeSettings(mode, flags.n_samples, flags.temperature, flags.max_new_tokens)
    return Judge(rubric, settings, VerdictCache(flags.cache) if flags.cache else None, special)


def judge_rule(cfg: EvalConfig) -> str:
    """Whose verdicts, by which rubric."""
    assert cfg.judge.prompt is not None
    mark = fingerprint(cfg.judge, load_rubric(cfg.judge.prompt))
    return f"{cfg.judge.served_model_name or cfg.judge.model_name_or_path} {mark['model']} by {mark['rubric']}"


def pair_judge(cfg: EvalConfig, rows: Sequence[AskedRow]) -> Judge | None:
    """The judge of `--eval.against`. Raises RewardError for a row that lacks what its rubric shows."""
    if cfg.eval.against is None:
        return None
    judge = judge_of(cfg, "pairwise")
    assert judge.rubric is not None
    for row in rows:
        write_prompt(judge.rubric, Case(row.blank.prompt, "", row.prompt.label, row.prompt.meta, row.where))
    return judge


@contextmanager
def late_roles(cfg: EvalConfig, scoring: Scoring, device: Device) -> Iterator[LateRoles]:
    """The models that grade; one after the evaluated one, for each may want the whole machine."""
    late = LateRoles()
    with ExitStack() as stack:
        if scoring.spec is not None:
            from openrlhf_ext.models.scorer import LocalScorer

            with waiting("the reward model to load"):
                late.scorer = LocalScorer(scoring.spec, device, split_of(cfg.ds.packing_samples))
        if cfg.has_judge:
            opened: Any = stack.enter_context(open_judge(cfg.judge, device))
            late.judge = opened.model
        yield late
