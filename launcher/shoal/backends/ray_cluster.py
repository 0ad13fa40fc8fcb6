"""The cluster backend: a Ray that runs already, joined from one of its machines."""

import logging
import platform
import signal
import socket
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from shoal.backends import OnEvent
from shoal.backends.group import bundle, strategy
from shoal.backends.ray_train import RayTrain, set_environment
from shoal.backends.signals import kept
from shoal.errors import ClusterError, Problem

if TYPE_CHECKING:
    from ray._private.worker import RayContext

CONNECT_S = 10.0
GROUP_S = 20.0
"""A group is placed by what Ray believes to be there; when it does not come up, Ray looks again so soon."""
LAUNCH_S = 60.0
"""What a group takes beside room: its processes start, and a lost node is noticed."""
ASK_NODES_S = 60.0
POLL_S = 1.0
JOIN = (
    "`ray start --head` starts a cluster, `ray start --address=HEAD:6379` joins one; run shoal on one of its machines"
)


class RayCluster(RayTrain):
    """Workers on the nodes of a running Ray cluster, which may leave and come back."""

    place = "a Ray cluster"
    environment = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{GROUP_S:g}"}

    def connect(self) -> str:
        set_environment(self.environment)
        import ray

        _require_listener(self.profile.address)
        try:
            with kept(signal.SIGTERM):  # Ray's handler aborts the process 3 s after the signal
                context = ray.init(
                    address=self.profile.address,
                    ignore_reinit_error=True,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace="shoal",
                )
        except (RuntimeError, OSError, ValueError) as error:
            raise ClusterError(_refused(self.profile.address, error)) from error
        _require_versions()
        import ray.train  # while the driver still plans

        return f"{cast('RayContext', context).address_info['session_dir']}/logs"

    def await_room(self, on_event: OnEvent) -> None:
        """Reserves the workers' room for a moment: Ray alone knows what fits, and autoscalers hear of it."""
        from ray.util import placement_group, remove_placement_group

        group = placement_group(
            [bundle(self.profile.resources_per_worker)] * self.profile.min_workers, strategy(self.profile)
        )
        try:
            began = time.monotonic()
            told = False
            while not group.wait(POLL_S):
                if not told:
                    problem = self._no_room("now")
                    message = f"{problem.what}; waiting {self.profile.wait_s:g} s for room"
                    on_event({"kind": "note", "message": message})
                    told = True
                if self.is_too_long(time.monotonic() - began):
                    raise ClusterError(self._no_room(f"for {self.profile.wait_s:g} s"))
        finally:
            remove_placement_group(group)

    def is_too_long(self, waited_s: float) -> bool:
        """Whether to give up."""
        return waited_s >= self.profile.wait_s

    def require_room(self, down_s: float) -> None:
        if self.is_too_long(down_s - LAUNCH_S):
            raise ClusterError(self._no_room(f"for {down_s:.0f} s"))

    def _no_room(self, when: str) -> Problem:
        each = ", ".join(f"{amount:g} {name}" for name, amount in bundle(self.profile.resources_per_worker).items())
        count = self.profile.min_workers
        asked = f"{count} worker{'s' if count > 1 else ''} of {each} each ({self.profile.placement})"
        what = f"no room {when} for {asked}: free are {'; '.join(_free()) or 'no nodes'}"
        fix = "lower workers or resources_per_worker, free some of it, or raise wait_s; `ray status` shows who has it"
        return Problem("workers", what, fix)


def _require_listener(address: str) -> None:
    """An address where nobody listens is answered now: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        what = f"{address} does not answer: {str(error).lower()}"
        raise ClusterError(Problem("address", what, f"name the head as HOST:6379; {JOIN}")) from error


def _refused(address: str, error: Exception) -> Problem:
    """What ray.init made of it, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "ersion mismatch" in text:
        return Problem("address", text, "install the cluster's versions of Ray and Python here")
    if isinstance(error, ConnectionError) and address == "auto":
        return Problem("address", "auto, but no Ray runs on this machine", JOIN)
    return Problem("address", f"the cluster at {address} could not be joined: {text[:300]}", JOIN)


def _free() -> list[str]:
    """Each node's free CPUs and GPUs, in words."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    told = []
    for node in ray.nodes():
        whole = node["Resources"]
        if node["Alive"] and (whole.get("CPU") or whole.get("GPU")):
            now = free.get(node["NodeID"], {})
            parts = [f"{now.get(name, 0):g} of {whole[name]:g} {name}" for name in ("CPU", "GPU") if whole.get(name)]
            told.append(f"{node['NodeManagerHostname']}: {', '.join(parts)}")
    return told


def _require_versions() -> None:
    """Every node that can hold a worker has this Python and this Shoal. Raises: ClusterError naming those that have not."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask() -> tuple[str, str | None]:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        try:
            return platform.python_version(), version("shoal")
        except PackageNotFoundError:
            return platform.python_version(), None

    remote: Any = ray.remote(num_cpus=0, max_retries=0)(ask)
    asked: dict[Any, str] = {}
    for node in ray.nodes():
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU")):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[remote.options(scheduling_strategy=where).remote()] = node["NodeManagerHostname"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ASK_NODES_S) if asked else ([], [])
    problems = []
    for one in answered:
        try:
            python, shoal = ray.get(one)
        except RayError:
            continue  # a node that left meanwhile holds no worker
        if shoal != version("shoal"):
            what = f"has {f'shoal {shoal}' if shoal else 'no shoal'}, and this machine has {version('shoal')}"
            problems.append(Problem(asked[one], what, "install the same shoal on every node"))
        if python.rpartition(".")[0] != platform.python_version().rpartition(".")[0]:
            what = f"has Python {python}, and this machine has {platform.python_version()}"
            problems.append(Problem(asked[one], what, "use one Python everywhere"))
    if problems:
        raise ClusterError(*problems)
