"""What a person is told of a mistake in a file or a command: the exit status, and the sentence that says what to change."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mistakes import UNFINISHED, Case

from shoal import cli

FOREIGN = Path(__file__).parent / "foreign"
LITERAL = "hf_" + "aB3" * 11
"""What a token looks like; nobody's."""

SPEC = [
    Case(
        "unknown key",
        (
            "job.yaml:12 train.batch_sise: is not a field of `train`; did you mean `train.batch_size`?",
            "job.yaml:13 optimiser: is not a field of the file; did you mean `optimizer`?",
        ),
        {"train": {"batch_sise": 4}, "optimiser": {"learning_rate": 1e-4}},
    ),
    Case(
        "wrong type",
        ("job.yaml:9 train.batch_size: is the text 'four'; allowed: a whole number from 1",),
        {"train": {"batch_size": "four"}},
    ),
    Case(
        "three at once",
        (
            "job.yaml:9 train.batch_size: is 0; allowed: a whole number from 1",
            "job.yaml:12 train.sed: is not a field of `train`; did you mean `train.seed`?",
            "optimizer.learning_rate: is -1; allowed: a number above 0",
        ),
        {"train": {"batch_size": 0, "sed": 1}, "optimizer": {"learning_rate": -1}},
    ),
    Case(
        "job and profile at once",
        ("did you mean `train.batch_size`?", "nowhere.yaml: there is no such profile"),
        {"train": {"batch_sise": 4}},
        on="nowhere.yaml",
    ),
    Case(
        "unreadable YAML",
        ("job.yaml:2:15: cannot be read as YAML: mapping values are not allowed here", "needs quotes"),
        text="name: tiny\nmodel: a model: b\n",
    ),
    Case(
        "an open bracket", ("job.yaml:3:5: cannot be read as YAML", "close"), text="name: x\nmodel: {base: y\ndata: 3\n"
    ),
    Case("no text", ("job.yaml: is not text that YAML allows", "save it as UTF-8"), text=b"name: \xff\xfe\x00"),
    Case("an empty file", ("job.yaml: the file is empty", "`shoal init` writes a job file"), text="# nothing\n"),
    Case(
        "missing job file",
        ("jobb.yaml: there is no such job file; did you mean job.yaml?",),
        command=("plan", "jobb.yaml"),
    ),
    Case("a folder as job", ("sub: is a folder; name a file",), command=("run", "sub")),
    Case(
        "a literal secret",
        ("job.yaml:4 model.token: a Hugging Face token in plain text (not shown here)", "`env:NAME` or `file:PATH`"),
        {"model": {"token": LITERAL}},
        never=(LITERAL, LITERAL[3:]),
    ),
    Case(
        "a secret that is not set",
        ("model.token: the environment variable NOBODY_SET_THIS is not set; export NOBODY_SET_THIS=...",),
        {"model": {"base": "someorg/model", "token": "env:NOBODY_SET_THIS"}},
    ),
    Case(
        "--set of an unknown field",
        ("--set train.batch_sz: is not a field of `train`; did you mean `train.batch_size`?",),
        command=("plan", "job.yaml", "--set", "train.batch_sz=4"),
    ),
    Case(
        "--set without =",
        ("--set train.batch_size: gives no field a value; write --set FIELD=VALUE",),
        command=("plan", "job.yaml", "--set", "train.batch_size"),
    ),
    Case(
        "--set into a value",
        ("--set train.batch_size.rows: `rows` would go inside a whole number; set the whole value instead",),
        command=("plan", "job.yaml", "--set", "train.batch_size.rows=4"),
    ),
    Case("a mistyped profile", ("locale: there is no such profile; did you mean `local`?",), on="locale"),
    Case(
        "no profile",
        ("nowhere/here.yaml: there is no such profile", "`local` and `inline` need no file"),
        on="nowhere/here.yaml",
    ),
    Case(
        "a profile with a mistake",
        ("wrong.yaml:2 workers: is the text 'two'; allowed: a whole number from 1", "wrong.yaml:3 num_cpus: "),
        on="wrong.yaml",
    ),
    Case(
        "a cluster by another name",
        ("k8s.yaml:1 kind: is the text 'k8s'; write `kuberay`: pods under the KubeRay operator",),
        on="k8s.yaml",
    ),
    Case(
        "longer than the model",
        ("data.sequence_length: 9999 is more than the model's max_position_embeddings, 512; use at most 512",),
        {"data": {"sequence_length": 9999}},
    ),
    Case(
        "no such modules",
        (
            "lora.target_modules: qq_proj is no layer of LlamaForCausalLM; did you mean q_proj?",
            "lora.target_modules: c_attn is no layer of LlamaForCausalLM; it has down_proj, ",
        ),
        {"lora": {"target_modules": ["qq_proj", "c_attn"]}},
    ),
    Case(
        "no chat template",
        ("data.format: messages need a chat template, and the tokenizer of plain has none; name one in data",),
        {"model": {"base": "plain"}},
    ),
    Case("an unknown verb", ("No such command 'pln'. Did you mean 'plan'?",), command=("pln",), on=None),
    Case("an unknown option", ("No such option: --sett",), command=("plan", "job.yaml", "--sett", "a=1")),
    Case("no job", ("Missing argument 'JOB'", "plan -h' for help."), command=("plan",), on=None),
]


