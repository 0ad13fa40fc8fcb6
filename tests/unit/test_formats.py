import pytest

from shoal.data.formats import FORMATS, REMEDIES, Completion, Conversation, Rejected, Text, detect, fingerprint, parse
from shoal.errors import DataError

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
ROWS = {
    "messages": {"messages": [USER, ANSWER], "id": 3},
    "instruction": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "prompt-completion": {"prompt": "1 + 2 =", "completion": " 3"},
    "text": {"text": "Once upon a time"},
}
SAMPLES = {
    "messages": Conversation((("user", "hi"), ("assistant", "hello"))),
    "instruction": Completion("Add.\n\n1 2", "3", separator="\n\n"),
    "prompt-completion": Completion("1 + 2 =", " 3"),
    "text": Text("Once upon a time"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_told_and_read(name):
    assert detect([ROWS[name]]) == name
    assert parse(ROWS[name], name) == SAMPLES[name]


def test_the_format_of_most_rows_wins_over_rejected_and_odd_ones():
    assert detect([Rejected("malformed", ""), ROWS["text"], ROWS["instruction"], ROWS["instruction"]]) == "instruction"


def test_no_rows_and_unknown_fields_are_told_with_what_to_do():
    with pytest.raises(DataError, match="no readable row"):
        detect([Rejected("malformed", "")])
    with pytest.raises(DataError, match="rename `conversations` to `messages`"):
        detect([{"conversations": []}])
    with pytest.raises(DataError, match=r"fields a, b.*instruction: instruction \+ output"):
        detect([{"b": 1, "a": 2}])


@pytest.mark.parametrize(
    ("format", "row", "cause"),
    [
        ("text", {"txt": "a"}, "missing-field"),
        ("text", {"text": None}, "missing-field"),
        ("text", {"text": 3}, "wrong-type"),
        ("text", {"text": " \n"}, "empty-text"),
        ("text", {"text": "\ud800"}, "invalid-utf8"),
        ("prompt-completion", {"prompt": "a"}, "missing-field"),
        ("prompt-completion", {"prompt": "a", "completion": " "}, "empty-answer"),
        ("instruction", {"instruction": "a", "output": ""}, "empty-answer"),
        ("instruction", {"instruction": "", "input": "", "output": "x"}, "empty-prompt"),
        ("instruction", {"instruction": "a", "input": 4, "output": "x"}, "wrong-type"),
        ("messages", {"messages": "hi"}, "wrong-type"),
        ("messages", {"messages": []}, "wrong-type"),
        ("messages", {"messages": ["hi"]}, "wrong-type"),
        ("messages", {"messages": [USER, {"role": "assistant"}]}, "missing-field"),
        ("messages", {"messages": [USER, {"role": "bot", "content": "x"}]}, "unknown-role"),
        ("messages", {"messages": [USER, {"role": "assistant", "content": ""}]}, "empty-answer"),
        ("messages", {"messages": [USER]}, "empty-answer"),
        ("messages", {"messages": [ANSWER]}, "role-order"),
        ("messages", {"messages": [{"role": "system", "content": "x"}, ANSWER]}, "role-order"),
    ],
)
def test_what_is_wrong_with_a_row_has_a_short_stable_cause(format, row, cause):
    rejected = parse(row, format)
    assert isinstance(rejected, Rejected)
    assert rejected.cause == cause
    assert cause in REMEDIES
    assert rejected.detail


def test_an_absent_or_null_input_is_no_input():
    for row in ({"instruction": "a", "output": "b"}, {"instruction": "a", "input": None, "output": "b"}):
        assert parse(row, "instruction") == Completion("a", "b", separator="\n\n")


def test_the_fingerprint_is_of_the_content_alone_and_pinned():
    assert fingerprint(Completion("ab", "c")) == fingerprint(Completion("ab", "c", separator="\n"))
    assert fingerprint(Completion("ab", "c")) != fingerprint(Completion("a", "bc"))
    assert fingerprint(Text("Once")) == 8947799950826101766
