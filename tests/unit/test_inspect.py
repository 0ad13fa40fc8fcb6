import io

from rich.console import Console
from transformers import AutoTokenizer

from shoal.data import inspect
from shoal.data.formats import Completion
from shoal.data.prepared import Prepared
from shoal.data.shards import UnitWriter, publish
from shoal.data.summary import TRAIN, Example, UnitSummary
from shoal.data.template import encode
from shoal.storage import Storage


def opened(tmp_path, tokenizer) -> Prepared:
    url = str(tmp_path / "out")
    with UnitWriter(tmp_path, 0, len(tokenizer)) as writer:
        for line in (1, 2):
            writer.add(line, encode(Completion(f"Say {line}.", "Fine 🦈!"), tokenizer, 64, "reject"), TRAIN)
        input_ids, loss_mask, index = writer.upload(Storage(), url)
    example = Example(cause="empty-answer", object="a.jsonl", line=3, detail="`completion` is empty")
    unit = UnitSummary(
        unit=0, url="a.jsonl", rows=3, rejected={"empty-answer": 1}, examples=(example,), dtype=writer.dtype,
        highest_token=writer.highest_token, input_ids=input_ids, loss_mask=loss_mask, index=index,
    )  # fmt: skip
    publish(Storage(), url, [unit], "d", "prompt-completion", 64)
    return Prepared.open(Storage(), url, tmp_path)


def text_of(*renderables) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*renderables, sep="\n")
    return console.export_text()


def test_the_report_says_counts_causes_places_and_what_to_do(tmp_path, tokenizer_folder):
    prepared = opened(tmp_path, AutoTokenizer.from_pretrained(str(tokenizer_folder)))
    text = text_of(
        inspect.counts(prepared.summary), inspect.rejections(prepared.summary, "s3://b/p"), inspect.lengths(prepared)
    )
    assert "prompt-completion, 3 rows" in text
    assert "1 of 3 rows rejected (33.33%)" in text
    assert "a.jsonl:3: empty-answer: `completion` is empty" in text
    assert "nothing could be learnt" in text
    assert "s3://b/p/rejected.jsonl" in text
    assert "packed into 2 rows of 64" in text


def test_what_is_learnt_is_coloured_or_between_marks(tmp_path, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    prepared = opened(tmp_path, tokenizer)
    coloured = inspect.samples(prepared, tokenizer, 3)
    assert len(coloured) == 2
    for sample in coloured:
        (span,) = [span for span in sample.spans if span.style == inspect.LEARNT]
        assert sample.plain[span.start : span.end] == "Fine 🦈!<|im_end|>"
    assert "assistant\n«Fine 🦈!<|im_end|>»" in inspect.samples(prepared, tokenizer, 1, colour=False)[0].plain
