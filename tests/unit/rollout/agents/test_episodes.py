"""Episodes of our own contract: tokens, masks, rewards, ends, players."""

from __future__ import annotations

from pathlib import Path

import pytest
from played import HEAD, LIMIT, TOKENIZER, Played, asked, play, write

from openrlhf_ext.types import Outcome, Rollout, ScoreFailure

TWO_TURNS = """
class Two(Agent):
    async def play(self, task, talks):
        talk = talks[""]
        talk.tell(task.prompt)
        first = await talk.sample()
        talk.reward(0.25)
        talk.tell("\\nNow<|im_start|> again: ")
        second = await talk.sample(max_new_tokens=2)
        talk.reward(1)
        talk.reward(task.label)
        talk.tell("never seen by the policy")
        return {"said": [first.text, second.text], "cut": second.cut, "column": task.columns["column"],
                "sample": task.sample, "seed": task.seed, "id": task.prompt_id}
"""

PAIR = """
class Pair(Agent):
    roles = ("asker", "teller")

    async def play(self, task, talks):
        asker, teller = talks["asker"], talks["teller"]
        asker.tell_messages(task.messages)
        question = await asker.sample()
        if task.sample:
            teller.tell_messages([{"role": "user", "content": question.text}])
            await teller.sample()
            teller.reward(-1.0)
        asker.reward(2.0)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(write(tmp_path_factory.mktemp("two"), TWO_TURNS), asked())


def outcome(rollout: Rollout) -> Outcome:
    assert isinstance(rollout.outcome, Outcome), rollout.outcome
    return rollout.outcome


def failure(rollout: Rollout) -> ScoreFailure:
    assert isinstance(rollout.outcome, ScoreFailure), rollout.outcome
    return rollout.outcome


def test_a_transcript_is_what_the_policy_saw_token_by_token(two: Played):
    between = TOKENIZER("\nNow<|im_start|> again: ", add_special_tokens=False).input_ids
    assert TOKENIZER.convert_tokens_to_ids("<|im_start|>") in between, "markup that a text spells is markup"
    seen = {turn.tokens for turn in two.sampler.asked}
    assert len(two.rollouts) == 6
    for request, rollout in zip(asked(), two.rollouts, strict=True):
        assert rollout.key == request.key
        ends = [position for position, _ in outcome(rollout).turns]
        start = len(request.prompt.token_ids)
        middle = ends[0] + 1 + len(between)
        tokens = tuple(rollout.token_ids.tolist())
        assert tokens[:start] == request.prompt.token_ids
        assert tokens[ends[0] + 1 : middle] == tuple(between)
        actions = {*range(start, ends[0] + 1), *range(middle, ends[1] + 1)}
        assert {t for t, action in enumerate(rollout.action_mask) if action} == actions
        assert len(tokens) == ends[1] + 1, "what is told after the last turn is not there"
        assert rollout.logprobs.tolist() == [
            -float(token) if action else 0.0 for token, action in zip(tokens, rollout.action_mask)
        ]
        assert {tokens[:start], tokens[:middle]} <= seen, "as the engine was asked"
        assert rollout.versions == (4, 4)
        assert rollout.text == TOKENIZER.decode(rollout.token_ids[start:], skip_special_tokens=True)


def test_rewards_fall_at_their_turns_and_the_episode_tells_what_it_likes(two: Played):
    for request, rollout in zip(asked(), two.rollouts, strict=True):
        found = outcome(rollout)
        assert [reward for _, reward in found.turns] == [0.25, 1.0 + request.prompt.label]
        assert found.score.value == 1.25 + request.prompt.label
        assert found.info["column"] == request.prompt.meta["column"]
        assert (found.info["id"], found.info["sample"]) == request.key
        ends = [position for position, _ in found.turns]
        second = TOKENIZER.decode(rollout.token_ids[ends[1] - 1 :], skip_special_tokens=True)
        assert found.info["said"][1] == second
        assert found.info["cut"] is (rollout.finish_reason == "length")
    assert len({outcome(rollout).info["seed"] for rollout in two.rollouts}) == 6, "every episode draws its own"


def test_tokens_do_not_depend_on_who_else_plays(two: Played, tmp_path: Path):
    path = write(tmp_path, TWO_TURNS)
    alone = play(path, asked(), concurrent=1)
    assert alone.sampler.most_at_once == 1 < two.sampler.most_at_once
    assert alone.tokens == two.tokens
    assert [r.outcome for r in alone.rollouts] == [r.outcome for r in two.rollouts]
    backwards = play(path, asked()[::-1], concurrent=3)
    assert backwards.tokens == two.tokens[::-1]
    assert play(path, asked(seed=8)).tokens != two.tokens
    seeds = [turn.seed for turn in two.sampler.asked]
    assert len(set(seeds)) == len(seeds) == 12, "a seed for every turn of every episode"


def test_players_have_talks_and_rollouts_of_their_own(tmp_path: Path):
    played = play(write(tmp_path, PAIR), asked())
    keys = [(r.prompt_id, r.sample, r.role) for r in played.rollouts]
    assert keys == [
        (f"p{i}", sample, role) for i in range(3) for sample, role in ((0, "asker"), (2, "asker"), (3, "teller"))
    ], "who never spoke has no rollout"
    for rollout in played.rollouts:
        assert outcome(rollout).score.value == (2.0 if rollout.role == "asker" else -1.0)
    opened = "<|im_start|>user\nQuestion 0?<|im_end|>\n<|im_start|>assistant\n"
    first = played.rollouts[0]
    start = int(first.action_mask.argmax())
    assert list(first.token_ids[:start]) == TOKENIZER(opened).input_ids
    teller, asker = played.rollouts[2], played.rollouts[1]
    question = TOKENIZER.decode(teller.token_ids[: teller.action_mask.argmax()])
    assert question == f"<|im_start|>user\n{asker.text}<|im_end|>\n<|im_start|>assistant\n"
    assert len({turn.seed for turn in played.sampler.asked}) == len(played.sampler.asked)


CHAT = """
class Chat(Agent):
    async def play(self, task, talks):
        talk = talks[""]
        talk.tell_messages([{"role": "system", "content": "Be brief."}])
        talk.tell_messages(task.messages)
        said = [await talk.sample(stop=["e"] if task.sample else [])]
        talk.tell_messages([{"role": "user", "content": "Sure?"}])
        said.append(await talk.sample(max_new_tokens=2))
        talk.tell_messages([{"role": "user", "content": "Really?"}])
        said.append(await talk.sample())
        return {"said": [each.text for each in said]}
