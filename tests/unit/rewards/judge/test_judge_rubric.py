"""The file of a rubric: what it becomes, and one sentence for each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.errors import ConfigError, RewardError
from openrlhf_ext.rewards import judge as judge_package
from openrlhf_ext.rewards.judge.prompt import Case, write_pair_prompt, write_prompt
from openrlhf_ext.rewards.judge.read import NotAVerdict, read_verdict
from openrlhf_ext.rewards.judge.rubric import Reasoning
from openrlhf_ext.rewards.judge.rubric_file import load_rubric, read_rubric

SHIPPED = sorted((Path(judge_package.__file__).parent / "rubrics").glob("*.yaml"))
SHOWS = "instructions: 'Judge {{ response }}'\n"
ONE = "criteria: [{name: a, description: d, scale: boolean}]\n"

FULL = """
instructions: |
  {% if columns.kind == "note" %}A note.{% else %}Another text.{% endif %}
  {% for item in columns.facts %}
  - {{ item }}
  {% endfor %}
  {{ prompt }} against {{ reference }}: {{ response }}
reference: solution
reasoning: {description: why., max_chars: 250}
criteria:
  - {name: true_, description: It is true., scale: boolean, weight: 2}
  - {name: grade, description: Grade., scale: {integer: [1, 5]}}
  - {name: share, description: Share., scale: {number: [-1, 0.5]}, better: low}
  - {name: kind, description: Kind., scale: {choices: {bad: -1, soso: 0, good: 3}}, weight: 4}
