"""The worker's side of a Ray backend: one process of Ray Train's, from its start to its result."""

import faulthandler
import os
import signal
import socket
import threading
import time
import traceback
from datetime import timedelta
from types import FrameType
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerCallback

from shoal.backends.watch import Beat, memory_in_use
from shoal.errors import ShoalError
from shoal.plan.types import Plan
from shoal.train.world import Directive, Preempted, Pulse, Result, World

PROCESS_GROUP_TIMEOUT_S = 1800
BEAT_S = 1.0
STDERR = 2
ALIKE_S = 5.0
"""What one rank answers all ranks do, mostly: this soon after it. Then the group stays for the next plan."""
TAKE_EVERY_S = 0.1
"""How often a worker that waits asks for a plan."""

PULSE = Pulse()
"""This process is one worker; a signal's handler, the heartbeat and the training thread share this."""


class SignalHandlers(WorkerCallback):
    """SIGTERM asks the worker to save and leave; sent once more, it leaves at once, as Ray has it.

    Python lets only the main thread set handlers. Ray Train has that run its polls, the training function has a thread of
    its own, and this hook is the one place that runs on the main thread before. SIGUSR2 writes all stacks to stderr.
    """

    def after_init_train_context(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        came = threading.Event()

        def leave(number: int, frame: FrameType | None) -> None:
            if came.is_set() and callable(before):
                before(number, frame)
            came.set()
            PULSE.ask(Directive.YIELD, "SIGTERM")

        signal.signal(signal.SIGTERM, leave)
        faulthandler.register(signal.SIGUSR2, file=STDERR, all_threads=True)


def work(config: dict[str, Any]) -> Result:
    """One worker's life, in a process of Ray's: join the others, run the plan."""
    from shoal.backends.inline import quiet

    quiet()
    result = _turn(Plan.model_validate_json(config["plan"]), config["mailbox"], config["entry"])
    _disconnect()
    return result


def work_on(config: dict[str, Any]) -> None:
    """One worker's life in a group that stays: plan after plan, as the desk gives them out, in one process group."""
    import ray.train
    from ray.exceptions import RayActorError

    from shoal.backends.inline import quiet

    quiet()
    desk, rank = config["mailbox"], ray.train.get_context().get_world_rank()
    turn = 0
    while True:
        if PULSE.wish != Directive.CONTINUE:
            raise RayActorError("", f"was asked to leave by {PULSE.asked_by}", False, True)
        given = ray.get(desk.take.remote(turn))
        if given is None:
            time.sleep(TAKE_EVERY_S)
            continue
        turn, text = given
        if not turn:
            _disconnect()
            return
        PULSE.begin()
        try:
            outcome: Result | ShoalError = _turn(Plan.model_validate_json(text), desk, config["entry"])
        except ShoalError as error:
            outcome = error.with_traceback(None)  # whose frames would hold the model
            outcome.__context__ = outcome.__cause__ = None
        _let_go()
        ray.get(desk.finish.remote(rank, outcome))
        if isinstance(outcome, ShoalError) and not _all_through(desk, turn):
            raise outcome


def _all_through(desk: Any, turn: int) -> bool:
    """Whether every rank comes to an end with a plan that has failed here; else some wait for this one, for good."""
    import ray

    deadline = time.monotonic() + ALIKE_S
    while ray.get(desk.on_turn.remote()) == turn:
        if time.monotonic() > deadline:
            return False
        time.sleep(TAKE_EVERY_S)
    return True


def _turn(plan: Plan, mailbox: Any, entry: Any) -> Result:
    """One plan on this rank, from joining the others to the result."""
    import ray.train
    from ray.exceptions import RayActorError

    from shoal.backends.mailbox import Reporter

    context, me = ray.train.get_context(), ray.get_runtime_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    joined = mailbox.join.remote(rank, size, os.getpid(), me.get_node_id(), me.get_actor_id())
    world = World(
        rank=rank,
        size=size,
        local_rank=context.get_local_rank(),
        local_size=context.get_local_world_size(),
        node=socket.gethostname(),
        pulse=PULSE,
        earlier=tuple(ray.get(joined)),
    )
    report = Reporter(mailbox)
    heart = Heart(world, mailbox)
    heart.start()
    try:
        _connect(world, plan)
        if entry is None:
            from shoal.train.entry import run as entry
        return entry(plan, world, report)
    except Preempted as left:
        # Ray Train counts an actor that says so against max_preemption_failures.
        raise RayActorError("", str(left), False, True) from None
    except ShoalError:
        raise
    except Exception as error:
        error.add_note(f"worker {world.rank} of {world.size}:\n{traceback.format_exc()}")
        raise
    finally:
        heart.stop()
        report.flush()


def _let_go() -> None:
    """What the plan before held in memory is free for the next one."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Heart(threading.Thread):
    """Tells the mailbox where this rank is, about once a second, and hears there whether the rank should leave."""

    def __init__(self, world: World, mailbox: Any) -> None:
        super().__init__(name="heart", daemon=True)
        self._world, self._mailbox = world, mailbox
        self._over = threading.Event()

    def run(self) -> None:
        import ray
        from ray.exceptions import RayError

        sent: list[Any] = []
        while not self._over.wait(BEAT_S):
            sent.append(self._mailbox.beat.remote(self._beat()))
            answered, sent = ray.wait(sent, num_returns=len(sent), timeout=0)
            try:
                asked_by = ray.get(answered[-1]) if answered else ""
            except RayError:  # the mailbox is being started again
                continue
            if asked_by:
                self._world.pulse.ask(Directive.YIELD, asked_by)

    def stop(self) -> None:
        """The last beat is sent, and the mailbox told that no other comes."""
        self._over.set()
        self._mailbox.beat.remote(self._beat())
        self._mailbox.leave.remote(self._world.rank, os.getpid())

    def _beat(self) -> Beat:
        pulse = self._world.pulse
        return Beat(
            rank=self._world.rank,
            node=self._world.node,
            pid=os.getpid(),
            phase=pulse.phase,
            step=pulse.step,
            marks=pulse.marks,
            waiting=pulse.waiting,
            still_s=pulse.still_s,
            memory=memory_in_use(),
            asked_by=pulse.asked_by,
            attempt=pulse.attempt,
        )


def _connect(world: World, plan: Plan) -> None:
    """Bring the process group up, unless it is. Rank 0's store picks a free port itself: no other process can take it."""
    import torch
    import torch.distributed as dist
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    device = plan.layout.device
    if device == "cuda":
        torch.cuda.set_device(world.local_rank)
    if world.size == 1 or dist.is_initialized():
        return
    host, port, store = "", 0, None
    if world.is_main:
        host = get_node_ip_address()
        store = dist.TCPStore(host, 0, world.size, is_master=True, wait_for_workers=False)
        port = store.port
    host, port = broadcast_from_rank_zero((host, port))
    store = store or dist.TCPStore(host, port, world.size, is_master=False)
    os.environ.update(
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        LOCAL_WORLD_SIZE=str(world.local_size),
    )
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=max(PROCESS_GROUP_TIMEOUT_S, 2 * plan.hang_timeout_s)),
    )


def _disconnect() -> None:
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
