"""Prepared rows through Shoal's own reader, as a worker reads them: global batches, each process its part."""

import reading

from shoal.data.order import Order
from shoal.data.prepared import Prepared
from shoal.data.reader import Reader
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.train.heap import keep_memory


class Read:
    def __init__(self, given):
        storage = Storage(S3Spec(server="embedded", folder=given.store))
        prepared = Prepared.open(storage, given.url.rstrip("/"), given.cache)
        rows = given.workers * given.batch_size
        self.order = Order(prepared.lengths, prepared.targets, 17, rows, given.longest, packing=False)
        self.reader = Reader(prepared, self.order, given.rank, given.workers, given.batch_size)
        self.done = reading.restored(given) or 0

    def batches(self):
        for step in self.reader.steps(self.done + 1, self.order.batches_of(0)):
            self.done = step.step
            yield [document.input_ids for micro in step.micro_batches for document in micro.documents]

    def state(self):
        return self.done


if __name__ == "__main__":
    keep_memory()
    reading.run(reading.arguments(), Read)