RUNS = [
    Case(
        "resume of no run",
        ("nobody: no run in {place}/runs begins so; the newest are " + UNFINISHED,),
        command=("resume", "nobody"),
    ),
    Case("chat with no run", ("nobody: no run in {place}/runs begins so",), command=("chat", "nobody")),
    Case("export of no run", ("nobody: no run in {place}/runs begins so",), command=("export", "nobody", "--merge")),
    Case(
        "a run mistyped",
        (f"tiny-2027: no run in {{place}}/runs begins so; did you mean {UNFINISHED}?",),
        command=("chat", "tiny-2027"),
    ),
    Case(
        "no runs at all",
        ("nobody: there are no runs in {place}/none; start one with `shoal run JOB`",),
        command=("chat", "nobody"),
        on="none.yaml",
    ),
    Case(
        "chat with an unfinished run",
        (f"{UNFINISHED}: is not finished: it has no model yet; finish it: shoal resume {UNFINISHED}",),
        command=("chat", "tiny", "--prompt", "hello"),
    ),
    Case(
        "export of an unfinished run",
        (f"{UNFINISHED}: has no export yet; finish it: shoal resume",),
        command=("export", "tiny"),
    ),
]


@pytest.mark.parametrize("case", [*SPEC, *RUNS], ids=str)
def test_a_mistake_is_answered(tell: Callable[[Case], None], case: Case) -> None:
    tell(case)


@pytest.mark.parametrize("tool", ["axolotl", "llama-factory", "trl"])
def test_another_tools_file_is_answered_key_by_key_in_one_go(
    place: Path, tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = FOREIGN / f"{tool}.yaml"
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["shoal", "plan", str(file), "--on", "here.yaml"])
    assert cli._status() == 2
    lines = capsys.readouterr().err.splitlines()
    answers = {match[1]: line for line in lines if (match := re.match(rf"error: {file}:\d+ (\w+): ", line))}
    keys = yaml.safe_load(file.read_text()).keys()
    assert keys - answers.keys() == set()
    assert [line for line in answers.values() if "its fields are" in line] == []
    assert [line for line in answers.values() if "; " not in line] == []  # what to change


BROKEN = """
import sys
from shoal import cli
from shoal.spec import load
def broken(*given): raise RuntimeError("a wheel came off\\nand rolled away")
load.load_job = broken
cli.main()
"""
"""The console entry point, after a bug was put into it."""


@pytest.mark.parametrize("home", ["home", "rows.jsonl"])
def test_a_bug_of_ours_is_one_line_and_a_file(place: Path, tmp_path: Path, home: str) -> None:
    (tmp_path / "rows.jsonl").write_text("no folder can be made in here")
    command = [sys.executable, "-c", BROKEN, "plan", "job.yaml", "--on", "here.yaml"]
    environment = {**os.environ, "HOME": str(tmp_path / home), "SHOAL_DEBUG": ""}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("this is a bug of Shoal: RuntimeError: a wheel came off; ")
    assert len(done.stderr.splitlines()) == 1
    if home == "home":
        [file] = (tmp_path / "home/.shoal/cache/bugs").iterdir()
        assert f"the traceback is in {file}" in done.stderr
        assert "Traceback (most recent call last)" in file.read_text()
    else:
        assert "its traceback could not be written" in done.stderr
        assert "SHOAL_DEBUG=1 shows it" in done.stderr
