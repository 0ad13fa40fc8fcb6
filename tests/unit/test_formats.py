import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import DataError
from shoal.rows.formats import (
    FORMATS,
    REMEDIES,
    Completion,
    Conversation,
    Message,
    Preference,
    Rejected,
    Text,
    check_columns,
    detect,
    fingerprint,
    parse,
)

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
ASK, SAY = Message("user", "hi"), Message("assistant", "hello")
ROWS = {
    "messages": {"messages": [USER, ANSWER], "id": 3},
    "instruction": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "prompt-completion": {"prompt": "1 + 2 =", "completion": " 3"},
    "text": {"text": "Once upon a time"},
    "preference": {"prompt": "hi", "chosen": "hello", "rejected": "go away"},
}
SAMPLES = {
    "messages": Conversation((ASK, SAY)),
    "instruction": Completion("Add.\n\n1 2", "3", separator="\n\n"),
    "prompt-completion": Completion("1 + 2 =", " 3"),
    "text": Text("Once upon a time"),
    "preference": Preference((ASK,), (SAY,), (Message("assistant", "go away"),)),
}
WEATHER = {"name": "weather", "description": "Looks outside", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": None}}}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_told_and_read(name):
    assert detect([ROWS[name]]) == name
    assert parse(ROWS[name], name) == SAMPLES[name]


def test_the_format_of_most_rows_wins_over_rejected_and_odd_ones():
    assert detect([Rejected("malformed", ""), ROWS["text"], ROWS["instruction"], ROWS["instruction"]]) == "instruction"


def test_columns_that_are_null_do_not_vote_but_tell_the_format_when_all_are():
    rows = [{"text": None, "prompt": "a", "completion": "b"}, {"text": "x", "prompt": None, "completion": None}]
    assert detect([rows[0], rows[0], rows[1]]) == "prompt-completion"
    assert detect([{"text": None}]) == "text"


def test_no_rows_and_unknown_fields_are_told_with_what_to_do():
    with pytest.raises(DataError, match="no readable row"):
        detect([Rejected("malformed", "")])
    with pytest.raises(DataError, match=r"data\.columns: \{prompt: question, completion: answer\}"):
        detect([{"question": "a", "answer": "b"}])
    with pytest.raises(DataError, match=r"fields a, b.*instruction: instruction \+ output"):
        detect([{"b": 1, "a": 2}])


def test_a_row_of_another_format_is_named_as_such():
    rejected = parse(ROWS["instruction"], "text")
    assert isinstance(rejected, Rejected) and rejected.cause == "other-format"
    assert "reads as instruction, not as text" in rejected.detail
    assert parse({"txt": "a"}, "text") == Rejected("missing-field", "`text` is missing; there is txt")


# messages


def test_roles_of_openai_and_of_sharegpt_become_ours():
    row = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "hello", "weight": 0},
        ]
    }
    expected = Conversation((Message("system", "Be brief."), ASK, Message("assistant", "hello", learn=False)))
    assert detect([row]) == "messages"
    assert parse(row, "messages") == expected
    openai = [{"role": "developer", "content": "Be brief."}, USER, {**ANSWER, "weight": 0.0}]
    assert parse({"messages": openai}, "messages") == expected
    beside = {"system": "Be brief.", "conversations": row["conversations"][1:]}
    assert parse(beside, "messages") == expected


def test_content_may_be_a_list_of_texts_and_nothing_else():
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert parse({"messages": [USER, {"role": "assistant", "content": parts}]}, "messages") == Conversation((ASK, SAY))
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    rejected = parse({"messages": [image, ANSWER]}, "messages")
    assert rejected == Rejected(
        "wrong-type", "`messages[0].content[0]` is of type 'image_url', and only text can be read"
    )


OPENAI_TOOLS = {
    "messages": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln", "days": null}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "rain"},
        ANSWER,
    ],
    "tools": [{"type": "function", "function": WEATHER}],
}  # fmt: skip
SHAREGPT_TOOLS = {
    "conversations": [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Köln", "days": null}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "hello"},
    ],
    "tools": json.dumps([WEATHER]),
}


