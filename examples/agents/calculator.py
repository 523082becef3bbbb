"""A tool: the policy writes <calc>3 * (4 + 5)</calc>, is told <result>27</result>, and goes on.

The tool's text is in the middle of the policy's own turn, and is never an action. Rows as for two_turn.py.
"""

from __future__ import annotations

import ast
import operator

from two_turn import is_right

from openrlhf_ext.rollout.agents.contract import Agent, EpisodeOver, Task

ASK = (
    "{}\nFor every computation write <calc>EXPRESSION</calc>, and you will be told its <result>. "
    "Write the final number on a line of its own, after #### ."
)
END = "</calc>"
BROKEN = -0.1
"""The reward of a turn whose expression cannot be computed."""
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class Calculator(Agent):
    async def play(self, task: Task, talks):
        talk = talks[""]
        talk.tell_messages([{"role": "user", "content": ASK.format(task.prompt)}])
        calls = broken = 0
        text = ""
        try:
            while True:
                said = await talk.sample(stop=[END])
                text += said.text
                if not said.text.endswith(END):
                    break
                calls += 1
                result = computed(said.text.removesuffix(END).rpartition("<calc>")[2])
                if result is None:
                    broken += 1
                    talk.reward(BROKEN)
                told = f"<result>{'error' if result is None else f'{result:g}'}</result>"
                text += told
                talk.tell(told)
        except EpisodeOver:
            pass  # no room or no turn is left: it is rewarded for what it has
        talk.reward(float(is_right(text, task.label)))
        return {"calls": calls, "broken": broken}


def computed(expression: str) -> float | None:
    """Its value; None for what is no arithmetic of numbers."""
    try:
        return float(_value(ast.parse(expression.strip().replace(",", ""), mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.operand))
    raise ValueError("not a number, nor + - * / // % of numbers")