reward: {combine: mean, range: [-2, 2]}
limits: {prompt: 10, response: 20, reference: 30, column: 40}
"""
GOOD = {"reasoning": "so", "true_": True, "grade": 4, "share": -1, "kind": "soso"}


def criterion(text: str) -> str:
    return SHOWS + f"criteria: [{{name: a, description: d, {text}}}]"


MISTAKES = {
    "not YAML": ("a: [", "it is not YAML (line 1"),
    "a list": ("- a", "it holds a list instead of keys"),
    "nothing": ("", "it holds nothing instead of keys"),
    "unknown key": (SHOWS + ONE + "weights: 3", "it has the unknown key 'weights': there are instructions, criteria"),
    "a key twice": (SHOWS + ONE + SHOWS, "the key 'instructions' stands twice"),
    "no instructions": (ONE, "it has no instructions"),
    "instructions are a list": ("instructions: [a]\n" + ONE, "it has no instructions"),
    "response not shown": ("instructions: 'Judge {{ prompt }}'\n" + ONE, "never show {{ response }}"),
    "unknown variable": ("instructions: '{{ response }} {{ answer }}'\n" + ONE, "{{ answer }} is no variable"),
    "broken Jinja": ("instructions: '{{ response'\n" + ONE, "line 1 is not Jinja"),
    "unknown filter": ("instructions: '{{ response | shout }}'\n" + ONE, "is not Jinja (No filter named 'shout'"),
    "a macro": ("instructions: '{% macro m() %}{% endmacro %}{{ response }}'\n" + ONE, "has a Jinja macro"),
    "a filter block": ("instructions: '{% filter upper %}{{ response }}{% endfilter %}'\n" + ONE, "has a Jinja filter"),
    "an include": ("instructions: '{% include \"x\" %}{{ response }}'\n" + ONE, "has a Jinja include"),
    "no criteria": (SHOWS, "criteria is no list of at least one criterion"),
    "empty criteria": (SHOWS + "criteria: []", "criteria is no list of at least one criterion"),
    "criteria by name": (SHOWS + "criteria: {a: boolean}", "criteria is no list of at least one criterion"),
    "a criterion is a text": (SHOWS + "criteria: [a]", "criterion 1 is a text"),
    "unknown key of a criterion": (criterion("scale: boolean, wieght: 2"), "criterion a has the unknown key 'wieght'"),
    "no name": (SHOWS + "criteria: [{description: d, scale: boolean}]", "criterion 1 has no usable name (None)"),
    "a name with spaces": (SHOWS + "criteria: [{name: a b, description: d, scale: boolean}]", "usable name ('a b')"),
    "named as the reasoning": (SHOWS + "criteria: [{name: reasoning, description: d, scale: boolean}]", "is named"),
    "two of one name": (SHOWS + ONE.replace("]", ", {name: a, description: d, scale: boolean}]"), "are named a"),
    "no description": (SHOWS + "criteria: [{name: a, scale: boolean}]", "criterion a has no description"),
    "no scale": (SHOWS + "criteria: [{name: a, description: d}]", "criterion a: its scale is None: give boolean"),
    "unknown scale": (criterion("scale: stars"), "its scale is 'stars'"),
    "unknown kind": (criterion("scale: {stars: [1, 5]}"), "its scale is {'stars': [1, 5]}"),
    "range of one": (criterion("scale: {integer: [1]}"), "its scale is [1]: give two numbers"),
    "range of words": (criterion("scale: {integer: [a, b]}"), "its scale is 'a': give a number"),
    "range turned": (criterion("scale: {integer: [5, 1]}"), "goes from 5 to 1: give the lower one first"),
    "range of one point": (criterion("scale: {number: [1, 1]}"), "goes from 1 to 1"),
    "half an integer": (criterion("scale: {integer: [0.5, 3]}"), "an integer from 0.5 to 3: give whole numbers"),
    "an endless range": (criterion("scale: {number: [0, .inf]}"), "its scale is inf: give a number"),
    "one choice": (criterion("scale: {choices: {good: 1}}"), "give at least two"),
    "a choice that YAML reads": (criterion("scale: {choices: {yes: 1, maybe: 0}}"), "put its name in quotation marks"),
    "choices without values": (criterion("scale: {choices: {a: null, b: 1}}"), "the choice a is None: give a number"),
    "choices of one value": (criterion("scale: {choices: {a: 1, b: 1}}"), "all its choices have the same value"),
    "a choice with quotation marks": (criterion("scale: {choices: {'a\"': 1, b: 0}}"), "JSON would escape"),
    "weight 0": (criterion("scale: boolean, weight: 0"), "weight is 0: give a number above 0"),
    "weight below 0": (criterion("scale: boolean, weight: -1"), "weight is -1: give a number above 0"),
    "weight in words": (criterion("scale: boolean, weight: high"), "weight is 'high': give a number"),
    "weight is true": (criterion("scale: boolean, weight: true"), "weight is True: give a number"),
    "better than what": (criterion("scale: boolean, better: bigger"), "better is 'bigger': give high or low"),
    "reasoning is a number": (SHOWS + ONE + "reasoning: 3", "reasoning is a number"),
    "reasoning of none": (SHOWS + ONE + "reasoning: {max_chars: 0}", "max_chars is 0: give a whole number"),
    "reasoning too long": (SHOWS + ONE + "reasoning: {max_chars: 99999}", "max_chars is 99999: give at most"),
    "reasoning's key": (SHOWS + ONE + "reasoning: {length: 5}", "reasoning has the unknown key 'length'"),
    "reference unused": (SHOWS + ONE + "reference: label", "never show {{ reference }}"),
    "reference is a list": (SHOWS + ONE + "reference: [a]", "reference is no name"),
    "reward is a word": (SHOWS + ONE + "reward: mean", "reward is a text"),
    "unknown combination": (SHOWS + ONE + "reward: {combine: median}", "combine is 'median'"),
    "weights that do nothing": (
        criterion("scale: boolean, weight: 2") + "\nreward: {combine: minimum}", "combine minimum knows no weights",
    ),
    "reward range": (SHOWS + ONE + "reward: {range: [1, 0]}", "reward: range goes from 1 to 0"),
    "limits": (SHOWS + ONE + "limits: 300", "limits is a number"),
    "unknown limit": (SHOWS + ONE + "limits: {responses: 3}", "limits has the unknown key 'responses'"),
    "limit of none": (SHOWS + ONE + "limits: {response: 0}", "limits: response is 0"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(text, words):
    with pytest.raises(ConfigError) as error:
        read_rubric(text, "r.yaml")
    said = str(error.value)
    assert said.startswith("rubric r.yaml: ") and words in said and said.endswith(".") and "\n" not in said


def test_files(tmp_path):
    (tmp_path / "rubric.yaml").write_text(SHOWS + ONE)
    with pytest.raises(ConfigError, match=r"rubric .*rubic\.yaml does not exist: did you mean .*rubric\.yaml"):
        load_rubric(tmp_path / "rubic.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"instructions: \xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rubric(tmp_path / "latin.yaml")
    assert load_rubric(tmp_path / "rubric.yaml").origin == str(tmp_path / "rubric.yaml")


def test_schema_and_reward():
    rubric = read_rubric(FULL)
    schema = rubric.schema()
    assert list(schema["properties"]) == schema["required"] == ["reasoning", "true_", "grade", "share", "kind"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["grade"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert schema["properties"]["kind"] == {"type": "string", "enum": ["bad", "soso", "good"]}
    values = read_verdict(rubric, "pointwise", json.dumps(GOOD))
    goodness = {c.name: c.goodness(values[c.name]) for c in rubric.criteria}
    assert goodness == {"true_": 1.0, "grade": 0.75, "share": 1.0, "kind": 0.25}
    assert rubric.reward(goodness) == pytest.approx(-2 + 4 * (2 * 1 + 0.75 + 1 + 4 * 0.25) / 8)
    assert rubric.schema("pairwise")["properties"]["grade"]["enum"] == ["A", "B", "tie"]


@pytest.mark.parametrize(("combine", "expected"), [("mean", 0.625), ("product", 0.375), ("minimum", 0.5)])
def test_combinations(combine, expected):
    text = (
        SHOWS
        + f"""
