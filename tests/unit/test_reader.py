import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data import prepared as prepared_module
from shoal.data.order import Order
from shoal.data.prepared import Prepared
from shoal.data.reader import Reader
from shoal.data.shards import UnitWriter, publish
from shoal.data.summary import TRAIN, VALIDATION, UnitSummary
from shoal.data.template import Encoded
from shoal.storage import Storage

SEQUENCE_LENGTH = 32


def document(number: int, length: int) -> Encoded:
    """Says its own number in every token; learns all but its first third."""
    mask = np.zeros(length, np.bool_)
    mask[length // 3 :] = True
    return Encoded(np.full(length, number, np.int64), mask)


def write(folder, lengths, held_out=0) -> str:
    """Prepared data over two units; the last `held_out` samples are held out."""
    storage, units = Storage(), []
    url = str(folder / "prepared")
    for unit, numbers in enumerate((range(0, len(lengths) // 2), range(len(lengths) // 2, len(lengths)))):
        work = folder / f"work-{unit}"
        work.mkdir(parents=True)
        with UnitWriter(work, unit, 50_000) as writer:
            for number in numbers:
                split = VALIDATION if number >= len(lengths) - held_out else TRAIN
                writer.add(number + 1, [document(number, lengths[number])], split)
            files = writer.upload(storage, url)
        units.append(
            UnitSummary(
                unit=unit, url=f"object-{unit}", rows=len(numbers), rejected={}, examples=(),
                dtype=writer.dtype, highest_token=writer.highest_token,
                input_ids=files[0], loss_mask=files[1], index=files[2],
            )
        )  # fmt: skip
    publish(storage, url, units, "d1", "text", SEQUENCE_LENGTH)
    return url


def open_at(url, folder, batch_size=4, packing=True) -> tuple[Prepared, Order]:
    prepared = Prepared.open(Storage(), url, folder / "cache")
    return prepared, Order(prepared.lengths, prepared.targets, 17, batch_size, SEQUENCE_LENGTH, packing)


def lengths_of(count: int) -> list[int]:
    return [int(length) for length in np.random.default_rng(count).integers(2, SEQUENCE_LENGTH + 1, count)]


def seen(step) -> list[int]:
    return [int(document.input_ids[0]) for micro in step.micro_batches for document in micro.documents]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def url(folder) -> str:
    return write(folder, lengths_of(40), held_out=7)


@pytest.mark.parametrize("packing", [True, False])
def test_the_union_over_ranks_is_one_global_batch_for_every_world(url, folder, packing):
    prepared, order = open_at(url, folder, packing=packing)
    for step in range(1, 2 * order.batches_of(0) + 1):
        whole = Reader(prepared, order, 0, 1, 1).step(step)
        for workers in range(1, 9):
            parts = [Reader(prepared, order, rank, workers, 2).step(step) for rank in range(workers)]
            assert sorted(itertools.chain(*map(seen, parts))) == sorted(seen(whole))
            assert {(part.targets, part.tokens, part.epoch) for part in parts} == {
                (whole.targets, whole.tokens, whole.epoch)
            }
            assert len({len(part.micro_batches) for part in parts}) == 1
        documents = [document for micro in whole.micro_batches for document in micro.documents]
        assert whole.targets == sum(int(document.loss_mask[1:].sum()) for document in documents)
        assert whole.tokens == sum(len(document.input_ids) for document in documents)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 6), workers=st.integers(1, 8), micro=st.integers(1, 3), packing=st.booleans())
def test_tiny_data_keep_all_ranks_in_step(tmp_path_factory, count, workers, micro, packing):
    folder = tmp_path_factory.mktemp("tiny")
    prepared, order = open_at(write(folder, [9] * count), folder, packing=packing)
    parts = [
        list(Reader(prepared, order, rank, workers, micro).steps(1, order.batches_of(0))) for rank in range(workers)
    ]
    assert sorted(number for part in parts for step in part for number in seen(step)) == list(range(count))
    assert len({tuple(len(step.micro_batches) for step in part) for part in parts}) == 1


def test_resuming_at_any_step_reads_the_same_as_never_having_stopped(url, folder):
    prepared, order = open_at(url, folder)
    last = 2 * order.batches_of(0) + 1
    whole = [seen(step) for step in Reader(prepared, order, 1, 2, 1).steps(1, last)]
    for first in range(1, last + 1):
        again, order = open_at(url, folder)
        assert [seen(step) for step in Reader(again, order, 1, 2, 1).steps(first, last)] == whole[first - 1 :]


def test_what_was_read_ahead_is_not_consumed(url, folder):
    prepared, order = open_at(url, folder)
    reader = Reader(prepared, order, 0, 1, 1)
    steps = reader.steps(1, 6)
    whole = [seen(next(steps)), seen(next(steps))]
    steps.close()
    assert [seen(step) for step in reader.steps(3, 6)] == [seen(reader.step(number)) for number in range(3, 7)]
    assert whole == [seen(reader.step(1)), seen(reader.step(2))]


def test_reading_ahead_is_bounded_and_ends_with_the_loop(url, folder):
    prepared, order = open_at(url, folder)
    reader = Reader(prepared, order, 0, 1, 1)
    asked = []
    step = reader.step
    reader.step = lambda number: asked.append(number) or step(number)
    steps = reader.steps(1, 10_000)
    next(steps)
    steps.close()
    assert len(asked) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_an_error_while_reading_ahead_reaches_the_loop(url, folder):
    prepared, order = open_at(url, folder)
    reader = Reader(prepared, order, 0, 1, 1)
    step = reader.step

    def fails(number):
        if number == 2:
            raise OSError("disk gone")
        return step(number)

    reader.step = fails
    steps = reader.steps(1, 5)
    next(steps)
    with pytest.raises(OSError, match="disk gone"):
        next(steps)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_each_held_out_sample_is_on_one_rank(url, folder, workers):
    prepared, order = open_at(url, folder)
    parts = [list(Reader(prepared, order, rank, workers, 2).validation()) for rank in range(workers)]
    numbers = [int(one.input_ids[0]) for part in parts for micro in part for one in micro.documents]
    assert sorted(numbers) == list(range(33, 40))
    assert len({len(part) for part in parts}) == 1


def test_no_held_out_samples_is_an_empty_validation(tmp_path):
    prepared, order = open_at(write(tmp_path, [5, 6]), tmp_path)
    assert len(Reader(prepared, order, 0, 2, 1).validation()) == 0


def test_ranges_give_the_same_tokens_as_whole_files(url, folder, monkeypatch):
    prepared, _ = open_at(url, folder)
    wanted = [30, 2, 2, 17, 0, 32]
    whole = prepared.read(wanted)
    monkeypatch.setattr(prepared_module, "_is_local", lambda url: False)
    monkeypatch.setattr(prepared_module, "WHOLE_FILE_BYTES", 0)
    for gap in (0, 10, 2**16):
        monkeypatch.setattr(prepared_module, "GAP_BYTES", gap)
        for one, other in zip(whole, Prepared.open(Storage(), url, folder / "ranges").read(wanted), strict=True):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert one.loss_mask.tolist() == other.loss_mask.tolist()
