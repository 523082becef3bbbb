"""The RL driver: GENERATE -> SCORE -> INFER -> ESTIMATE -> SPLIT -> UPDATE -> PUBLISH -> evaluate, log, save.

It speaks to ports only (`openrlhf_ext.ports`): what runs where, who sleeps and who wakes is not known here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.errors import DataError
from openrlhf_ext.ports import Recorder
from openrlhf_ext.track.checkpoints import Checkpoint
from openrlhf_ext.trainers.experience import Updates, estimate, infer, split
from openrlhf_ext.trainers.journal import Journal
from openrlhf_ext.trainers.reports import critic_report, experience_report, rollout_report, under
from openrlhf_ext.trainers.rollouts import RolloutSource
from openrlhf_ext.trainers.settings import RLRoles, RLSettings
from openrlhf_ext.types import Metric, Report, merge_reports

REFERENCE = "reference"
"""Of a checkpoint, where the reference follows the policy."""


def train_rl(
    settings: RLSettings,
    prompts: PromptSource,
    roles: RLRoles,
    journal: Journal,
    *,
    recorder: Recorder | None = None,
    resume: Checkpoint | None = None,
) -> int:
    """Train until the prompts are used up or the journal says stop; returns the last step. A step is a rollout step.

    A step of which no group is left to train on updates nothing, and says so.
    Raises what the roles raise, and DataError where `resume` does not fit.
    """
    step, version, clock = 0, 0, journal.clock
    with RolloutSource(prompts, roles.generator, roles.reward, settings, clock) as source:
        if resume is not None:
            step, version, settings = restore(resume, source, roles, settings)
        with clock("publish"):
            roles.policy.publish(version)
        journal.begin(step, resume.state if resume else None)
        while not journal.stopped and (sampled := source.next(step + 1)) is not None:
            step, updates = step + 1, Updates()
            if recorder is not None:
                recorder.write(step, sampled.recorded)
            reports: list[Report] = [rollout_report(sampled, version)]
            if sampled.groups:
                batch = token_batch(sampled.rollouts, settings.pad_id)
                with clock("infer"):
                    signals = infer(batch, settings, roles)
                with clock("estimate"):
                    experience = estimate(sampled.groups, batch, signals, settings)
                    updates = split(experience, settings, roles, step)
                reports.append(experience_report(sampled.groups, experience, signals, settings))
                with clock("update"):
                    reports.append(update(updates, settings, roles))
            else:
                journal.note(f"step {step}: no group is left to train on, so the policy stays as it is")
            if settings.reference_follows(step):
                reports.append(follow(settings, roles, journal))
            if updates.policy:
                if not settings.partial:
                    source.settle()
                version += 1
                with clock("publish"):
                    reports.append(under("publish", roles.policy.publish(version)))
            reports.append({"policy/optimizer_steps": Metric(len(updates.policy), reduction="sum")})
            report = merge_reports(reports)
            settings = settings.adapted(report, len(sampled.rollouts))
            journal.end_step(
                step,
                report,
                last=sampled.last,
                tokens=sampled.tokens_by_phase,
                settle=partial(settle, source, recorder),
                write=partial(save, source, roles, step),
                state=partial(position, source, version, settings),
            )
    return step


def settle(source: RolloutSource, recorder: Recorder | None) -> None:
    """Nothing is being drawn, and what was drawn is on disk."""
    source.settle()
    if recorder is not None:
        recorder.settle()


def update(updates: Updates, settings: RLSettings, roles: RLRoles) -> Report:
    """The critic learns first; what it expected of these rollouts is in the advantages already."""
    report: dict[str, Metric] = {}
    if updates.critic:
        assert roles.critic is not None and settings.value_objective is not None
        report |= critic_report(roles.critic.update(updates.critic, settings.value_objective))
    if updates.policy:
        report |= under("policy", roles.policy.update(updates.policy, settings.objective))
    return report


def follow(settings: RLSettings, roles: RLRoles, journal: Journal) -> Report:
    """The reference moves towards the policy."""
    assert roles.mixed is not None, "a reference that follows is among the roles"
    with journal.clock("mix"):
        roles.mixed.mix(settings.ref_mixup)
    return {"reference/followed": Metric(1.0, reduction="sum")}


def save(source: RolloutSource, roles: RLRoles, step: int, folder: Path) -> None:
    """Fill a checkpoint."""
    roles.policy.save(folder / "policy")
    if roles.critic is not None:
        roles.critic.save(folder / "critic")
    if roles.mixed is not None:
        roles.mixed.save(folder / REFERENCE)
    source.save(folder, step)


def position(source: RolloutSource, version: int, settings: RLSettings) -> dict[str, Any]:
    """The driver's own state, beside what `save` writes; `restore` reads it."""
    return {**source.state(), "version": version, "kl_coef": settings.kl_coef}


def restore(
    resume: Checkpoint, source: RolloutSource, roles: RLRoles, settings: RLSettings
) -> tuple[int, int, RLSettings]:
    """Put roles and rollouts back where the checkpoint has them; returns its step, weight version and settings."""
    step, version, state = resume.step, resume.state["version"], resume.state
    if (resume.path / REFERENCE).is_dir() != (roles.mixed is not None):
        held = "no" if roles.mixed is not None else "a"
        raise DataError(
            f"The checkpoint {resume.path} holds {held} reference that follows the policy: resume with "
            "--ref.sync_steps as its run had it, or start anew."
        )
    source.restore(state, resume.path, step, version)
    roles.policy.load(resume.path / "policy")
    if roles.critic is not None:
        roles.critic.load(resume.path / "critic")
    if roles.mixed is not None:
        roles.mixed.load(resume.path / REFERENCE)
    if settings.kl_target is not None:
        settings = settings.with_kl_coef(state["kl_coef"])
    return step, version, settings
