"""The stream that reads ahead: exact wherever one jumps, and no more on its way than its window."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.storage import stream as module

SIZE = 10_007


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 64)


class Source:
    def __init__(self) -> None:
        self.data = random.Random(0).randbytes(SIZE)
        self.asked: list[tuple[int, int]] = []
        self.fails = 0
        self._lock = threading.Lock()

    def fetch(self, start: int, end: int) -> bytes:
        with self._lock:
            self.asked.append((start, end))
            if self.fails:
                self.fails -= 1
                raise OSError("lost")
        return self.data[start:end]


def test_any_walk_gives_the_right_bytes() -> None:
    source, walk = Source(), random.Random(1)
    with ThreadPoolExecutor(3) as pool, module.stream(SIZE, source.fetch, pool) as stream:
        for _ in range(500):
            place = walk.randrange(SIZE + 50) if walk.random() < 0.3 else stream.tell()
            stream.seek(place)
            count = walk.choice([0, 1, 10, 63, 64, 65, 500])
            assert stream.read(count) == source.data[place : place + count]
        stream.seek(9000)
        assert stream.read() == source.data[9000:]


def test_a_sequential_read_asks_for_each_byte_once() -> None:
    source = Source()
    with ThreadPoolExecutor(3) as pool, module.stream(SIZE, source.fetch, pool) as stream:
        assert b"".join(iter(lambda: stream.read(10), b"")) == source.data
    assert sorted(source.asked)[0][0] == 0 and sum(end - start for start, end in source.asked) == SIZE


def test_a_look_at_the_start_asks_for_one_piece() -> None:
    source = Source()
    with ThreadPoolExecutor(3) as pool, module.stream(SIZE, source.fetch, pool) as stream:
        assert stream.read(10) == source.data[:10]
    assert source.asked == [(0, 64)]


def test_a_failed_piece_is_raised_and_may_be_read_again() -> None:
    source = Source()
    source.fails = 1
    with ThreadPoolExecutor(3) as pool, module.stream(SIZE, source.fetch, pool) as stream:
        with pytest.raises(OSError, match="lost"):
            stream.read(10)
        assert stream.read(10) == source.data[:10]
