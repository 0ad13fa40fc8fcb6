"""What a sweep costs beside its trials, and what ASHA and Optuna find where random search has the same tokens.

    python benchmarks/sweep.py            random, ASHA and Optuna, three seeds each (half an hour on two cores)
    python benchmarks/sweep.py --quick    one seed and half the tokens

jobs/sweep-lr.yaml's model and space over the 999 rows of Alpaca, two trials at once of one worker each, under an embedded
Ray. Each sweep ends when its trials together have seen the same number of tokens, those of eight whole trials; a trial
that ASHA stops leaves its tokens to others. The last line printed is one JSON object: `value` is the wall time that all
sweeps took, each as a command of its own, two trials at once counted twice; `ratio.trials` sets it against the sum of
their trials' own times, each from its beginning to its end: with half a minute a trial, a sweep's start weighs heavily.
`search` has the best losses of each way and seed; `ratio.random_loss` is the median of the better of ASHA and Optuna
over that of random search.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import yaml
from materials import BENCH, ROOT, alpaca
from running import finish, run

sys.path.insert(0, str(ROOT / "tests" / "support"))

import tiny

from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.tune.board import Board, board
from shoal.tune.folder import SweepFolder

FOLDER = BENCH / "sweep"
GOAL = {"trials": 1.1, "random_loss": 1.0}
AT_ONCE = 2
WHOLE_TRIALS = 8
WAYS = {
    "random": {"search": "random", "scheduler": "none"},
    "asha": {"search": "random", "scheduler": "asha", "asha": {"grace_period": 0.3}},
    "optuna": {"search": "optuna", "scheduler": "none"},
}
SEEDS = (17, 18, 19)


def materials() -> tuple[Path, Path]:
    """The job without its sweep section's search, and the profile; both as files."""
    model = tiny.llama(BENCH / "tiny" / "llama", tiny.tokenizer(BENCH / "tiny" / "tokenizer", tiny.gguf()))
    job = yaml.safe_load((ROOT / "jobs" / "sweep-lr.yaml").read_text())
    job["model"] = {"base": str(model)}
    job["train"] |= {"max_steps": 24, "eval_steps": 4}
    job["data"] |= {"train": str(alpaca()), "format": "instruction", "overlength": "truncate", "validation": 0.05}
    profile = {
        "kind": "local",
        "workers": AT_ONCE,
        "storage": {name: str(FOLDER / name) for name in ("runs", "prepared", "cache")},
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    (FOLDER / "profile.yaml").write_text(yaml.safe_dump(profile))
    return FOLDER / "job.yaml", FOLDER / "profile.yaml"


def sweep(way: str, seed: int, tokens: int | None, trials: int) -> tuple[float, Board]:
    """One sweep to its end: (wall seconds of the whole command, its leaderboard)."""
    name = f"{way}-{seed}-{trials}"
    job = yaml.safe_load((FOLDER / "job.yaml").read_text())
    own = {"seed": seed, "trials": trials, "workers": 1, **WAYS[way]}
    job["sweep"] = {"space": job["sweep"]["space"], **own} | ({"budget": {"tokens": tokens}} if tokens else {})
    path = FOLDER / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    command = [sys.executable, "-m", "shoal", "sweep", "run", str(path), "--on", str(FOLDER / "profile.yaml")]
    began = time.perf_counter()
    run([*command, "--run-id", name], FOLDER / "logs" / f"{name}.log", os.environ | {"HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - began
    found = board(SweepFolder.of(Storage(), str(FOLDER / "runs"), name))
    for row in found.rows:
        shutil.rmtree(RunFolder(Storage(), str(FOLDER / "runs" / row.run)).checkpoints, ignore_errors=True)
    return seconds, found


def told(way: str, seed: int, seconds: float, found: Board) -> dict[str, object]:
    winner = found.winner
    own = [row.seconds for row in found.rows if row.seconds is not None]
    starts = [row.start_s for row in found.rows if row.start_s is not None]
    return {
        "way": way,
        "seed": seed,
        "loss": None if winner is None else found.score(winner),
        "trials": len(found.rows),
        "finished": found.count("finished"),
        "stopped": found.count("stopped"),
        "failed": found.count("failed"),
        "tokens": sum(row.tokens for row in found.rows),
        "wall_s": round(seconds, 1),
        "trials_s": round(sum(own), 1),
        "first_start_s": starts[0] if starts else None,
        "later_start_s": round(statistics.median(starts[AT_ONCE:]), 2) if len(starts) > AT_ONCE else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/sweep.json")
    given = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    materials()
    _, one = sweep("random", 1, None, AT_ONCE)  # warms up, prepares the data, and says what a whole trial reads
    whole = max(row.tokens for row in one.rows)
    trials = WHOLE_TRIALS // 2 if given.quick else WHOLE_TRIALS
    rows = []
    for seed in SEEDS[: 1 if given.quick else None]:
        for way in WAYS:
            budget = None if way != "asha" else trials * whole
            seconds, found = sweep(way, seed, budget, trials if budget is None else 8 * trials)
            rows.append(told(way, seed, seconds, found))
            print(rows[-1], flush=True)
    wall, own = (sum(row[name] for row in rows) for name in ("wall_s", "trials_s"))
    losses = {way: [row["loss"] for row in rows if row["way"] == way] for way in WAYS}
    medians = {way: statistics.median(each) for way, each in losses.items()}
    better = min(medians["asha"], medians["optuna"])
    ratio = {"trials": round(AT_ONCE * wall / own, 3), "random_loss": round(better / medians["random"], 4)}
    finish(
        {
            "name": "sweep",
            "value": round(AT_ONCE * wall, 1),
            "unit": "seconds of wall time of all sweeps, for each of two trials at once",
            "against": {"trials": round(own, 1), "random_loss": medians["random"]},
            "ratio": ratio,
            "goal": GOAL,
            "met": all(ratio[name] <= GOAL[name] for name in GOAL),
            "repeats": len(rows),
            "search": {way: {"losses": losses[way], "median": medians[way]} for way in WAYS},
            "sweeps": rows,
            "prepared": len(list((FOLDER / "prepared").iterdir())),
            "trials_on_it": sum(row["trials"] for row in rows) + len(one.rows),
            "quick": given.quick,
        },
        given.out,
    )


if __name__ == "__main__":
    main()
