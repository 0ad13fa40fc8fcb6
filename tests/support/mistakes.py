"""A mistake, what must be said of it, and the folder full of mistakes that the tests here are made in."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from plans import small_plan

UNFINISHED = "tiny-20260101-000000-abcd"
"""A run that has begun, and no more."""
SOUND: dict[str, Any] = {
    "name": "tiny",
    "model": {"base": "sound"},
    "method": "lora",
    "data": {"train": "rows.jsonl", "sequence_length": 96},
    "train": {"batch_size": 4, "max_steps": 2, "self_check": False},
}
"""The job without a mistake."""


@dataclass(frozen=True)
class Case:
    """One mistake. `{place}` in what must be said stands for the folder."""

    name: str
    says: tuple[str, ...]
    """What stderr must hold."""
    change: dict[str, Any] = field(default_factory=dict)
    """Sections of the job that differ from SOUND."""
    text: str | bytes | None = None
    """The whole job file instead."""
    command: tuple[str, ...] = ("plan", "job.yaml")
    on: str | None = "here.yaml"
    status: int = 2
    never: tuple[str, ...] = ()
    """What must not be said."""

    def __str__(self) -> str:
        return self.name

    @property
    def words(self) -> list[str]:
        return [*self.command, *(["--on", self.on] if self.on else [])]


def write_job(folder: Path, case: Case) -> None:
    body = dict(SOUND)
    for name, value in case.change.items():
        body[name] = {**body[name], **value} if isinstance(body.get(name), dict) else value
    text = yaml.safe_dump(body, sort_keys=False) if case.text is None else case.text
    (folder / "job.yaml").write_bytes(text.encode() if isinstance(text, str) else text)


def messages(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def write_profile(path: Path, s3: dict[str, Any] | None = None, **places: str) -> None:
    names = {name: str(path.parent / name) for name in ("runs", "prepared", "cache")} | places
    path.write_text(yaml.safe_dump({"kind": "inline", "storage": {**names, **({"s3": s3} if s3 else {})}}))


def fill(folder: Path, sound: Path) -> None:
    """Data, models and profiles, sound and unsound ones; `sound` is a model."""
    (folder / "sound").symlink_to(sound)
    good = [messages(f"what of fish {number}?", f"fish {number} follows the shoal") for number in range(20)]
    write_lines(folder / "rows.jsonl", good)
    unfit = ["{not json", {"messages": "hello"}, {"messages": [{"role": "user", "content": "why?"}]}]
    unfit += [messages("why?", ""), {"text": "no messages"}, messages("why?", "because " * 200)]
    write_lines(folder / "bad.jsonl", [*good[:10], *unfit, *good[10:]])
    write_lines(folder / "broken.jsonl", ["{oops", "[1]"])
    write_lines(folder / "questions.jsonl", [{"messages": [{"role": "user", "content": "why?"}]}] * 10)
    write_lines(folder / "long.jsonl", [messages("why " * 200, "so")] * 20)
    write_lines(folder / "odd.jsonl", [{"question": "why?", "response": "so"}])
    write_lines(folder / "one.jsonl", good[:1])
    for name, text in (("empty.jsonl", ""), ("notes.txt", "hello"), ("x.parquet", "none")):
        (folder / name).write_text(text)
    (folder / "sub").mkdir()
    for name in ("plain", "cut", "unreadable"):
        shutil.copytree(sound, folder / name)
    _unfit_models(folder)
    _unfit_profiles(folder)
    run = folder / "runs" / UNFINISHED
    run.mkdir(parents=True)
    (run / "plan.json").write_text(small_plan(folder, run_id=UNFINISHED).model_dump_json())


def _unfit_models(folder: Path) -> None:
    (folder / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "plain" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "plain" / "tokenizer_config.json").write_text(json.dumps(settings))
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (folder / "unreadable" / "config.json").unlink()
    (folder / "unreadable" / "config.json").symlink_to("/proc/self/mem")  # reading it fails, also for root


def _unfit_profiles(folder: Path) -> None:
    write_profile(folder / "here.yaml")
    write_profile(folder / "none.yaml", runs=str(folder / "none"))
    write_profile(folder / "file.yaml", prepared=str(folder / "rows.jsonl" / "prepared"))
    write_profile(folder / "sys.yaml", prepared="/sys/shoal/prepared")
    (folder / "wrong.yaml").write_text("kind: local\nworkers: two\nnum_cpus: 4\n")
    (folder / "k8s.yaml").write_text("kind: k8s\nworkers: 2\n")
