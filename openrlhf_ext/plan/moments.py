"""What exists on top of a model's resident state when most does, by phase: the peak over all moments of a micro-batch
and an optimizer step, from a run of the model in bytes (`plan.tape`).

The states of `plan.states` count gradients and their bucket as always there in training. They are not, so they are
part of the run here, and taken off what it peaks at.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from openrlhf_ext.plan import states
from openrlhf_ext.plan.gradients import Gradients, step_bytes
from openrlhf_ext.plan.layers import Transformer
from openrlhf_ext.plan.logits import answer
from openrlhf_ext.plan.operations import Operations
from openrlhf_ext.plan.parameters import trainable_parameters, trainable_weights
from openrlhf_ext.plan.states import state_terms
from openrlhf_ext.plan.types import SCORERS, ModelRun, Pass, Phase, Term

NAMES = {
    "activations": "activations",
    "attention": "attention workspace",
    "logits": "LM-head logit chunks",
    "gradients": "gradients on their way",
    "gradient bucket": "gradients on their way",
    "optimizer step": "optimizer step",
}
IN_STATES = ("gradients", "gradient bucket", "gradients of tensors that ranks share")

Kinds = dict[str, int]
Peaks = dict[str, Kinds]
"""What is live by kind at the peak of each moment."""


def transient_terms(run: ModelRun, *, watched: bool = False) -> list[Term]:
    """The terms of the biggest moment of each phase in which the run computes.

    `watched`: as measured under a dispatch mode, where torch adds gradients that meet out of place.
    """
    return [
        Term(run.role, name, size, "gpu", run.pool, frozenset((phase,)))
        for phase, passes in _passes(run).items()
        for name, size in _net(run, biggest_moment(run, passes, watched=watched)[1], phase).items()
        if size
    ]


def _passes(run: ModelRun) -> dict[Phase, tuple[Pass, ...]]:
    """What is computed in each phase; a supervised model is evaluated by forward passes of its own."""
    if run.role in SCORERS:
        return {"score": run.passes}
    found: dict[Phase, tuple[Pass, ...]] = {"train": run.passes}
    if run.role == "model":
        answered = () if run.answers is None else (run.answers,)
        found["evaluate"] = (*(one for one in run.passes if not one.backward), *answered)
    return {phase: passes for phase, passes in found.items() if passes}


def biggest_moment(run: ModelRun, passes: tuple[Pass, ...], *, watched: bool = False) -> tuple[str, Kinds]:
    """The moment at which most is live, and what it is by kind; gradients and their bucket included."""
    # Where a model is and when it sleeps is nothing to what it computes: runs that differ in that are run once.
    alone = replace(run, role="model", pool="", sleeps=False, awake=frozenset())
    found = [item for one in passes for item in _moments(alone, one, watched).items()]
    return max(found, key=lambda item: sum(item[1].values()))


def _net(run: ModelRun, kinds: Kinds, phase: Phase) -> Kinds:
    """By the terms' names, without what is among the states already."""
    counted = sum(
        term.bytes
        for term in state_terms(run)
        if term.where == "gpu" and term.name in IN_STATES and phase in term.phases
    )
    terms: Kinds = {}
    for kind in sorted(kinds, key=lambda kind: kind not in ("gradients", "gradient bucket")):
        left = max(kinds[kind] - counted, 0)
        counted -= kinds[kind] - left
        terms[NAMES[kind]] = terms.get(NAMES[kind], 0) + left
    return terms


@lru_cache(maxsize=512)
def _moments(run: ModelRun, one: Pass, watched: bool) -> Peaks:
    """The peaks of one pass. Layers are alike: a deep model's moments are those of two shallow ones, continued.

    What is live at a moment of the first layers, or of the last, grows by the same bytes with each further layer; a
    layer between holds less than one of them.
    """
    period = _period(run.shape.windows)
    layers = run.shape.layers
    fewer = layers % period + period * max(-(-2 * _layers_to_flush(run) // period), 3 if period == 1 else 2)
    if layers <= fewer + period:
        return _simulated(run, one, watched)
    less, more = (_simulated(_shallow(run, depth), one, watched) for depth in (fewer, fewer + period))
    further = (layers - fewer) // period
    found = {
        moment: {kind: size + further * (more[moment].get(kind, 0) - size) for kind, size in kinds.items()}
        for moment, kinds in less.items()
        if moment in more
    }
    if "optimizer step" in (step := found.get("step, optimizer", {})):
        # A step goes by groups of a size of their own, however deep the model is.
        trained = [weight.numel for weight in trainable_weights(run)]
        step["optimizer step"] = step_bytes(run, sum(trained), max(trained))
    return found


FEW = 8
"""Layers: a part that comes later comes when most activations have gone, and is no peak."""


def _layers_to_flush(run: ModelRun) -> int:
    """The layers, from the last, after which all gradients' part is there too: their bucket was full (stage 2)."""
    flush = -(-states.BUCKET * run.shape.layers // max(trainable_parameters(run), 1)) + 1
    return flush if run.zero_stage == 2 and flush <= min(run.shape.layers - 1, FEW) else 0


def _period(windows: tuple[int | None, ...]) -> int:
    """After how many layers their windows repeat."""
    return next((p for p in range(1, len(windows)) if windows[p:] == windows[:-p]), max(len(windows), 1))


def _shallow(run: ModelRun, layers: int) -> ModelRun:
    return replace(run, shape=replace(run.shape, layers=layers, windows=run.shape.windows[:layers]))


def _simulated(run: ModelRun, one: Pass, watched: bool) -> Peaks:
    ops = Operations(in_place=not watched)
    model = Transformer(run, one, ops)
    gradients = Gradients(run, ops.ledger, model.parameters.values(), accumulated=run.accumulates)
    if one.backward:
        ops.mode, ops.on_gradient = "record", gradients.arrive
    hidden = ops.chosen(model.hidden_states(), one.selected * run.shape.hidden)
    result = answer(model, hidden)
    del hidden
    if one.backward:
        ops.backward(result)
        ops.ledger.at("reduction", "backward")
        gradients.end_of_backward()
        ops.ledger.at("optimizer", "step")
        gradients.step()
    return {_named(*moment, run.shape.layers): kinds for moment, kinds in ops.ledger.peaks.items()}


def _named(direction: str, place: str, layers: int) -> str:
    """A moment's name, by which models of different depth are compared: layers counted from the nearer end."""
    if place.startswith("layer "):
        layer = int(place.removeprefix("layer "))
        place = f"layer {layer}" if layer < layers / 2 else f"layer {layers - layer} from the last"
    return f"{direction}, {place}"
