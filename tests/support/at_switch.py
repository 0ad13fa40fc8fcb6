"""What the outside asks of the store, run where its address is: `python at_switch.py VERB ...`.

await ENDPOINT | upload FOLDER_OR_FILE URL | download URL FOLDER_OR_FILE; SHOAL_S3 holds the S3Spec as JSON.
"""

import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

READY_S = 15.0


def main(verb: str, *arguments: str) -> None:
    if verb == "await":
        return answers(*arguments)
    from shoal.spec.cluster import S3Spec
    from shoal.storage import Storage

    storage = Storage(S3Spec.model_validate_json(os.environ["SHOAL_S3"]))
    if verb == "upload":
        return storage.upload(Path(arguments[0]), arguments[1])
    assert verb == "download", verb
    return storage.download(arguments[0], Path(arguments[1]))


def answers(*urls: str) -> None:
    deadline = time.monotonic() + READY_S
    for url in urls:
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
