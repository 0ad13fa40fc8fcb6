"""Chat templates of ten families against tokens and masks written out by hand from their published formats.

tests/golden/chat/FAMILY.json says per case the text's pieces as [text, learnt] and the token ids of each piece;
tests/golden/templates/FAMILY.jinja writes the family's format.
"""

import json
from pathlib import Path

import pytest
from chat_families import family_tokenizer

from shoal.rows.formats import Conversation, Rejected, parse
from shoal.rows.template import Encoder

GOLDEN = Path(__file__).parent.parent / "golden"
FAMILIES = [
    "qwen2.5",
    "qwen3",
    "llama-3.1",
    "mistral-v0.3",
    "gemma-2",
    "phi-3",
    "phi-4",
    "zephyr",
    "deepseek-v3",
    "deepseek-r1",
]


def golden(family: str) -> dict:
    return json.loads((GOLDEN / "chat" / f"{family}.json").read_text())


def load(family: str, folder: Path):
    template = (GOLDEN / "templates" / f"{family}.jinja").read_text()
    return family_tokenizer(folder, golden(family)["tokens"], template)


def sample_of(case: dict) -> Conversation:
    sample = parse({"messages": case["messages"], "tools": case["tools"]}, "messages")
    assert isinstance(sample, Conversation), sample
    return sample


def test_every_golden_file_is_used():
    assert sorted(path.stem for path in (GOLDEN / "chat").iterdir()) == sorted(FAMILIES)
    assert sorted(path.stem for path in (GOLDEN / "templates").iterdir()) == sorted(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_masks_are_those_of_the_published_format(tokenizer_folder, family):
    tokenizer = load(family, tokenizer_folder)
    for case in golden(family)["cases"]:
        (found,) = Encoder(tokenizer, 4096, "reject", case["train_on"]).encode([sample_of(case)])
        if "rejected" in case:
            assert isinstance(found, Rejected) and found.cause == case["rejected"], case["name"]
            continue
        assert not isinstance(found, Rejected), (case["name"], found)
        (one,) = found
        runs: list[tuple[list[int], bool]] = []
        for token, learnt in zip(one.input_ids.tolist(), one.loss_mask.tolist(), strict=True):
            if not runs or runs[-1][1] != learnt:
                runs.append(([], learnt))
            runs[-1][0].append(token)
        told = [[tokenizer.decode(ids), learnt] for ids, learnt in runs]
        assert told == case["pieces"], case["name"]
        assert [ids for ids, _ in runs] == case["ids"], case["name"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_learnt_piece_follows_what_the_model_is_prompted_with(tokenizer_folder, family):
    """Independent of the masks: before the last answer stands exactly what generation would be given."""
    tokenizer = load(family, tokenizer_folder)
    for case in golden(family)["cases"]:
        if "rejected" in case or case["train_on"] == "all":
            continue
        prompt = tokenizer.apply_chat_template(
            case["messages"][:-1], tools=case["tools"] or None, tokenize=False, add_generation_prompt=True,
            date_string="26 Jul 2024",
        )  # fmt: skip
        last = max(number for number, (_, learnt) in enumerate(case["pieces"]) if learnt)
        before = "".join(text for text, _ in case["pieces"][:last])
        assert before.startswith(prompt), case["name"]
        assert before.removeprefix(prompt) in ("", "<think>\n\n</think>\n\n"), case["name"]


def test_special_tokens_are_single_tokens(tokenizer_folder):
    for family in FAMILIES:
        tokens = golden(family)["tokens"]
        tokenizer = load(family, tokenizer_folder)
        for token in (*tokens["special"], *tokens["added"], tokens["bos"], tokens["eos"]):
            assert token is None or len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
