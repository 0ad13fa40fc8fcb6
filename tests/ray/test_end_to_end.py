"""Whole runs on two Ray workers, left in every way a run can be left: each goes on to the losses of one never touched."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import rebuilt
import torch
from command import Command, left_running, write
from jobs import job, planned, profile, write_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from shoal import launch
from shoal.backends.inline import Inline
from shoal.backends.ray_local import RayLocal
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.storage import Storage
from shoal.train import entry
from shoal.train.journal import Journal
from shoal.train.manifest import newest
from shoal.train.voice import Voice
from shoal.train.world import Directive, Event, Pulse, World

pytestmark = pytest.mark.ray

STEPS = 24
"""Enough that a signal sent at the first checkpoints finds the run training."""
IDS = torch.arange(1000, 1040)
Losses = dict[int, float]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("runs")
    write_rows(where / "rows.jsonl")
    return where


@pytest.fixture(scope="module")
def spec(folder: Path, tiny_model: Path) -> Callable[[str], JobSpec]:
    def make(method: str) -> JobSpec:
        return job(
            tiny_model,
            folder / "rows.jsonl",
            method=method,
            train={"num_train_epochs": 20, "max_steps": STEPS, "eval_steps": 1000, "self_check": method != "full"},
            checkpoint={"every_steps": 2, "keep": 3},
            export={"merge": method == "qlora"},
        )

    return make


@pytest.fixture(scope="module")
def untouched(folder: Path, spec: Callable[[str], JobSpec]) -> Callable[[str], Losses]:
    """The losses of the whole job on one worker, without Ray and without interruption; each method's once."""
    known: dict[str, Losses] = {}

    def losses(method: str) -> Losses:
        if method not in known:
            plan = planned(spec(method), profile(folder), f"untouched-{method}-20260101-000000-0000")
            storage = Storage()
            run = RunFolder(storage, plan.storage.run)
            voice = Voice(lambda event: Directive.CONTINUE, Journal(plan, run, storage), Pulse())
            entry.Worker(plan, World(), storage, run, voice).load().run()
            voice.close()
            known[method] = {row["step"]: row["loss"] for row in steps(run)}
        return known[method]

    return losses


@pytest.fixture(scope="module")
def ray_place(folder: Path) -> Iterator[ClusterProfile]:
    """Two workers on one Ray that serves every run of this process; at the end none of its processes is left."""
    before = set(psutil.Process().children(recursive=True))
    place = profile(folder, 2, "local")
    backend = RayLocal(place)
    backend.start()
    assert backend.up is not None
    backend.up.result()
    yield place
    processes = [one for one in psutil.Process().children(recursive=True) if one not in before]
    assert any("raylet" in one.name() for one in processes)
    backend.close()
    assert left_running(processes) == []


def steps(run: RunFolder) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path(run.metrics).read_text().splitlines()]
    return [row for row in rows if row["kind"] == "step"]


def same_losses(run: RunFolder, expected: Losses) -> None:
    """Every step once, in order, with the loss that it has without interruption."""
    found = steps(run)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1)) == list(expected)
    worst = max(abs(row["loss"] - expected[row["step"]]) for row in found)
    assert worst < 1e-4
    assert expected[STEPS] < expected[1] - 0.2


def went_on_from(run: RunFolder) -> list[int]:
    """The step of the checkpoint that each later attempt began with."""
    notes = [json.loads(line).get("message", "") for line in Path(run.events).read_text().splitlines()]
    return [int(found[1]) for note in notes if (found := re.fullmatch(r"going on from .* step (\d+)", note))]


def run_by_command(spec: JobSpec, folder: Path) -> tuple[RunFolder, dict[str, Any]]:
    """`shoal run` as a process; rank 0, which keeps the journal, is killed at the first checkpoint."""
    place = profile(folder, 2, "local")
    arguments = ["run", write(folder / "job.yaml", spec), "--on", write(folder / "ray.yaml", place), "--json"]
    command = Command(arguments, folder)
    pids = re.findall(r"\d+", command.until("2 workers up").partition("process")[2])
    command.until("checkpoint of step 2 ")
    family = command.family()
    assert int(pids[0]) in {one.pid for one in family}
    os.kill(int(pids[0]), signal.SIGKILL)
    told = command.until("starting again from the newest checkpoint (try 1 of 3)")
    assert "worker 0 died on " in told
    command.until("2 workers up")
    family += command.family()
    assert command.end() == 0, command.said
    assert left_running(family) == []
    return RunFolder(Storage(), command.json["folder"]), command.json


def run_in_process(spec: JobSpec, place: ClusterProfile, rank: int) -> tuple[RunFolder, dict[str, Any]]:
    """The same flow on the Ray of this process; `rank` is killed at the first checkpoint."""
    pids: dict[int, int] = {}

    def on_event(event: Event) -> None:
        if "pids" in event:
            pids.update({each: pid for each, pid in event["pids"].items() if each not in pids})
        if event["kind"] == "checkpoint" and pids.get(rank):
            os.kill(pids[rank], signal.SIGKILL)
            pids[rank] = 0

    backend = RayLocal(place)
    backend.start()
    outcome = launch.run(spec, place, Storage(), backend, on_event, threading.Event())
    assert pids[rank] == 0
    return outcome.folder, asdict(outcome.result)


