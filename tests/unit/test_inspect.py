from shards import write_prepared
from transformers import AutoTokenizer

from shoal.data.prepared import Prepared
from shoal.data.summary import TRAIN
from shoal.rows.formats import Completion
from shoal.rows.template import encode
from shoal.storage import Storage
from shoal.survey import inspect


def opened(tmp_path, tokenizer) -> Prepared:
    url = str(tmp_path / "out")
    samples = [encode(Completion(f"Say {line}.", "Fine 🦈!"), tokenizer, 64, "reject") for line in (1, 2)]
    write_prepared(
        Storage(), url, [[(pieces, TRAIN) for pieces in samples]], 64, len(tokenizer), format="prompt-completion"
    )
    return Prepared.open(Storage(), url, tmp_path)


def test_what_is_learnt_is_coloured_or_between_marks(tmp_path, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    prepared = opened(tmp_path, tokenizer)
    coloured = inspect.samples(prepared, tokenizer, 3)
    assert len(coloured) == 2
    for sample in coloured:
        (span,) = [span for span in sample.spans if span.style == inspect.LEARNT]
        assert sample.plain[span.start : span.end] == "Fine 🦈!<|im_end|>"
    assert "assistant\n«Fine 🦈!<|im_end|>»" in inspect.samples(prepared, tokenizer, 1, colour=False)[0].plain
