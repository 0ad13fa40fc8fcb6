"""A survey for a person at a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shoal.survey.figures import Leakage, Lengths, Pair, Place, Survey

BAR_CELLS = 40
WORDS = 60
"""Characters of a row that are shown."""


def report(found: Survey) -> Iterator[RenderableType]:
    """Blocks to print one below the other, what to look at last."""
    yield _sources(found)
    if found.train:
        yield _samples(found)
    if found.note:
        yield Text(found.note, style="yellow")
    if found.lengths:
        yield _lengths(found.lengths)
    yield _facts(found)
    if found.rejected:
        yield _rejected(found)
    examples = list(_examples(found))
    if examples:
        yield Group(Text("examples", style="bold"), *examples)
    yield _warnings(found)


def _table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place in right else "left", overflow="fold", header_style="dim")
    return table


def _sources(found: Survey) -> Table:
    weighted = any(one.weight != 1 for one in found.sources)
    table = _table("", "source", "format", "objects", "rows", "accepted", right=(3, 4, 5, 6))
    if weighted:
        table.add_column("weight", justify="right", header_style="dim")
    for one in found.sources:
        others = "".join(f", {count:,} of {name}" for name, count in one.other_formats.items())
        numbers = [f"{one.objects:,}", f"{one.rows:,}", f"{one.accepted:,}"]
        numbers += [f"{one.weight:g}"] if weighted else []
        table.add_row(one.split, Text(one.path), one.format + others, *numbers)
    return table


def _samples(found: Survey) -> Table:
    table = _table("", "samples", "tokens", "learnt tokens", right=(1, 2, 3))
    for name, one in (("train", found.train), ("validation", found.validation)):
        if one:
            learnt = f"{one.targets:,} ({one.supervised_share:.0%})"
            table.add_row(name, f"{one.samples:,}", f"{one.tokens:,}", learnt)
    return table


def _lengths(found: Lengths) -> Group:
    table = _table("tokens", "samples", "", right=(0, 1))
    most = max(bar.count for bar in found.histogram)
    for bar in found.histogram:
        cells = bar.count * BAR_CELLS / most
        drawn = "█" * int(cells) + ("▌" if cells % 1 >= 0.5 else "") or ("▏" if bar.count else "")
        table.add_row(f"{bar.low:,}-{bar.high:,}", f"{bar.count:,}", Text(drawn, style="cyan"))
    words = (
        f"tokens per sample: {found.min:,} at least, {found.median:,} in the middle, {found.p90:,} for nine of ten, "
        f"{found.p99:,} for 99 of 100, {found.max:,} at most"
    )
    return Group(table, Text(words))


def _facts(found: Survey) -> Table:
    """What is told in one line each."""
    table = _table("", "")
    table.show_header = False
    table.columns[0].style = "dim"
    for name, words in facts(found):
        table.add_row(name, Text(words))
    return table


def facts(found: Survey) -> Iterator[tuple[str, str]]:
    """(name, words): the same lines in the terminal and on the page."""
    if found.turns:
        counts = ", ".join(f"{count:,} with {turns}" for turns, count in sorted(found.turns.items())[:8])
        yield "answers per row", counts + (" or more" if len(found.turns) > 8 else "")
    if (lengths := found.lengths) and lengths.at_limit:
        cut = ", where longer ones are cut" if lengths.truncated else ""
        yield "at the limit", f"{lengths.at_limit:,} samples have exactly {lengths.sequence_length:,} tokens{cut}"
    if lengths and (packing := found.packing):
        yield "packing", f"{packing.rows:,} rows of {lengths.sequence_length:,}, {packing.efficiency:.1%} full"
    if found.steps:
        yield (
            "steps",
            f"{found.steps.steps:,} ({found.steps.steps_per_epoch:,} per epoch, {found.steps.tokens:,} tokens)",
        )
    exact, near = found.exact_duplicates, found.near_duplicates
    yield (
        "exact copies",
        f"{exact.rows:,} rows of {exact.groups:,} others ({exact.share:.2%})" if exact.rows else "none",
    )
    part = "" if near.sampled == 1 else f", on a share of {near.sampled:.1%} of all rows, chosen by what they say"
    alike = (
        f"{near.rows:,} of {near.compared:,} rows ({near.share:.2%})"
        if near.rows
        else f"none of {near.compared:,} rows"
    )
    yield "near copies", f"{alike} resemble an earlier one at {near.threshold:g}{part}"
    if found.answers.repeated_rows:
        yield "repeated answers", f"{found.answers.repeated_rows:,} rows share their answer with other prompts"
    if found.leakage:
        yield "train holds", _leaks(found.leakage)
    if found.languages.sampled:
        spoken = (("prompts", found.languages.prompts), ("answers", found.languages.answers))
        words = "; ".join(f"{name} {_shares(counts)}" for name, counts in spoken if set(counts) != {"und"})
        yield "languages", f"{words} (of {found.languages.sampled:,} rows; und: cannot be told)"
    if found.ids:
        yield "ids", f"{found.ids.rows:,} rows have one, {found.ids.duplicates:,} of them twice"


def _leaks(leak: Leakage) -> str:
    kinds = (
        f"{leak.exact:,} of {leak.held_out:,} held-out rows as they are",
        f"{leak.near:,} of {leak.near_compared:,} nearly so",
        f"{leak.prompt:,} prompts with another answer",
    )
    return ", ".join(kinds)


def _shares(counts: dict[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    return ", ".join(f"{name} {count / total:.1%}" for name, count in list(counts.items())[:4])


def _rejected(found: Survey) -> Group:
    total = sum(one.rows for one in found.rejected)
    title = f"{total:,} of {found.rows:,} rows are set apart ({total / max(found.rows, 1):.2%})"
    table = _table("cause", "rows", "what to do", right=(1,))
    for one in found.rejected:
        table.add_row(one.cause, f"{one.rows:,}", one.remedy)
    lines = [_line(f"{place}: {one.cause}: {detail}") for one in found.rejected for place, detail in one.examples[:2]]
    return Group(Text(title, style="bold"), table, *lines)


def _examples(found: Survey) -> Iterator[RenderableType]:
    for one in found.exact_duplicates.largest[:3]:
        yield _line(f"{one.rows:,} times: {_quoted(one.first)}")
    for pair in found.near_duplicates.examples[:3]:
        yield _line(f"near copy ({pair.similarity:.2f}): {_quoted(pair.row)} and {pair.of}")
    for one in found.answers.repeated[:3]:
        yield _line(f"one answer to {one.prompts:,} prompts: {_quoted(one.example)}")
    for pair in found.leakage.examples[:3] if found.leakage else ():
        yield _line(f"held out and in train: {_pair(pair)}")
    for place, asked, answered in found.languages.examples[:3]:
        yield _line(f"asked in {asked}, answered in {answered}: {place}")
    for pair in found.ids.examples[:3] if found.ids else ():
        yield _line(f"one id: {pair.row} and {pair.of}")


def _pair(pair: Pair) -> str:
    alike = "" if pair.similarity == 1 else f" ({pair.similarity:.2f})"
    return f"{_quoted(pair.row)} and {pair.of}{alike}"


def _quoted(place: Place) -> str:
    text = place.text if len(place.text) <= WORDS else place.text[: WORDS - 1] + "…"
    return f"{place} “{text}”"


def _line(text: str) -> Padding:
    return Padding(Text(text, overflow="fold"), (0, 0, 0, 2))


def _warnings(found: Survey) -> RenderableType:
    if not found.warnings:
        return Text("nothing to look at", style="green")
    lines = [Text("to look at", style="bold yellow")]
    for one in found.warnings:
        lines.append(Text.assemble(("  ! ", "yellow"), f"{one.what}: ", (one.fix, "dim")))
    return Group(*lines)
