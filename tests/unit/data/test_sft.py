"""Rows to supervised examples: which tokens are learned."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.data.sft import SftSettings, load_sft
from openrlhf_ext.errors import ConfigError, DataError

PAIR = {"input_key": "q", "output_key": "a"}
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]


def one(tokenizer, path, **settings):
    loaded = load_sft(SftSettings(path, **settings), tokenizer)
    assert loaded.counts["examples"] == len(loaded.examples) == 1
    return loaded.examples[0]


def learned(tokenizer, example):
    """The learned parts of the text, and the whole of it."""
    parts, run = [], []
    for token, mask in [*zip(example.token_ids, example.action_mask, strict=True), (None, False)]:
        if mask:
            run.append(token)
        elif run:
            parts.append(tokenizer.decode(run))
            run = []
    return parts, tokenizer.decode(example.token_ids)


@pytest.mark.parametrize("answer", ["4", "4\n", "4<|im_end|>", "4<|im_end|>\n"])
def test_prompt_and_response_with_one_eos(tokenizer, jsonl, answer):
    path = jsonl([{"q": "2+2", "a": answer}])
    example = one(tokenizer, path, **PAIR, input_template="Q: {}\nA: ")
    assert learned(tokenizer, example) == (["4<|im_end|>"], "Q: 2+2\nA: 4<|im_end|>")


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1).filter(str.strip)


@given(question=plain, answer=plain)
def test_any_text_survives(tmp_path_factory, make_tokenizer, question, answer):
    tokenizer = make_tokenizer()
    path = tmp_path_factory.mktemp("sft") / "d.jsonl"
    path.write_text(json.dumps({"q": question, "a": answer}))
    example = one(tokenizer, str(path), **PAIR)
    assert learned(tokenizer, example) == ([answer + "<|im_end|>"], question + answer + "<|im_end|>")


def test_chat_learns_the_last_turn_and_cuts_what_follows_eos(tokenizer, jsonl):
    whole = one(tokenizer, jsonl([{"q": TURNS}]), input_key="q", apply_chat_template=True)
    parts, text = learned(tokenizer, whole)
    assert parts == ["See you.<|im_end|>"]
    assert text == tokenizer.apply_chat_template(TURNS, tokenize=False).removesuffix("\n")
    for row in ({"q": TURNS[:3], "a": "See you."}, {"q": TURNS[:3], "a": TURNS[3]}, {"q": TURNS[:3], "a": TURNS[3:]}):
        apart = one(tokenizer, jsonl([row]), **PAIR, apply_chat_template=True)
        assert (apart.token_ids, apart.action_mask) == (whole.token_ids, whole.action_mask)


def test_multiturn_learns_every_turn_and_the_template_mask_agrees(
    tokenizer, make_tokenizer, generation_template, jsonl
):
    path = jsonl([{"q": TURNS}])
    settings = {"input_key": "q", "apply_chat_template": True, "multiturn": True}
    example = one(tokenizer, path, **settings)
    parts, text = learned(tokenizer, example)
    assert parts == ["Hello.<|im_end|>", "See you.<|im_end|>"]
    assert text.endswith("See you.<|im_end|>")
    marked = make_tokenizer(chat_template=generation_template)
    assert asdict(one(marked, path, **settings)) == asdict(example)
    outside = generation_template.replace(
        "{{ m['content'] }}<|im_end|>{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}<|im_end|>"
    )
    parts, text = learned(tokenizer, one(make_tokenizer(chat_template=outside), path, **settings))
    assert parts == ["Hello.", "See you.<|im_end|>"]


def test_a_template_whose_turn_end_is_not_eos_gets_eos_appended(make_tokenizer, jsonl):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = make_tokenizer(chat_template=template)
    example = one(tokenizer, jsonl([{"q": TURNS}]), input_key="q", apply_chat_template=True, multiturn=True)
    parts, _ = learned(tokenizer, example)
    assert parts == ["Hello.[/]\n", "See you.[/]<|im_end|>"]
    assert example.token_ids.count(tokenizer.eos_token_id) == 1


# The last turn is written with an empty thought, earlier ones without (as Qwen3's template does).
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The generation prompt opens a thought that a given answer does not have.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_templates_that_rewrite_earlier_turns(make_tokenizer, jsonl):
    path = jsonl([{"q": TURNS}])
    tokenizer = make_tokenizer(chat_template=FORGETFUL)
    parts, _ = learned(tokenizer, one(tokenizer, path, input_key="q", apply_chat_template=True))
    assert parts == ["<think>\n\n</think>\n\nSee you.<|im_end|>"]
    with pytest.raises(DataError, match=r"earlier messages of row 1 of rows otherwise.*generation %\} blocks"):
        one(tokenizer, path, input_key="q", apply_chat_template=True, multiturn=True)
    tokenizer = make_tokenizer(chat_template=THINKING)
    parts, _ = learned(tokenizer, one(tokenizer, path, input_key="q", apply_chat_template=True, multiturn=True))
    assert parts == ["Hello.<|im_end|>", "See you.<|im_end|>"]


def test_a_template_that_marks_nothing_is_named(make_tokenizer, jsonl):
    template = "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
    settings = SftSettings(jsonl([{"q": TURNS}]), input_key="q", apply_chat_template=True, multiturn=True)
    with pytest.raises(DataError, match=r"blocks in the chat template of .* mark no token"):
        load_sft(settings, make_tokenizer(chat_template=template))


def test_rows_left_out_are_counted_by_reason(tokenizer, jsonl):
    rows = [
        {"q": "good", "a": "yes"},
        {"q": "good", "a": "a long answer"},
        {"q": "", "a": "yes"},
        {"q": "x", "a": " "},
        {"q": "x", "a": "<|im_end|>"},
        {"q": "x", "a": "a<|im_end|>b"},
        {"q": "a very long question", "a": "yes"},
    ]
    loaded = load_sft(SftSettings(jsonl(rows), **PAIR, max_tokens=10, overlong="truncate_right"), tokenizer)
    assert loaded.counts == {
        "rows": 7,
        "examples": 2,
        "cut_responses": 1,
        "tokens": 8 + 10,
        "learned_tokens": 4 + 6,
        "dropped_empty_prompt": 1,
        "dropped_empty_response": 2,
        "dropped_eos_inside": 1,
        "dropped_prompt_too_long": 1,
    }
    left_out = [(3, "empty_prompt"), (4, "empty_response"), (5, "empty_response"), (6, "eos_inside")]
    assert [(d.row, d.reason) for d in loaded.dropped] == [*left_out, (7, "prompt_too_long")]
    assert tokenizer.decode(loaded.examples[1].token_ids) == "gooda long"  # cut off: it does not learn to stop here
    loaded = load_sft(SftSettings(jsonl(rows), **PAIR, max_tokens=10, overlong="drop"), tokenizer)
    assert loaded.counts["dropped_overlong"] == 2
    with pytest.raises(DataError, match=r"row 2 of rows has 18 tokens, more than the 10 of --data.max_len"):
        load_sft(SftSettings(jsonl(rows), **PAIR, max_tokens=10, overlong="refuse"), tokenizer)
    with pytest.raises(DataError, match=r"none of the 1 rows .*\(1 empty_prompt\)"):
        load_sft(SftSettings(jsonl(rows[2:3]), **PAIR), tokenizer)


def test_a_long_row_loses_the_beginning_of_its_prompt_and_never_its_whole_response(tokenizer, jsonl):
    rows = [
        {"q": "a very long question", "a": "yes"},  # 4 tokens of response: 6 are left for the prompt
        {"q": "short", "a": "a very long answer"},  # half of the room is the prompt's
        {"q": "a very long question", "a": "a very long answer"},
        {"q": "good", "a": "no"},
    ]
    loaded = load_sft(SftSettings(jsonl(rows), **PAIR, max_tokens=10), tokenizer)
    assert [tokenizer.decode(each.token_ids) for each in loaded.examples] == [
        "estionyes<|im_end|>",
        "shorta ver",
        "stiona ver",
        "goodno<|im_end|>",
    ]
    assert [learned(tokenizer, each)[0] for each in loaded.examples] == [
        ["yes<|im_end|>"],
        ["a ver"],
        ["a ver"],
        ["no<|im_end|>"],
    ]
    assert (loaded.counts["cut_prompts"], loaded.counts["cut_responses"], loaded.counts["examples"]) == (2, 2, 4)


@pytest.mark.parametrize(
    ("limit", "kept"), [(24, ["See you.<|im_end|>"]), (36, ["o.<|im_end|>", "See you.<|im_end|>"])]
)
def test_a_long_conversation_keeps_its_last_answer(make_tokenizer, jsonl, limit, kept):
    tokenizer = make_tokenizer(chat_template=THINKING)
    settings = {"input_key": "q", "apply_chat_template": True, "multiturn": True}
    example = one(tokenizer, jsonl([{"q": TURNS}]), **settings, max_tokens=limit)
    assert len(example.token_ids) == limit
    assert learned(tokenizer, example)[0] == kept


def test_plain_text_without_template_or_eos(tokenizer, jsonl):
    example = one(tokenizer, jsonl([{"q": "once upon"}]), input_key="q", input_template="Q: {}", pretrain=True)
    assert learned(tokenizer, example) == (["nce upon"], "once upon")


@pytest.mark.parametrize(
    ("settings", "row", "error", "said"),
    [
        ({"input_key": "q"}, {"q": "x"}, ConfigError, "--data.output_key is not given"),
        ({**PAIR, "multiturn": True}, {"q": "x", "a": "y"}, ConfigError, "multiturn needs"),
        ({**PAIR, "input_template": "x"}, {"q": "x", "a": "y"}, ConfigError, "input_template"),
        (PAIR, {"q": "x", "b": "y"}, DataError, "no column 'a' .*--data.output_key.*: q, b"),
        (PAIR, {"q": "x", "a": 5}, DataError, "column 'a' is int, not text"),
        ({"input_key": "q", "apply_chat_template": True}, {"q": TURNS[:3]}, DataError, "ends with the role 'user'"),
    ],
)
def test_settings_and_rows_that_cannot_be_trained_on(tokenizer, jsonl, settings, row, error, said):
    with pytest.raises(error, match=said):
        load_sft(SftSettings(jsonl([row]), **settings), tokenizer)


def test_examples_become_a_token_batch(tokenizer, jsonl):
    rows = [{"q": "a", "a": "bc"}, {"q": "a", "a": "bc"}, {"q": "abc", "a": "d"}]
    examples = load_sft(SftSettings(jsonl(rows), **PAIR), tokenizer).examples
    batch = token_batch(examples, tokenizer.pad_token_id)
    assert batch.action_BA.tolist() == [[True, True, True, False]] * 2 + [[False, False, True, True]]
    assert batch.lengths_B.tolist() == [4, 4, 5]
    assert batch.tokens_BT[0, 4] == tokenizer.pad_token_id
    assert len(set(batch.keys)) == 3
    assert not batch.sampler_logp_BA.any()
