"""Which tokens are learnt: the real template against golden tokens, and other templates' habits."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from shoal.errors import ModelError
from shoal.rows.formats import Completion, Conversation, Message, Rejected, Text
from shoal.rows.template import Encoder, encode

GOLDEN = Path(__file__).parent.parent / "golden" / "smollm2_tokens.json"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = (  # as Llama 3: content trimmed, headers in marks of their own, a date
    "Today: {{ date_string if date_string is defined else strftime_now('%d %b %Y') }}\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
THINKING = (  # as Qwen 3: an empty thought before the last answer, none before earlier ones
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BRACKETS = (  # as Mistral: no header for the assistant, a space before the answer, system refused
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role here') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
UNMARKED = (  # nothing ends a turn
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


def talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns))


ONE = talk(("user", "What is 1 + 1?"), ("assistant", "It is two."))
TWO = Conversation((*ONE.messages, Message("user", "Sure?"), Message("assistant", "Yes.")))


@pytest.fixture(scope="module")
def load(tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    real = tokenizer.chat_template

    def load(template: str | None = real):
        tokenizer.chat_template = template
        return tokenizer

    return load


def learnt(sample, tokenizer, sequence_length=256, **options) -> list[str]:
    """The runs of learnt tokens, as text."""
    encoded = encode(sample, tokenizer, sequence_length, "reject", **options)
    assert not isinstance(encoded, Rejected), encoded
    (one,) = encoded
    runs, inside = [], False
    for token, mask in zip(one.input_ids.tolist(), one.loss_mask.tolist(), strict=True):
        if mask:
            runs = runs if inside else [*runs, []]
            runs[-1].append(token)
        inside = mask
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["name"])
def test_the_real_template_gives_the_golden_tokens(load, case):
    tokenizer = load()
    sample = talk(*((message["role"], message["content"]) for message in case["messages"]))
    (one,) = encode(sample, tokenizer, 256, "reject")
    marks = ["*" if mask else " " for mask in one.loss_mask]
    assert [mark + tokenizer.decode([token]) for mark, token in zip(marks, one.input_ids, strict=True)] == case[
        "tokens"
    ]
    messages = [dict(message) for message in case["messages"]]
    assert one.input_ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)


@pytest.mark.parametrize(
    ("template", "runs"),
    [
        (CHATML, ["It is two.<|im_end|>", "Yes.<|im_end|>"]),
        (TRIMMING, ["It is two.<|im_end|>", "Yes.<|im_end|>"]),
        (NO_PROMPT, ["It is two.<|im_end|>", "Yes.<|im_end|>"]),
        (BRACKETS, [" It is two.<|im_end|>", " Yes.<|im_end|>"]),
        (UNMARKED, ["It is two.\n\n", "Yes.\n\n"]),
    ],
    ids=["chatml", "trimming", "no-generation-prompt", "brackets", "unmarked"],
)
def test_the_answers_and_their_ends_are_learnt_and_nothing_else(load, template, runs):
    assert learnt(TWO, load(template)) == runs


def test_an_empty_thought_that_the_template_puts_in_is_not_learnt(load):
    assert learnt(ONE, load(THINKING)) == ["It is two.<|im_end|>"]
    thought = talk(("user", "think"), ("assistant", "think"))
    assert learnt(thought, load(THINKING)) == ["think<|im_end|>"]


def test_a_thought_that_the_data_hold_is_learnt(load):
    sample = talk(("user", "hi"), ("assistant", "<think>\nhm\n</think>\n\nhello"))
    assert learnt(sample, load(CHATML)) == ["<think>\nhm\n</think>\n\nhello<|im_end|>"]


def test_each_answer_is_learnt_as_it_stands_in_the_whole_where_a_template_rewrites_earlier_ones(load):
    tokenizer = load(THINKING)
    assert learnt(TWO, tokenizer) == ["It is two.<|im_end|>", "Yes.<|im_end|>"]
    (one,) = encode(TWO, tokenizer, 256, "reject")
    assert tokenizer.decode(one.input_ids).count("<think>") == 1


def test_an_answer_whose_beginning_a_template_hides_is_refused(load):
    closing = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    rejected = encode(ONE, load(closing), 256, "reject")
    assert isinstance(rejected, Rejected)
    assert rejected.cause == "unstable-template"
    assert "messages[1]: the chat template writes its generation prompt" in rejected.detail


def test_an_answer_without_an_end_of_its_own_in_the_middle_is_refused(load):
    ending = (  # only the last answer is ended
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert learnt(ONE, load(ending)) == ["It is two.<|im_end|>"]
    rejected = encode(TWO, load(ending), 256, "reject")
    assert isinstance(rejected, Rejected) and rejected.cause == "unstable-template"


# train_on and weights


@pytest.mark.parametrize("template", [CHATML, THINKING, BRACKETS], ids=["chatml", "thinking", "brackets"])
def test_train_on_says_which_answers_are_learnt(load, template):
    tokenizer = load(template)
    answers = [run.strip() for run in learnt(TWO, tokenizer)]
    assert [run.strip() for run in learnt(TWO, tokenizer, train_on="last")] == answers[-1:]
    (whole,) = encode(TWO, tokenizer, 256, "reject", "all")
    assert whole.loss_mask.all()
    (alone,) = encode(TWO, tokenizer, 256, "reject", "last")
    assert whole.input_ids.tolist() == alone.input_ids.tolist()


def test_what_has_weight_0_is_never_learnt(load):
    tokenizer = load(CHATML)
    messages = (*ONE.messages[:1], Message("assistant", "It is two.", learn=False), *TWO.messages[2:])
    sample = Conversation(messages)
    assert learnt(sample, tokenizer) == ["Yes.<|im_end|>"]
    assert learnt(sample, tokenizer, train_on="all") == [
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n",
    ]
    for train_on, last in (("assistant", messages[:2]), ("last", messages[:2])):
        rejected = encode(Conversation(last), tokenizer, 256, "reject", train_on)
        assert rejected == Rejected("no-target", "every answer to learn has weight 0")


def test_a_given_beginning_is_learnt_by_train_on_all_alone(load):
    tokenizer = load(CHATML)
    sample = Conversation(TWO.messages, given=3)
    assert learnt(sample, tokenizer) == ["Yes.<|im_end|>"]
    assert encode(sample, tokenizer, 256, "reject", "all")[0].loss_mask.all()


def test_train_on_all_learns_the_prompt_of_a_completion_too(load):
    assert learnt(Completion("1 + 1 =", " 2"), load(None), train_on="all") == ["1 + 1 = 2<|im_end|>"]
    assert learnt(ONE, load(CHATML), train_on="all")[0].startswith("<|im_start|>user\nWhat")


# templates of one's own


def test_a_template_in_place_of_the_models_own(load):
    mine = CHATML.replace("{{ m.role }}", "{{ m.role | upper }}").replace("assistant", "ASSISTANT")
    tokenizer = load(None)
    assert learnt(ONE, tokenizer, chat_template=mine) == ["It is two.<|im_end|>"]
    (one,) = encode(ONE, tokenizer, 256, "reject", chat_template=mine)
    assert "<|im_start|>USER\nWhat is 1 + 1?" in tokenizer.decode(one.input_ids)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }}", "is not valid Jinja: .* in line 1"),
        ("a\n{{ messages | nofilter }}", "is not valid Jinja: .*nofilter.* in line 2"),
        ("{% for m in messages %}{{ m.content + 3 }}{% endfor %}", "cannot write a question and its answer"),
        ("{{ messages[9].content.x }}", "cannot write a question and its answer"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not write what the assistant says"),
        ("", "does not write what the assistant says"),
    ],
)
def test_a_broken_template_is_one_answer_and_not_one_per_row(load, template, words):
    with pytest.raises(ModelError, match=rf"data\.chat_template: the chat template {words}"):
        encode(ONE, load(), 256, "reject", chat_template=template)
    if template:
        with pytest.raises(ModelError, match=rf"model\.base: the chat template {words}.*data\.chat_template"):
            encode(ONE, load(template), 256, "reject")


def test_generation_blocks_are_the_answers(load):
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = load(marked)
    messages = [message.as_dict() for message in TWO.messages]
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    (ours,) = encode(TWO, tokenizer, 256, "reject")
    (derived,) = encode(TWO, load(CHATML), 256, "reject")
    assert ours.input_ids.tolist() == theirs["input_ids"] == derived.input_ids.tolist()
    assert ours.loss_mask.astype(int).tolist() == theirs["assistant_masks"] == derived.loss_mask.astype(int).tolist()
    assert learnt(TWO, load(marked), train_on="last") == ["Yes.<|im_end|>"]
    once = marked.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' and loop.last %}")
    assert learnt(TWO, load(once)) == ["Yes.<|im_end|>"]
    rejected = encode(TWO, load(once), 256, "reject", "last")
    assert isinstance(rejected, Rejected) and "marks 1 pieces for 2 answers" in rejected.detail


# tools and thoughts that a template may not know

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "the ü"}}}
CALLING = Conversation(
    (
        Message("user", "hi"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "x"),
        Message("assistant", "y"),
    )
)


def test_arguments_are_given_as_text_to_a_template_that_takes_no_objects(load):
    takes_text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert learnt(CALLING, load(takes_text)) == ['look{"at": "the ü"}<|im_end|>', "y<|im_end|>"]


def test_what_a_template_leaves_out_is_not_trained_on_in_silence(load):
    tokenizer = load(CHATML)
    thought = Message("assistant", "Two.", reasoning="one and one")
    for sample, words in (
        (CALLING, "messages[1]: the chat template does not write tool calls"),
        (Conversation(ONE.messages, tools=(CALL,)), "the chat template does not write the row's tools (look)"),
        (Conversation((ONE.messages[0], thought)), "messages[1]: the chat template leaves out what was thought"),
    ):
        for train_on in ("assistant", "last", "all"):
            if sample is CALLING and train_on == "last":
                continue
            assert encode(sample, tokenizer, 256, "reject", train_on) == Rejected("template", words)


def test_what_the_template_refuses_is_rejected_and_its_neighbours_are_not(load):
    system = Conversation((Message("system", "Be brief."), *ONE.messages))
    encoded = Encoder(load(BRACKETS), 256, "reject").encode([ONE, system, TWO, ONE])
    assert [isinstance(one, Rejected) for one in encoded] == [False, True, False, False]
    assert encoded[1] == Rejected("template", "the chat template refuses it: no system role here")


def test_tokens_do_not_depend_on_the_day(load):
    tokenizer = load(TRIMMING)
    for template in (TRIMMING, "{{ strftime_now('%Y-%m-%d') }}" + CHATML):
        tokenizer = load(template)
        (one,) = encode(ONE, tokenizer, 256, "reject")
        assert "26 Jul 2024" in tokenizer.decode(one.input_ids) or "2024-07-26" in tokenizer.decode(one.input_ids)


def test_white_space_of_the_answer_is_learnt_but_not_a_token_that_begins_in_the_header(load):
    sample = talk(("user", "hi"), ("assistant", "def f():\n    pass\n"))
    assert learnt(sample, load()) == ["def f():\n    pass\n<|im_end|>"]
    sample = talk(("user", "hi"), ("assistant", "\n  def f():\n    pass\n"))
    assert learnt(sample, load()) == [" def f():\n    pass\n<|im_end|>"]


def test_prompt_and_completion_with_a_chat_template_are_a_conversation(load):
    tokenizer = load()
    (one,) = encode(Completion("What is 1 + 1?", "It is two.", "\n\n"), tokenizer, 256, "reject")
    (other,) = encode(ONE, tokenizer, 256, "reject")
    assert one.input_ids.tolist() == other.input_ids.tolist()
    assert one.loss_mask.tolist() == other.loss_mask.tolist()


def test_prompt_and_completion_without_one_are_joined_and_end_the_text(load):
    tokenizer = load(None)
    assert learnt(Completion("1 + 1 =", " 2"), tokenizer) == [" 2<|im_end|>"]
    (one,) = encode(Completion("Add.", "2", "\n\n"), tokenizer, 256, "reject")
    assert tokenizer.decode(one.input_ids) == "Add.\n\n2<|im_end|>"


def test_messages_without_a_chat_template_are_refused_with_what_to_do(load):
    with pytest.raises(ModelError, match=r"no chat template.*instruct model"):
        encode(ONE, load(None), 256, "reject")


def test_one_bos_and_one_eos(tokenizer_folder):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    tokenizer.chat_template = None
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    for text in ("once", f"{bos}once", f"{bos}once{eos}"):
        (one,) = encode(Text(text), tokenizer, 64, "reject")
        assert tokenizer.decode(one.input_ids) == f"{bos}once{eos}"
        assert one.loss_mask[1:].all()
    tokenizer.chat_template = "<s>" + CHATML.replace("<|im_start|>", "##")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    (one,) = encode(ONE, tokenizer, 64, "reject")
    assert tokenizer.decode(one.input_ids).startswith("<s>##user")


def test_overlength_is_rejected_or_truncated_or_left_without_a_target(load):
    tokenizer = load()
    (whole,) = encode(TWO, tokenizer, 256, "reject")
    length = len(whole.input_ids)
    assert encode(TWO, tokenizer, length - 1, "reject") == Rejected("overlength", f"{length} tokens, {length - 1} fit")
    (cut,) = encode(TWO, tokenizer, length - 4, "truncate")
    assert cut.input_ids.tolist() == whole.input_ids.tolist()[:-4]
    assert cut.loss_mask.tolist() == whole.loss_mask.tolist()[:-4]
    rejected = encode(TWO, tokenizer, 10, "truncate")
    assert isinstance(rejected, Rejected) and rejected.cause == "no-target"


@settings(max_examples=40)
@given(words=st.integers(1, 60), sequence_length=st.integers(8, 40))
def test_long_text_is_split_so_that_each_token_is_predicted_once(load, words, sequence_length):
    tokenizer = load()
    text = " ".join(f"word{number}" for number in range(words))
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    pieces = encode(Text(text), tokenizer, sequence_length, "reject")
    assert not isinstance(pieces, Rejected)
    assert all(2 <= len(piece.input_ids) <= sequence_length for piece in pieces)
    predicted = [token for piece in pieces for token in piece.input_ids.tolist()[1:]]
    assert [int(pieces[0].input_ids[0]), *predicted] == tokens
    assert all(piece.loss_mask[1:].all() for piece in pieces)


WORD = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=60)
@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4))
def test_the_learnt_tokens_spell_the_answers_for_any_text(load, turns):
    tokenizer = load()
    messages = tuple(message for ask, answer in turns for message in (("user", ask), ("assistant", answer)))
    runs = learnt(talk(*messages), tokenizer, 4096)
    answers = [tokenizer.decode(tokenizer(f"{answer}<|im_end|>")["input_ids"]) for _, answer in turns]
    assert len(runs) == len(turns)
    # a token that begins in the header takes a leading newline with it
    assert [run.lstrip() for run in runs] == [answer.lstrip() for answer in answers]