def test_tools_of_openai_and_of_sharegpt_become_one_form():
    tools = ({"type": "function", "function": WEATHER},)
    calling = Message("assistant", "", tool_calls=({"id": "c1", **CALL},))
    answered = Message("tool", "rain", name="weather", tool_call_id="c1")
    assert parse(OPENAI_TOOLS, "messages") == Conversation((ASK, calling, answered, SAY), tools)
    calling = Message("assistant", "", tool_calls=(CALL,))
    assert parse(SHAREGPT_TOOLS, "messages") == Conversation((ASK, calling, Message("tool", "rain"), SAY), tools)


def test_older_function_calls_and_reasoning_are_read():
    call = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    thought = {**ANSWER, "reasoning_content": "greet back"}
    rows = {
        "messages": [USER, call, {"role": "function", "name": "weather", "content": ""}, thought],
        "functions": [WEATHER],
    }
    sample = parse(rows, "messages")
    assert isinstance(sample, Conversation)
    assert sample.messages[1].tool_calls == ({"type": "function", "function": {"name": "weather", "arguments": {}}},)
    assert sample.messages[3].as_dict()["reasoning_content"] == "greet back"
    assert sample.tools == ({"type": "function", "function": WEATHER},)


def test_numbers_in_arguments_are_kept_to_the_last_digit():
    number = 123456789012345678901234567890
    call = {"from": "function_call", "value": f'{{"name": "f", "arguments": {{"n": {number}}}}}'}
    sample = parse({"conversations": [{"from": "human", "value": "a"}, call]}, "messages")
    assert isinstance(sample, Conversation)
    assert sample.messages[1].tool_calls[0]["function"]["arguments"]["n"] == number


# the other formats


def test_an_absent_or_null_input_is_no_input():
    for row in ({"instruction": "a", "output": "b"}, {"instruction": "a", "input": None, "output": "b"}):
        assert parse(row, "instruction") == Completion("a", "b", separator="\n\n")


def test_instructions_with_a_system_prompt_or_a_history_are_conversations():
    row = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    said = (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert parse(row, "instruction") == Conversation(tuple(Message(*turn) for turn in said))
    assert parse({**row, "history": [], "system": ""}, "instruction") == Completion("c", "d", "\n\n")


def test_prompt_and_completion_as_messages_are_a_conversation_with_a_given_beginning():
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert detect([row]) == "prompt-completion"
    assert parse(row, "prompt-completion") == Conversation((ASK, SAY, ASK, SAY), given=3)
    assert parse({"prompt": "hi", "completion": [ANSWER]}, "prompt-completion") == Conversation((ASK, SAY), given=1)


NO = {"role": "assistant", "content": "no"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [NO]},
        {"chosen": [USER, ANSWER], "rejected": [USER, NO]},
        {"prompt": "hi", "chosen": [USER, ANSWER], "rejected": [USER, NO]},
        {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "hello"},
         "rejected": {"from": "gpt", "value": "no"}},
        {"instruction": "hi", "input": "", "chosen": "hello", "rejected": "no"},
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
    ],
)  # fmt: skip
def test_every_way_to_write_a_preference_is_one(row):
    assert detect([row]) == "preference"
    assert parse(row, "preference") == Preference((ASK,), (SAY,), (Message("assistant", "no"),))


# columns


def test_columns_rename_and_lead_into_objects_and_lists():
    row = {"q": {"text": "1 + 2 ="}, "answers": {"text": [" 3", " three"]}, "a.b": "x"}
    columns = {"prompt": "q.text", "completion": "answers.text.0"}
    assert detect([row], columns=columns) == "prompt-completion"
    assert parse(row, "prompt-completion", columns) == Completion("1 + 2 =", " 3")
    assert parse(row, "text", {"text": "a.b"}) == Text("x")


def test_a_mapped_column_that_is_missing_is_named_as_the_file_has_it():
    for path in ("answer", "q.txt", "q.text.0"):
        rejected = parse({"q": {"text": "a"}, "completion": "b"}, "prompt-completion", {"prompt": path})
        assert isinstance(rejected, Rejected) and rejected.cause == "missing-field"
        assert rejected.detail.startswith(f"`{path}` (data.columns.prompt) is missing")


