"""Samples as `shoal check --show` prints them, what is learnt in colour."""

from itertools import groupby
from typing import Any

from rich.text import Text

from shoal.data.hashing import hash_order
from shoal.data.prepared import Prepared
from shoal.rows.template import Encoded

LEARNT = "bold green"
GIVEN = "dim"


def samples(prepared: Prepared, tokenizer: Any, count: int, colour: bool = True) -> list[Text]:
    """`count` samples from all over the data, what is learnt in colour (or, without colour, between « and »)."""
    chosen = hash_order(len(prepared.lengths), 0)[:count].tolist()
    return [
        Text(f"{prepared.sample_id(index)}: ", style="bold") + _marked(document, tokenizer, colour)
        for index, document in zip(chosen, prepared.read(chosen), strict=True)
    ]


def _marked(document: Encoded, tokenizer: Any, colour: bool) -> Text:
    learnt = int(document.loss_mask.sum())
    text = Text(f"{len(document.input_ids)} tokens, {learnt} learnt\n")
    place = 0
    for is_learnt, run in groupby(document.loss_mask.tolist()):
        stop = place + len(list(run))
        words = tokenizer.decode(document.input_ids[place:stop])
        marked = f"«{words}»" if is_learnt and not colour else words
        text.append(marked, style=LEARNT if is_learnt else GIVEN)
        place = stop
    return text