criteria:
  - {{name: a, description: d, scale: {{integer: [0, 4]}}}}
  - {{name: b, description: d, scale: {{integer: [0, 4]}}, better: low}}
reward: {{combine: {combine}}}"""
    )
    rubric = read_rubric(text)
    goodness = {c.name: c.goodness({"a": 3, "b": 2}[c.name]) for c in rubric.criteria}
    assert rubric.reward(goodness) == pytest.approx(expected)


VALUES = st.none() | st.booleans() | st.integers(-2, 12) | st.floats(-2, 2) | st.text(max_size=5)


@given(
    st.dictionaries(st.sampled_from([*GOOD, "other"]), VALUES | st.sampled_from(["soso", "good"]), max_size=3),
    st.sets(st.sampled_from([*GOOD]), max_size=1),
)
def test_the_reader_takes_what_the_schema_takes(changed, left_out):
    """Against an independent validator; it takes 3.0 for an integer, which we do not."""
    import jsonschema

    rubric = read_rubric(FULL)
    found = {name: value for name, value in {**GOOD, **changed}.items() if name not in left_out}
    text = json.dumps(found)
    valid = jsonschema.Draft202012Validator(rubric.schema()).is_valid(json.loads(text))
    try:
        read_verdict(rubric, "pointwise", text)
        read = True
    except NotAVerdict:
        read = False
    whole = isinstance(found.get("grade"), float)
    odd = re.search(r'["\\\x00-\x1f\x7f]', str(found.get("reasoning")))  # what decoding does not write
    assert read == valid or (whole and not read) or (odd and read)


def test_the_reader_takes_good_ones():
    rubric = read_rubric(FULL)
    assert read_verdict(rubric, "pointwise", " " + json.dumps(GOOD, indent=2) + "\n") == GOOD
    turned = dict(reversed(GOOD.items()))
    assert list(read_verdict(rubric, "pointwise", json.dumps(turned))) == list(GOOD)
    pair = {**GOOD, "true_": "A", "grade": "B", "share": "tie", "kind": "tie"}
    assert read_verdict(rubric, "pairwise", json.dumps(pair)) == pair
    with pytest.raises(NotAVerdict, match="kind is"):
        read_verdict(rubric, "pairwise", json.dumps({**pair, "kind": "C"}))
    for wrong in ({"grade": True}, {"share": False}, {"true_": 1}, {"grade": 4.0}, {"grade": "4"}):
        with pytest.raises(NotAVerdict, match=f"{next(iter(wrong))} is"):
            read_verdict(rubric, "pointwise", json.dumps({**GOOD, **wrong}))
    with pytest.raises(NotAVerdict, match="reasoning"):
        read_verdict(rubric, "pointwise", json.dumps({**GOOD, "reasoning": "x" * 251}))


def test_the_prompt():
    rubric = read_rubric(FULL)
    columns = {"kind": "note", "facts": ["one", "two"], "solution": "42"}
    shown = write_prompt(rubric, Case("short", "0123456789" * 3, None, columns))
    assert "A note." in shown.text and "Another text." not in shown.text
    assert re.search(r"- <data \w{8}>one</data \w{8}>\n- <data \w{8}>two<", shown.text)
    assert re.search(
        r"against <data \w{8}>42</data \w{8}>: <data \w{8}>\n0123456789\n\[10 characters are left", shown.text
    )
    assert shown.cut == 10
    assert '- "reasoning": why; text on one line of at most 250 characters' in shown.text
    assert '- "share": Share; a number from -1 to 0.5, -1 is best' in shown.text
    assert '- "kind": Kind; one of "bad", "soso", "good"' in shown.text
    pair = write_pair_prompt(rubric, Case("p", "first", None, columns), Case("p", "second", None, columns)).text
    assert re.search(r"Response A:\n<data \w+>first</data \w+>\nResponse B:\n<data \w+>second</data \w+>", pair)
    assert '- "share": Share; which response has less of this: "A", "B" or "tie"' in pair


def test_what_a_row_does_not_have():
    rubric = read_rubric(FULL, "r.yaml")
    with pytest.raises(RewardError, match=r"rubric r.yaml: its instructions cannot be rendered, prompt p7: .*facts"):
        write_prompt(rubric, Case("p", "r", None, {"kind": "note", "solution": "1"}, "p7"))
    with pytest.raises(RewardError, match="reference"):
        write_prompt(rubric, Case("p", "r", "label", {"kind": "note", "facts": []}))
    short = read_rubric("instructions: '{{ response | upper }}'\n" + ONE)
    assert ">HALLO<" in write_prompt(short, Case("p", "hallo")).text
    with pytest.raises(RewardError, match="in pairwise mode"):
        write_pair_prompt(short, Case("p", "a"), Case("p", "b"))
    with pytest.raises(RewardError, match="an expression failed on the row"):
        write_prompt(read_rubric("instructions: '{{ response }} {{ 1 // label }}'\n" + ONE), Case("p", "r", 0))


def test_the_sandbox():
    rubric = read_rubric('instructions: "{{ response.__class__.__mro__ }}"\n' + ONE)
    with pytest.raises(RewardError, match="cannot be rendered"):
        write_prompt(rubric, Case("p", "r"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_rubrics(path):
    rubric = load_rubric(path)
    write_prompt(rubric, Case("p", "r", "label", {"source": "note"}))
    write_pair_prompt(rubric, Case("p", "r", "label", {"source": "note"}), Case("p", "s", "label", {"source": "note"}))
    assert len(SHIPPED) >= 3


@pytest.mark.parametrize("most", [1, 99, 100, 101, 129, 300, 1000])
def test_the_schema_compiles_for_decoding(most):
    """xgrammar fails on one repetition above 128; its grammar takes what is allowed and no more."""
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string as accepts

    schema = json.dumps({
        "type": "object", "properties": {"r": Reasoning("d", most).schema()}, "required": ["r"],
        "additionalProperties": False,
    })  # fmt: skip
    vocabulary = [chr(code) for code in range(32, 127)] + ["</s>"]
    tokens = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[len(vocabulary) - 1])
    xgrammar.GrammarCompiler(tokens).compile_json_schema(schema, any_whitespace=False)
    grammar = xgrammar.Grammar.from_json_schema(schema, any_whitespace=False)
    assert accepts(grammar, json.dumps({"r": "ü" * most}, ensure_ascii=False))
    assert accepts(grammar, '{"r": ""}')
    assert not accepts(grammar, json.dumps({"r": "a" * (most + 1)}))
    assert not accepts(grammar, '{"r": "\n"}') and not accepts(grammar, r'{"r": "\n"}')


def test_a_whole_schema_for_decoding():
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string as accepts

    grammar = xgrammar.Grammar.from_json_schema(json.dumps(read_rubric(FULL).schema()), any_whitespace=False)
    assert accepts(grammar, json.dumps(GOOD))
    for wrong in ({"grade": 6}, {"grade": 0}, {"share": 0.6}, {"true_": 1}, {"kind": "great"}, {"more": 1}):
        assert not accepts(grammar, json.dumps({**GOOD, **wrong})), wrong
