"""A run where a pod may write and nowhere else: a read-only root, no capability, and four volumes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import write
from hosts import missing
from jobs import job, write_rows

REASON = missing()
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

POD = """
# /mnt, /mnt/home, /tmp and /dev/shm in the place of a pod's /cache, /home/shoal, /tmp and /dev/shm
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=1777 none /mnt
mkdir /mnt/home
cp -r "$1"/. /mnt
for volume in /tmp /dev/shm; do mount -t tmpfs -o mode=1777 none "$volume"; done
mount --bind / /
mount -o remount,ro,bind /
cd /mnt/home
if touch /etc/written 2>/dev/null; then exit 9; fi
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all env -i HOME=/mnt/home "PATH=$3:/usr/bin:/bin" \\
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$4" \\
    "$2" -m shoal run /mnt/job.yaml --on /mnt/cluster.yaml
"""


def test_a_run_writes_to_its_volumes_alone(tiny_model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    subprocess.run(["cp", "-r", str(tiny_model), str(tmp_path / "model")], check=True)
    write(tmp_path / "job.yaml", job("/mnt/model", "/mnt/rows.jsonl", train={"max_steps": 2, "num_train_epochs": 5}))
    storage = {"runs": "/mnt/runs", "prepared": "/mnt/prepared", "cache": "/mnt/cache"}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"kind": "local", "workers": 1, "storage": storage}))
    here = Path(__file__).parents[2] / "launcher"
    words = [str(tmp_path), sys.executable, str(Path(sys.executable).parent), str(here)]
    alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
    done = subprocess.run(
        [*alone, "bash", "-c", POD, "pod", *words], capture_output=True, text=True, cwd="/", timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "export passed" in done.stdout
