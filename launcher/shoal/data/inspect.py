"""What `shoal check` shows of prepared data: counts, what was rejected and why, and samples with what is learnt in colour."""

from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shoal.data.formats import REMEDIES
from shoal.data.hashing import hash_order
from shoal.data.prepared import Prepared
from shoal.data.summary import REJECTED, PreparedSummary
from shoal.data.template import Encoded
from shoal.storage import join

LEARNT = "bold green"
GIVEN = "dim"
SHOWN_EXAMPLES = 5


def counts(found: PreparedSummary) -> Table:
    """Rows, samples, tokens and targets of both splits."""
    table = Table("", "samples", "tokens", "learnt tokens", title=f"{found.format}, {found.rows:,} rows", min_width=50)
    for column in table.columns[1:]:
        column.justify = "right"
    splits = [("train", found.samples, found.tokens, found.targets)]
    if found.validation_samples:
        splits.append(("validation", found.validation_samples, found.validation_tokens, found.validation_targets))
    for name, samples, tokens, targets in splits:
        table.add_row(name, f"{samples:,}", f"{tokens:,}", f"{targets:,} ({targets / max(tokens, 1):.0%})")
    return table


def rejections(found: PreparedSummary, url: str) -> RenderableType:
    """Causes with counts and remedies, and the first rejected rows; `url` is the folder of the prepared data."""
    if not found.rejected:
        return Text("no row was rejected")
    share = found.rejected_rows / found.rows
    table = Table(
        "cause", "rows", "what to do", title=f"{found.rejected_rows:,} of {found.rows:,} rows rejected ({share:.2%})"
    )
    table.columns[1].justify = "right"
    for cause, count in found.rejected.items():
        table.add_row(cause, f"{count:,}", REMEDIES[cause])
    examples = [
        Text(f"{example.object}:{example.line}: {example.cause}: {example.detail}", overflow="fold")
        for example in found.examples[:SHOWN_EXAMPLES]
    ]
    return Group(table, *examples, Text(f"all are listed in {join(url, REJECTED)}"))


def lengths(prepared: Prepared) -> Text:
    """How long samples are, and how full packing makes rows."""
    sizes = sorted(prepared.lengths.tolist())
    quantiles = [sizes[min(len(sizes) - 1, int(share * len(sizes)))] for share in (0, 0.5, 0.9, 1)]
    found = prepared.summary
    full = found.tokens / max(found.packed_rows * found.sequence_length, 1)
    return Text(
        "tokens per sample: {} at least, {} in the middle, {} for nine of ten, {} at most; ".format(*quantiles)
        + f"packed into {found.packed_rows:,} rows of {found.sequence_length:,}, {full:.1%} full"
    )


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
