"""Rows of MDS shards through mosaicml-streaming: its default shuffle (py1e), batches by its own loader."""

import reading
from mosaicml import streaming


class Streamed:
    def __init__(self, given):
        self.dataset = streaming.StreamingDataset(
            remote=given.url.rstrip("/"),
            local=str(given.cache / "mds"),
            shuffle=True,
            shuffle_seed=17,
            batch_size=given.batch_size,
        )
        self.loader = streaming.StreamingDataLoader(
            self.dataset, batch_size=given.batch_size, num_workers=0, collate_fn=tokens_of
        )
        self.of_all = given.batch_size * given.workers
        self.done = 0
        state = reading.restored(given)
        if state is not None:
            self.dataset.load_state_dict(state)

    def batches(self):
        for batch in self.loader:
            self.done += 1
            yield batch

    def state(self):
        # Of the data set rather than the loader, which takes the first row's length for a batch's number of rows.
        return self.dataset.state_dict(self.done * self.of_all, from_beginning=True)


def tokens_of(rows):
    return [row["tokens"] for row in rows]


if __name__ == "__main__":
    reading.run(reading.arguments(), Streamed)
