"""Rows of litdata's chunks: shuffle=True, batches by its own loader."""

import os

import litdata
import reading
from litdata.streaming import downloader

# Its fast client takes https alone, and is told no otherwise by any option: this is the store's http on loopback.
downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


class Streamed:
    def __init__(self, given):
        options = {
            "endpoint_url": os.environ["S3_ENDPOINT_URL"],
            "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        }
        dataset = litdata.StreamingDataset(
            given.url.rstrip("/"),
            cache_dir=str(given.cache / "litdata"),
            shuffle=True,
            drop_last=False,
            seed=17,
            storage_options=options,
        )
        self.loader = litdata.StreamingDataLoader(
            dataset, batch_size=given.batch_size, num_workers=0, collate_fn=tokens_of
        )
        state = reading.restored(given)
        if state is not None:
            self.loader.load_state_dict(state)

    def batches(self):
        return iter(self.loader)

    def state(self):
        return self.loader.state_dict()


def tokens_of(rows):
    return [row["tokens"] for row in rows]


if __name__ == "__main__":
    reading.run(reading.arguments(), Streamed)
