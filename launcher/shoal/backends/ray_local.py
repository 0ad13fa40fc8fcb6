"""The local backend: an embedded Ray on this machine, which comes and goes with the process."""

import logging
import math
import os
import signal
from typing import TYPE_CHECKING, cast

from shoal.backends import OnEvent
from shoal.backends.ray_train import RayTrain, set_environment
from shoal.backends.signals import kept
from shoal.errors import ClusterError, Problem

if TYPE_CHECKING:
    from ray._private.worker import RayContext


class RayLocal(RayTrain):
    """Workers as processes of an embedded Ray."""

    place = "an embedded Ray"

    def connect(self) -> str:
        set_environment(self.environment)
        import ray

        resources = self.profile.resources_per_worker
        cpus = max(os.cpu_count() or 1, math.ceil(self.profile.max_workers * resources.cpu))
        try:
            with kept(signal.SIGTERM):  # Ray's handler aborts the process 3 s after the signal
                context = ray.init(
                    address="local",
                    ignore_reinit_error=True,  # one embedded Ray serves every run of this process
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=200_000_000,  # bytes; events and summaries only
                    namespace="shoal",
                )
        except (RuntimeError, OSError, ValueError) as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            fix = "its logs are in /tmp/ray/session_latest/logs; `--on inline` does without Ray"
            raise ClusterError(Problem("kind: local", f"Ray did not start: {last}", fix)) from error
        have, need = ray.cluster_resources().get("GPU", 0), self.profile.max_workers * resources.gpu
        if need > have:
            raise ClusterError(
                Problem("workers", f"{need:g} GPUs are asked for and this machine has {have:.0f}", "lower `workers`")
            )
        import ray.train  # while the driver still plans

        return f"{cast('RayContext', context).address_info['session_dir']}/logs"

    def await_room(self, on_event: OnEvent) -> None:
        pass  # it was made with room for all

    def require_room(self, down_s: float) -> None:
        pass
