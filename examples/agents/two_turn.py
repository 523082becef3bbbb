"""Answer, critique, answer: the policy looks at its own first answer before it gives the last one.

Rows have a question and an answer that ends with `#### NUMBER`, as in GSM8K. The last answer is what is rewarded;
the column `episode` tells a reward function whether the first one was right too.
"""

from __future__ import annotations

import re

from openrlhf_ext.rollout.agents.contract import Agent, Task

ASK = "{}\nReason step by step. Write the final number on a line of its own, after #### ."
CRITICISE = "Look at your answer again: which step, if any, is wrong, and why?"
AGAIN = "Now give your final answer, in the same form."
NUMBER = re.compile(r"####\s*(-?[\d.,]*\d)")


class TwoTurn(Agent):
    async def play(self, task: Task, talks):
        talk = talks[""]
        talk.tell_messages([{"role": "user", "content": ASK.format(task.prompt)}])
        first = await talk.sample()
        talk.tell_messages([{"role": "user", "content": CRITICISE}])
        await talk.sample()
        talk.tell_messages([{"role": "user", "content": AGAIN}])
        last = await talk.sample()
        talk.reward(float(is_right(last.text, task.label)))
        return {"first_right": is_right(first.text, task.label), "cut": last.cut}


def is_right(text: str, label: str) -> bool:
    found, wanted = number(text), number(label)
    return found is not None and found == wanted


def number(text: str) -> float | None:
    """The last number after ####."""
    found = NUMBER.findall(text)
    try:
        return float(found[-1].replace(",", "")) if found else None
    except ValueError:
        return None