def test_a_mapping_the_wrong_way_round_is_refused():
    with pytest.raises(DataError, match=r"data\.columns\.question: is no field.*write `prompt: question`"):
        check_columns({"question": "prompt"})
    check_columns({"prompt": "question"})


# what is wrong


def spoken(*turns) -> dict:
    return {"messages": [USER, *turns]}


def called(**call) -> dict:
    return spoken({"role": "assistant", "content": None, "tool_calls": [call]})


@pytest.mark.parametrize(
    ("format", "row", "cause"),
    [
        ("text", {"txt": "a"}, "missing-field"),
        ("text", {"text": None}, "missing-field"),
        ("text", {"text": 3}, "wrong-type"),
        ("text", {"text": b"bytes"}, "wrong-type"),
        ("text", {"text": " \n"}, "empty-text"),
        ("text", {"text": "\ud800"}, "invalid-utf8"),
        ("prompt-completion", {"prompt": "a"}, "missing-field"),
        ("prompt-completion", {"prompt": "a", "completion": " "}, "empty-answer"),
        ("prompt-completion", {"prompt": [USER], "completion": [USER]}, "empty-answer"),
        ("prompt-completion", {"prompt": [ANSWER], "completion": [ANSWER]}, "role-order"),
        ("prompt-completion", {"prompt": [USER], "completion": 4}, "wrong-type"),
        ("instruction", {"instruction": "a", "output": ""}, "empty-answer"),
        ("instruction", {"instruction": "", "input": "", "output": "x"}, "empty-prompt"),
        ("instruction", {"instruction": "a", "input": 4, "output": "x"}, "wrong-type"),
        ("instruction", {"instruction": "a", "output": "x", "history": "b"}, "wrong-type"),
        ("instruction", {"instruction": "a", "output": "x", "history": [["b"]]}, "wrong-type"),
        ("instruction", {"instruction": "a", "output": "x", "history": [["b", None]]}, "wrong-type"),
        ("instruction", {"instruction": "a", "output": "x", "history": [["b", ""]]}, "empty-answer"),
        ("messages", {"messages": None}, "missing-field"),
        ("messages", {"messages": "hi"}, "wrong-type"),
        ("messages", {"messages": []}, "wrong-type"),
        ("messages", {"messages": ["hi"]}, "wrong-type"),
        ("messages", {"messages": [None]}, "wrong-type"),
        ("messages", {"messages": [{"role": None, "content": None}]}, "missing-field"),
        ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "wrong-type"),
        ("messages", spoken({"role": "assistant"}), "missing-field"),
        ("messages", spoken({"role": "assistant", "content": None}), "missing-field"),
        ("messages", spoken({"role": "assistant", "content": [None]}), "wrong-type"),
        ("messages", spoken({"role": "assistant", "content": [{"type": "text"}]}), "missing-field"),
        ("messages", spoken({"role": "assistant", "content": {"text": "x"}}), "wrong-type"),
        ("messages", spoken({"role": "bot", "content": "x"}), "unknown-role"),
        ("messages", spoken({"role": "assistant", "content": ""}), "empty-answer"),
        ("messages", spoken({**ANSWER, "weight": 0.5}), "wrong-type"),
        ("messages", spoken({**ANSWER, "weight": True}), "wrong-type"),
        ("messages", spoken({**ANSWER, "name": 3}), "wrong-type"),
        ("messages", spoken({**ANSWER, "tool_calls": {"name": "f"}}), "wrong-type"),
        ("messages", spoken({**USER, "tool_calls": [CALL]}), "wrong-type"),
        ("messages", called(function=None), "missing-field"),
        ("messages", called(function={"name": "f", "arguments": "{"}), "wrong-type"),
        ("messages", called(function={"name": "f", "arguments": "[1]"}), "wrong-type"),
        ("messages", called(function={"name": "f", "arguments": {"a": b"x"}}), "wrong-type"),
        ("messages", called(function={"name": "f", "arguments": {"a": float("nan")}}), "wrong-type"),
        ("messages", called(function={"name": "f", "arguments": json.loads("[" * 99 + "]" * 99)}), "wrong-type"),
        ("messages", called(function={"name": "f", "arguments": {"a": json.loads("[" * 99 + "]" * 99)}}), "wrong-type"),
        ("messages", called(function={"name": "f", "arguments": {"a": "\udc00"}}), "invalid-utf8"),
        ("messages", {**spoken(ANSWER), "tools": "not json"}, "wrong-type"),
        ("messages", {**spoken(ANSWER), "tools": {"name": "f"}}, "wrong-type"),
        ("messages", {**spoken(ANSWER), "tools": [None]}, "wrong-type"),
        ("messages", spoken({"role": "tool", "content": "x"}, ANSWER), "role-order"),
        ("messages", {"messages": [USER]}, "empty-answer"),
        ("messages", {"messages": [ANSWER]}, "role-order"),
        ("messages", {"messages": [{"role": "system", "content": "x"}, ANSWER]}, "role-order"),
        ("messages", {"conversations": [{"from": "human", "value": None}]}, "missing-field"),
        ("messages", {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f()"}]},
         "wrong-type"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "same-answers"),
        ("preference", {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "same-answers"),
        ("preference", {"chosen": [USER, ANSWER], "rejected": [USER]}, "empty-answer"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": ""}, "empty-answer"),
        ("preference", {"prompt": " ", "chosen": "b", "rejected": "c"}, "empty-prompt"),
        ("preference", {"chosen": "b", "rejected": "c"}, "missing-field"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": None}, "missing-field"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": [3]}, "wrong-type"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_has_a_short_stable_cause(format, row, cause):
    rejected = parse(row, format)
    assert isinstance(rejected, Rejected)
    assert rejected.cause == cause, rejected
    assert cause in REMEDIES
    assert rejected.detail


def test_the_place_of_a_mistake_is_said():
    row = called(function={"name": "f", "arguments": {"list": [{"a": b"x"}]}})
    rejected = parse(row, "messages")
    assert isinstance(rejected, Rejected)
    assert rejected.detail.startswith("`messages[1].tool_calls[0].arguments.list[0].a` is bytes")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "from",
                    "value",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "type",
                    "text",
                    "weight",
                ]
            ),
            inner | st.sampled_from(["user", "assistant", "human", "gpt", "tool", "function_call", "{}"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELD = st.sampled_from(
    ["messages", "conversations", "tools", "system", "instruction", "input", "output", "history", "prompt",
     "completion", "text", "chosen", "rejected"]
)  # fmt: skip


@settings(max_examples=400)
@given(st.dictionaries(FIELD, JSON, max_size=4), st.sampled_from(FORMATS))
def test_whatever_a_row_holds_it_is_a_sample_or_rejected_with_a_known_cause(row, format):
    found = parse(row, format)
    if isinstance(found, Rejected):
        assert found.cause in REMEDIES and found.detail
    else:
        fingerprint(found)


def test_the_fingerprint_is_of_the_content_alone_and_pinned():
    assert fingerprint(Completion("ab", "c")) == fingerprint(Completion("ab", "c", separator="\n"))
    assert fingerprint(Completion("ab", "c")) != fingerprint(Completion("a", "bc"))
    assert fingerprint(Text("Once")) == 8947799950826101766
    assert fingerprint(Conversation((ASK, SAY))) == 2769954820885213064


def test_the_fingerprint_sees_tools_calls_and_thoughts_but_no_weights():
    plain = Conversation((ASK, SAY))
    weighted = Conversation((ASK, Message("assistant", "hello", learn=False)))
    assert fingerprint(plain) == fingerprint(weighted)
    others = [
        Conversation((ASK, SAY), tools=({"name": "f"},)),
        Conversation((ASK, Message("assistant", "hello", tool_calls=(CALL,)))),
        Conversation((ASK, Message("assistant", "hello", reasoning="hm"))),
        Preference((ASK,), (SAY,), (ASK,)),
        Preference((ASK,), (ASK,), (SAY,)),
    ]
    assert len({fingerprint(one) for one in [plain, *others]}) == 6