@pytest.mark.parametrize(("method", "rank"), [("full", 0), ("lora", 1), ("qlora", 0)])
def test_a_killed_worker_is_replaced_and_the_export_is_what_was_trained(
    method: str, rank: int, folder: Path, spec: Callable[[str], JobSpec], untouched: Callable[[str], Losses], request
) -> None:
    if method == "full":
        run, result = run_by_command(spec(method), folder)
    else:
        run, result = run_in_process(spec(method), request.getfixturevalue("ray_place"), rank)
    assert (result["state"], result["step"]) == ("finished", STEPS)
    (step,) = went_on_from(run)
    assert 2 <= step < STEPS and step % 2 == 0
    assert {row["attempt"] for row in steps(run) if row["step"] <= step} == {1}
    assert {row["attempt"] for row in steps(run) if row["step"] > step} == {2}
    same_losses(run, untouched(method))
    gate = result["gate"]
    assert gate["passed"] and gate["max_relative_difference"] <= gate["tolerance"] <= 1e-4
    exports_are_what_was_trained(run, result)


def exports_are_what_was_trained(run: RunFolder, result: dict[str, Any]) -> None:
    """Plain transformers and peft on the exported folders, against arithmetic on the last checkpoint's tensors."""
    plan = Plan.model_validate_json(Path(run.plan).read_text())
    base, trained = plan.trajectory.model.base, rebuilt.parameters(run, STEPS)
    export = Path(result["export"])
    if plan.trajectory.method == "full":
        reloaded = AutoModelForCausalLM.from_pretrained(export)
    else:
        how = plan.trajectory.quantization
        config = BitsAndBytesConfig(load_in_4bit=True, **how.model_dump()) if how else None
        start = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
        # Without dropout train() computes what eval() does; but in eval() some CPUs multiply 4-bit weights in bf16.
        reloaded = PeftModel.from_pretrained(start, export).train()
    close(reloaded, rebuilt.model(base, plan, trained, quantized=plan.trajectory.method == "qlora"))
    far_from(reloaded, AutoModelForCausalLM.from_pretrained(base))
    if plan.trajectory.method == "qlora":
        merged = result["gate"]["merged"]
        assert merged["passed"] and merged["max_relative_difference"] <= merged["tolerance"]
        assert 1e-4 < merged["gap_to_4bit"]["max_relative_difference"] < 1
        stored = AutoModelForCausalLM.from_pretrained(merged["url"])
        close(stored, rebuilt.model(base, plan, trained, quantized=False))


def difference(one: Any, other: Any) -> float:
    """The largest difference of logits on fixed tokens, relative to the largest logit."""
    found, wanted = rebuilt.logits(one, IDS), rebuilt.logits(other, IDS)
    return float((found - wanted).abs().max() / wanted.abs().max())


def close(one: Any, other: Any) -> None:
    assert difference(one, other) < 1e-4


def far_from(one: Any, other: Any) -> None:
    """Training moved the logits: equality above is not that of two untrained models."""
    assert difference(one, other) > 1e-2


def test_a_run_whose_driver_was_killed_is_resumed_on_one_worker(
    folder: Path, spec: Callable[[str], JobSpec], untouched: Callable[[str], Losses]
) -> None:
    place = write(folder / "ray.yaml", profile(folder, 2, "local"))
    command = Command(["run", write(folder / "job.yaml", spec("lora")), "--on", place], folder)
    run = RunFolder(Storage(), command.until(" run tiny-").rpartition(" in ")[2])
    command.until("checkpoint of step 4 ")
    # Ray and its workers go with the driver; its agents, which run nothing, try to tell of it for a minute.
    family = [one for one in command.family() if not one.name().endswith("Agent")]
    command.process.kill()
    command.end()
    assert left_running(family) == []

    inline = write(folder / "inline.yaml", profile(folder))
    command = Command(["resume", run.id, "--on", inline, "--json"], folder)
    assert command.end() == 0, command.said
    assert command.json["run"] == run.id and command.json["gate"]["passed"]
    assert went_on_from(run)[0] >= 4
    same_losses(run, untouched("lora"))

    command = Command(["resume", run.id, "--on", inline], folder)
    assert command.end() == 2
    assert len(command.lines) == 1 and "is finished: there is nothing to resume" in command.said


def test_ctrl_c_saves_and_says_how_to_go_on_and_so_does_a_worker_that_dies_too_often(
    folder: Path, spec: Callable[[str], JobSpec], untouched: Callable[[str], Losses]
) -> None:
    place = profile(folder, 2, "local").model_copy(update={"max_failures": 0})
    where = write(folder / "once.yaml", place)
    command = Command(["run", write(folder / "job.yaml", spec("lora")), "--on", where], folder)
    run = RunFolder(Storage(), command.until(" run tiny-").rpartition(" in ")[2])
    command.until("checkpoint of step 2 ")
    family = command.family()
    command.process.send_signal(signal.SIGINT)
    assert command.end() == 130, command.said
    assert left_running(family) == []
    stopped = newest(Storage(), run)
    assert stopped is not None and stopped.step == steps(run)[-1]["step"] < STEPS
    (options,) = re.findall(r"go on with +shoal (resume \S+ --on \S+)", command.said)

    command = Command(options.split(), folder)
    pids = re.findall(r"\d+", command.until("2 workers up").partition("process")[2])
    command.until("checkpoint of step")
    os.kill(int(pids[1]), signal.SIGKILL)
    assert command.end() == 8, command.said
    (answer,) = [line for line in command.lines if line.startswith("error: ")]
    assert "worker 1 died" in answer and f"`shoal resume {run.id}`" in answer
    assert command.lines[-1] == answer and "Traceback" not in command.said

    launch.resume(run.id, profile(folder), Storage(), Inline(), lambda event: None, threading.Event())
    assert went_on_from(run)[0] == stopped.step
    same_losses(run, untouched("lora"))
