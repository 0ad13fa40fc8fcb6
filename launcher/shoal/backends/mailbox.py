"""How events travel from the workers to the driver of a Ray run, and directives and heartbeats between them."""

import time
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from shoal.backends.watch import GONE, SILENT_S, Beat, Hang, end, hangs
from shoal.train.world import Directive, Event

DRAINED_EVERY_S = 2.0
"""How often Ray is asked which nodes are about to go."""
NODE_GOES = "its node, which is drained"


@dataclass(frozen=True)
class Account:
    """What is known of a group, for a verdict."""

    beats: dict[int, Beat]
    """The last of each rank."""
    silent_s: dict[int, float]
    """Seconds since then, of ranks that did not leave in order."""
    hangs: dict[int, Hang]
    cut_off: frozenset[int] = frozenset()
    """Silent ranks whose process Ray takes to be alive: a process's death is known at once, a node's only after a while."""
    ending: frozenset[int] = frozenset()
    """Ranks that hang, whose process is being ended: what it was found like is not known yet."""


class Mailbox:
    """An actor between the workers and the driver: events in, events out, who is where, and whether to stop.

    It outlives worker groups, so that a driver hears of the old group's last events and of the new group's first, and
    rank 0 of the new one of the old one's end.
    """

    def __init__(self, hang_timeout_s: float) -> None:
        self.hang_timeout_s = hang_timeout_s
        self.events: list[Event] = []
        self.failures: list[Event] = []
        self.directive = Directive.CONTINUE
        self.size = 0
        self.pids: dict[int, int] = {}
        self.nodes: dict[int, str] = {}
        self.actors: dict[int, str] = {}
        self.beats: dict[int, Beat] = {}
        self.heard: dict[int, float] = {}
        self.hangs: dict[int, Hang] = {}
        self.ending: dict[Any, int] = {}
        """Tasks that end a rank's process."""
        self.draining: set[str] = set()
        self.asked_drained = 0.0

    def post(self, event: Event) -> Directive:
        """Keep one event for the driver; answers the current directive."""
        self.events.append(event)
        return self.directive

    def join(self, rank: int, size: int, pid: int, node_id: str, actor_id: str) -> list[Event]:
        """A worker process is up; when all are, the driver hears their pids. Answers how earlier groups ended."""
        if size != self.size or len(self.pids) == size or rank in self.pids:
            self.pids, self.nodes, self.actors, self.beats, self.heard, self.hangs = {}, {}, {}, {}, {}, {}
        self.size = size
        self.pids[rank], self.nodes[rank], self.actors[rank] = pid, node_id, actor_id
        if len(self.pids) == size:
            ids = ", ".join(str(self.pids[each]) for each in sorted(self.pids))
            message = f"{size} worker{'s' if size > 1 else ''} up (process {ids})"
            self.events.append({"kind": "note", "message": message, "pids": dict(self.pids)})
        return self.failures

    def beat(self, beat: Beat) -> str:
        """One rank's heartbeat; answers who wants it to leave, if anybody does."""
        if self.pids.get(beat.rank) == beat.pid:
            self.beats[beat.rank], self.heard[beat.rank] = beat, time.monotonic()
        return NODE_GOES if self.nodes.get(beat.rank) in self.draining else ""

    def leave(self, rank: int, pid: int) -> None:
        """A worker is done, or has raised: its silence means nothing from now on."""
        if self.pids.get(rank) == pid:
            self.heard.pop(rank, None)

    def account(self) -> Account:
        """What is known of the group."""
        now = time.monotonic()
        silent_s = {rank: now - at for rank, at in self.heard.items()}
        cut_off = [rank for rank, silent in silent_s.items() if silent >= SILENT_S and _lives(self.actors[rank])]
        ending = frozenset(self.ending.values())
        return Account(dict(self.beats), silent_s, dict(self.hangs), frozenset(cut_off), ending)

    def failed(self, failure: Event) -> None:
        """How the group ended: for the driver, and for rank 0 of the next one to write down. Nobody is waited for now."""
        self.failures.append(failure)
        self.events.append(failure)
        self.heard = {}

    def resize(self, workers: int) -> None:
        """There is room for so many workers: the group saves and leaves, for one of that size to go on."""
        message = (
            f"room for {workers} worker{'s' if workers > 1 else ''}: this group saves, and one of that size goes on"
        )
        self.events.append({"kind": "note", "message": message})
        self.directive = max(self.directive, Directive.YIELD, key=lambda one: one.value)

    def is_left(self) -> bool:
        """Whether every worker is done."""
        return not self.heard

    def resized(self) -> None:
        """The group is about to be ended: nobody is waited for, and the next one goes on."""
        self.heard = {}
        if self.directive == Directive.YIELD:
            self.directive = Directive.CONTINUE

    def drain(self, stop: bool) -> list[Event]:
        """The driver's call, a few times a second: takes all events, and says whether the run should stop."""
        if stop:
            self.directive = Directive.STOP
        self._watch()
        events, self.events = self.events, []
        return events

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self.asked_drained > DRAINED_EVERY_S:
            self.asked_drained, self.draining = now, _draining()
        watched = {rank: self.beats[rank] for rank in self.heard}
        for hang in hangs(watched, {rank: now - at for rank, at in self.heard.items()}, self.hang_timeout_s):
            rank = hang.beat.rank
            if rank not in self.hangs:
                self.hangs[rank] = hang
                self.ending[_end(hang.beat.pid, self.nodes[rank])] = rank
        over, _ = ray.wait(list(self.ending), num_returns=len(self.ending), timeout=0) if self.ending else ([], [])
        for task in over:
            self._ended(task, self.ending.pop(task))

    def _ended(self, task: Any, rank: int) -> None:
        """What was found of a process that hung; it is dead now, and Ray Train starts the group again."""
        try:
            state, stack = ray.get(task)
        except RayError:
            state, stack = "its node does not answer", ""
        if state == GONE:
            self.hangs.pop(rank, None)
        elif rank in self.hangs:
            self.hangs[rank] = hang = replace(self.hangs[rank], state=state, stack=stack)
            self.events.append({"kind": "note", "message": f"{hang.message}; process {hang.beat.pid} is killed"})


class Reporter:
    """Rank 0's `report`: sends without waiting, and answers what the mailbox last said.

    A step never waits for the mailbox's process, so a directive may arrive one event late.
    """

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox
        self.sent: list[Any] = []
        self.directive = Directive.CONTINUE

    def __call__(self, event: Event) -> Directive:
        self.sent.append(self.mailbox.post.remote(event))
        answered, self.sent = ray.wait(self.sent, num_returns=len(self.sent), timeout=0)
        if answered:
            # All of them: a wish for a checkpoint is answered once.
            self.directive = max(ray.get(answered), key=lambda one: one.value)
        return self.directive

    def flush(self) -> None:
        """Wait until every event has arrived."""
        ray.get(self.sent)


def _draining() -> set[str]:
    """Ids of nodes that are about to go. ray.train.get_preemption_info() would ask the same, as a barrier of all ranks."""
    from ray._private.state import state

    try:
        return set(state.get_draining_nodes())
    except (RuntimeError, OSError):  # the head does not answer just now
        return set()


def _lives(actor_id: str) -> bool:
    from ray._private.state import state

    return state.actor_table(actor_id).get("State") == "ALIVE"


def _end(pid: int, node_id: str) -> Any:
    """A task on that node which ends the process, whatever the process does."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(end).options(scheduling_strategy=there).remote(pid)
