"""`shoal sweep --on` a profile of kind kuberay: as a run, but that its driver tells of trials and of a leaderboard."""

import json
import os
import signal

from kube_api import Cluster, Scene
from kube_scenes import COMPLETE, FIRST, GOOD, RUN, RUNNING, SPOKEN, Tell, line, run

from shoal.cli.relay import board_event
from shoal.tune.board import Board, Point, Standing

SWEEP = ("--set", "sweep={space: {lora.r: [8, 16]}, search: grid}")


def standing(number: int, rank: int, loss: float) -> Standing:
    return Standing(
        number=number, run=f"{RUN}-{number:04}", params={"lora.r": rank}, state="finished", why="", metric=loss, best=loss,
        step=9, tokens=900, seconds=12.0, start_s=3.0, retries=0, curve=(Point(9, 900, loss),),
    )  # fmt: skip


BOARD = Board(
    sweep=RUN, folder=f"s3://shoal/runs/{RUN}", metric="validation.loss", mode="min", trials=2, running=True,
    takes_best=False, rows=(standing(1, 8, 2.5), standing(2, 16, 2.25)),
)  # fmt: skip
TRIALS = [
    line("sweep", sweep=RUN, folder=BOARD.folder, metric=BOARD.metric, mode="min", trials=2),
    *(
        told
        for row in BOARD.rows
        for told in (
            line("trial", trial=row.number, run=row.run, params=row.params),
            line("step", trial=row.number, step=9, steps=9, loss=2.0),
            line("trial_end", trial=row.number, state="finished", why="", metric=row.metric, step=9),
        )
    ),
]
LAST = {name: value for name, value in board_event(BOARD, finished=True).items() if name != "kind"}
SWEPT = [
    *GOOD[:3],
    Scene(log=[*FIRST, *TRIALS]),
    Scene(COMPLETE, pods=SPOKEN, log=[*FIRST, *TRIALS, line("outcome", **LAST)]),
]


def sweep(tell: Tell, *words: str) -> tuple[int, str, str]:
    return run(tell, *SWEEP, *words, verb="sweep")


def test_a_sweep_is_applied_followed_by_its_trials_and_cleared_away(cluster: Cluster, tell: Tell) -> None:
    cluster.script = list(SWEPT)
    status, out, err = sweep(tell)
    assert status == 0, out + err
    for said in ("the driver is up", "trial 1: lora.r=8", "trial 2: finished at step 9, validation.loss 2.2500"):
        assert out.count(said) == 1, out
    assert "2 of 2 trials: 2 finished" in out and "shoal sweep best a-run --on p.yaml" in out
    (job,) = (one for (kind, _), one in cluster.objects.items() if kind == "rayjobs")
    assert job["spec"]["entrypoint"].startswith("shoal sweep run ")
    assert job["spec"]["entrypoint"].endswith(f" --run-id {RUN} --events")
    assert not cluster.named("configmaps")


def test_a_sweep_is_left_found_again_and_told_as_json(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [*SWEPT[:3], Scene(then=lambda: os.kill(os.getpid(), signal.SIGINT)), *[Scene()] * 3]
    status, _, err = sweep(tell)
    assert status == 130 and "detached: a-run goes on; watch it with  shoal logs a-run --follow --on p.yaml" in err
    cluster.script = SWEPT[3:]
    status, out, err = tell("logs", "a-r", "--follow", "--json")
    assert status == 0 and "trial 2: finished" in err
    body = json.loads(out)
    assert body["winner"] == 2 and [row["score"] for row in body["rows"]] == [2.25, 2.5]


def test_a_sweep_goes_on_as_a_sweep(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [Scene(RUNNING)]
    assert sweep(tell, "--detach")[0] == 0
    status, _, err = tell("resume", RUN)
    assert status == 2 and "a-run: is a sweep; `shoal sweep resume a-run` goes on with it" in err
    status, _, err = tell("sweep", "resume", RUN)
    assert status == 5 and "its folder cannot be read from here; use its job file again, with --run-id a-run" in err


def test_what_cannot_work_is_told_here_although_the_store_is_out_of_sight(cluster: Cluster, tell: Tell) -> None:
    status, _, err = sweep(tell, "--set", "sweep.workers=64")
    assert status == 2 and "error: sweep.workers: 64 for each trial, but the profile has 2; use at most 2" in err
    assert not cluster.asked