"""


def test_a_chat_reads_as_the_template_writes_it(tmp_path: Path):
    played = play(write(tmp_path, CHAT), asked(prompts=6))
    stopped = 0
    for request, rollout in zip(asked(prompts=6), played.rollouts, strict=True):
        said = outcome(rollout).info["said"]
        messages = [{"role": "system", "content": "Be brief."}, *request.prompt.messages]
        for answer, question in zip(said, ("Sure?", "Really?"), strict=False):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        whole = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found = TOKENIZER.decode(rollout.token_ids, skip_special_tokens=False)
        assert found.startswith(whole), "a turn's end is there once, the policy's own or else the template's"
        stopped += said[0].endswith("e")
        if request.sample:
            assert "e" not in said[0][:-1]
    assert stopped, "a stop string ended a turn and stays in it"


TALKER = """
class Talker(Agent):
    async def play(self, task, talks):
        talk = talks[""]
        talk.tell(task.prompt)
        turns = 0
        try:
            while True:
                await talk.sample()
                talk.reward(1.0)
                turns += 1
                talk.tell(" and on " * 6)
        except EpisodeOver as over:
            if task.sample == 0:
                raise
            return {"turns": turns, "over": str(over)}
"""


def test_an_episode_ends_for_want_of_room_or_turns(tmp_path: Path):
    path = write(tmp_path, TALKER)
    raised, caught = play(path, asked(prompts=1), max_turns=3).rollouts
    assert [outcome(r).score.value for r in (raised, caught)] == [3.0, 3.0], "what was said is the episode"
    assert raised.finish_reason == "length", "it would have gone on"
    assert "--agent.max_turns" in outcome(caught).info["over"]
    roomy, narrow = (play(path, asked(1, max_total_tokens=limit), max_turns=99).rollouts for limit in (None, 120))
    for rollouts, limit in ((roomy, LIMIT), (narrow, 120)):
        assert all(len(rollout.token_ids) <= limit for rollout in rollouts)
        assert all(len(rollout.token_ids) > limit - 60 for rollout in rollouts)
        assert "--data.max_len" in outcome(rollouts[1]).info["over"]
    short = play(path, asked(prompts=1, max_new_tokens=2), max_turns=1)
    assert [rollout.response_length for rollout in short.rollouts] == [2, 2]
    assert [rollout.finish_reason for rollout in short.rollouts] == ["length", "length"]


WRONG = {
    "raise KeyError('no such note')": ("exception", "KeyError: 'no such note'"),
    "import sys; sys.exit(3)": ("exception", "SystemExit: 3"),
    "return [1]": ("wrong_type", "play returned list"),
    "return {'x': object()}": ("wrong_type", "no JSON"),
    "talks[''].reward(1.0)": ("exception", "has not spoken yet"),
    "await talks[''].sample()": ("exception", "was told nothing"),
    "talks[''].tell(3)": ("exception", "tell takes a text"),
    "talks[''].tell_messages([{'role': 'user'}])": ("exception", "'role' and 'content'"),
    "talks[''].tell('x'); await talks[''].sample(max_new_tokens=0)": ("exception", "at least one token"),
    "talks[''].tell('x'); s = talks[''].sample; await asyncio.gather(s(), s())": ("exception", "speaks already"),
    "talks[''].tell('x'); await talks[''].sample(); talks[''].reward(float('nan'))": ("not_finite", "nan"),
    "talks[''].tell('x'); await talks[''].sample(); talks[''].reward('good')": ("wrong_type", "'good'"),
    "pass": ("wrong_type", "said nothing"),
    "talks[''].tell('x ' * 999); await talks[''].sample()": ("wrong_type", "said nothing"),
}


def test_what_fails_is_typed_and_leaves_the_others_alone(tmp_path: Path):
    cases = "".join(f"        if task.label == {i}:\n            {line}\n" for i, line in enumerate(WRONG))
    good = '        if task.label == 99:\n            talks[""].tell("x")\n            await talks[""].sample()\n'
    path = write(tmp_path, f"class Wrong(Agent):\n    async def play(self, task, talks):\n{cases}{good}")
    requests = asked(prompts=len(WRONG) + 1, samples=1)
    object.__setattr__(requests[-1].prompt, "label", 99)
    *bad, last = play(path, requests).rollouts
    assert isinstance(last.outcome, Outcome)
    for rollout, (reason, words) in zip(bad, WRONG.values(), strict=True):
        assert (failure(rollout).reason, words in failure(rollout).detail) == (reason, True), failure(rollout)
        assert rollout.role == ""
    assert f'File "{path}"' in failure(bad[0]).detail, "the user's own line is named"


def test_a_file_without_our_words_needs_no_heavy_import(tmp_path: Path):
    """The process of an own agent is up in a fraction of a second; torch alone takes more."""
    body = (
        "import sys\nclass Light(Agent):\n    async def play(self, task, talks):\n"
        "        talks[''].tell('x')\n        await talks[''].sample()\n        return {'heavy': [name for name in"
        " ('torch', 'transformers', 'numpy', 'vllm') if name in sys.modules]}\n"
    )
    (rollout,) = play(write(tmp_path, body, head=HEAD), asked(1, 1)).rollouts
    assert outcome(rollout).info == {"heavy": []}
