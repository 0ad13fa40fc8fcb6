"""Rows of Parquet objects through `datasets`: streamed, shuffled with a buffer, split by process."""

import os

import numpy as np
import reading
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node

BUFFER = 10_000
"""Rows, as in the library's guide to streaming."""


class Streamed:
    def __init__(self, given):
        options = {
            "key": os.environ["AWS_ACCESS_KEY_ID"],
            "secret": os.environ["AWS_SECRET_ACCESS_KEY"],
            "client_kwargs": {"endpoint_url": os.environ["S3_ENDPOINT_URL"]},
        }
        files = [f"{given.url}part-{number:05d}.parquet" for number in range(given.objects)]
        dataset = load_dataset("parquet", data_files=files, split="train", streaming=True, storage_options=options)
        dataset = dataset.shuffle(seed=17, buffer_size=BUFFER)
        self.dataset = split_dataset_by_node(dataset, given.rank, given.workers).with_format("numpy")
        self.batch_size = given.batch_size
        state = reading.restored(given)
        if state is not None:
            self.dataset.load_state_dict(state)

    def batches(self):
        for batch in self.dataset.iter(batch_size=self.batch_size):
            yield [np.asarray(row) for row in batch["tokens"]]

    def state(self):
        return self.dataset.state_dict()


if __name__ == "__main__":
    reading.run(reading.arguments(), Streamed)
