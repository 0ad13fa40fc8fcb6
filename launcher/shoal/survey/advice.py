"""What a person should look at in a survey, and what to do about it."""

from collections.abc import Iterator

from shoal.survey.figures import Advice, Survey

FEW_SUPERVISED = 0.1
"""Share of supervised tokens below which most of the arithmetic teaches nothing."""
DUPLICATES = 0.01
"""Share of copies that is worth a word."""
REPEATED = 0.01
"""Share of the rows behind one answer that is worth a word."""
TRUNCATED = 0.01
"""Share of cut samples that is worth a word."""
LOOSE_PACKING = 0.95
FEW_ROWS = 100


def advice(found: Survey, max_rejected: float) -> Iterator[Advice]:
    """The most harmful first."""
    yield from _leakage(found)
    yield from _rejected(found, max_rejected)
    yield from _copies(found)
    yield from _answers(found)
    yield from _lengths(found)
    if found.ids and found.ids.duplicates:
        what = f"{found.ids.duplicates:,} rows have an `id` that an earlier row has"
        yield Advice(code="duplicate-ids", what=what, fix="look whether files were joined twice; ids are not read")
    if found.languages.differ > found.languages.sampled / 100:
        share = found.languages.differ / found.languages.sampled
        what = f"{share:.1%} of the sampled rows are answered in another language than they ask"
        yield Advice(code="languages", what=what, fix="if that is not meant, as translation is, look at the examples")
    if found.accepted < FEW_ROWS:
        what = f"{found.accepted:,} rows are few to learn from"
        yield Advice(code="few-rows", what=what, fix="expect the model to repeat them; hold some out to see it happen")


def _leakage(found: Survey) -> Iterator[Advice]:
    leak = found.leakage
    if leak is None:
        return
    apart = any(source.split == "validation" for source in found.sources)
    if leak.exact:
        what = f"{leak.exact:,} of {leak.held_out:,} held-out rows are in train as they are"
        yield Advice(code="leakage", what=what, fix="`shoal prepare --drop-leaks` takes them out of train")
    if leak.near:
        what = f"{leak.near:,} of {leak.near_compared:,} held-out rows have a near copy in train"
        fix = "`shoal prepare --drop-leaks` takes these out of train" + (
            "" if apart else ", and --near all near copies"
        )
        yield Advice(code="near-leakage", what=what, fix=fix)
    if leak.prompt:
        what = f"{leak.prompt:,} of {leak.held_out:,} held-out rows ask what a row of train asks, with another answer"
        yield Advice(
            code="prompt-leakage", what=what, fix="the held-out loss is that of known prompts; hold out whole prompts"
        )


def _rejected(found: Survey, max_rejected: float) -> Iterator[Advice]:
    count = sum(one.rows for one in found.rejected)
    if not count:
        return
    share = count / max(found.rows, 1)
    worst = found.rejected[0]
    over = f", and data.max_rejected allows {max_rejected:.1%}" if share > max_rejected else ""
    what = f"{count:,} of {found.rows:,} rows ({share:.2%}) are set apart, most for {worst.cause}{over}"
    yield Advice(code="rejected", what=what, fix=worst.remedy)
    others = [source for source in found.sources if source.other_formats]
    for source in others:
        formats = ", ".join(f"{count:,} of {name}" for name, count in source.other_formats.items())
        what = f"{source.path} is read as {source.format} and holds other rows: {formats}"
        fix = "put them in files of their own, and name these in data.train with their format"
        yield Advice(code="mixed-formats", what=what, fix=fix)


def _copies(found: Survey) -> Iterator[Advice]:
    exact, near = found.exact_duplicates, found.near_duplicates
    if exact.share >= DUPLICATES:
        what = f"{exact.rows:,} rows ({exact.share:.1%}) are exact copies of an earlier row: they are learnt more often"
        yield Advice(code="duplicates", what=what, fix="`shoal prepare --dedupe` leaves one of each")
    if near.share >= DUPLICATES:
        what = (
            f"{near.rows:,} of {near.compared:,} rows ({near.share:.1%}) resemble an earlier row at {near.threshold:g}"
        )
        fix = "look at the examples; `shoal prepare --near` leaves one of each"
        yield Advice(code="near-duplicates", what=what, fix=fix)


def _answers(found: Survey) -> Iterator[Advice]:
    for one in found.answers.repeated[:1]:
        if one.rows >= REPEATED * found.accepted:
            what = f"one answer stands behind {one.prompts:,} different prompts: {one.example.text!r:.60}"
            fix = "unless the task is to choose among few answers, remove most of these rows"
            yield Advice(code="repeated-answer", what=what, fix=fix)


def _lengths(found: Survey) -> Iterator[Advice]:
    if found.train and found.train.samples and found.train.supervised_share < FEW_SUPERVISED:
        what = f"{found.train.supervised_share:.1%} of the tokens are learnt"
        yield Advice(
            code="few-targets", what=what, fix="shorten the prompts, or set data.train_on: all if they should be learnt"
        )
    lengths = found.lengths
    if lengths and found.train and lengths.truncated > TRUNCATED * found.train.samples:
        what = f"{lengths.truncated:,} samples are cut at {lengths.sequence_length:,} tokens: their answers have no end"
        yield Advice(code="truncated", what=what, fix="raise data.sequence_length, or set data.overlength: reject")
    if lengths and lengths.max * 4 <= lengths.sequence_length:
        what = f"the longest sample has {lengths.max:,} tokens, data.sequence_length is {lengths.sequence_length:,}"
        yield Advice(code="short-samples", what=what, fix="a shorter sequence_length needs less memory")
    if found.packing and found.packing.efficiency < LOOSE_PACKING and found.packing.rows > 1:
        what = f"packed rows are {found.packing.efficiency:.1%} full: many samples take more than half a row"
        yield Advice(code="loose-packing", what=what, fix="raise data.sequence_length")
