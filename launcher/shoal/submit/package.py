"""Shoal itself, for a cluster that has none or another: what its wheel holds, as a zip that Ray puts on every worker's path.

Not the wheel through `py_modules`, which Ray installs with pip, dependencies and all: gigabytes of torch at each new
version, from an index that a cluster may not reach. Not `pip` of a runtime_env, for the same reason and because it makes
a virtual environment per node. A zip under the name of its own content is sent once per cluster and version.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import shoal
from shoal.submit import probe

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Of every file in the zip: the same bytes whenever it is made."""


@dataclass(frozen=True)
class Package:
    """The Shoal that this process is made of."""

    version: str
    digest: str
    """Of its files, as the probe computes it on the cluster."""
    requirements: tuple[str, ...]
    """What it needs at least, as the wheel's metadata say, extras left out."""
    name: str
    data: bytes

    @property
    def uri(self) -> str:
        return f"gcs://{self.name}"


def package() -> Package:
    folder = Path(shoal.__file__).parent
    said = metadata.metadata("shoal")
    version = shoal.__version__
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for path, name in probe.files(folder):
            zipped.writestr(zipfile.ZipInfo(f"shoal/{name}", EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
        body = f"Metadata-Version: 2.4\nName: shoal\nVersion: {version}\n"
        zipped.writestr(zipfile.ZipInfo(f"shoal-{version}.dist-info/METADATA", EPOCH), body)
    data = written.getvalue()
    needed = [one for one in said.get_all("Requires-Dist") or [] if "extra ==" not in one]
    name = f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:32]}.zip"
    return Package(version, probe.digest(folder), tuple(needed), name, data)
