"""init and schema: the first job file, and what an editor needs to complete it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from shoal.errors import Problem, SpecError

METHODS = ("lora", "qlora", "full")


def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The job file to write; - prints it.")] = "job.yaml",
    base: Annotated[
        str | None, typer.Option("--base", help="Model: hub id, folder, s3:// prefix or .gguf file.")
    ] = None,
    train: Annotated[str | None, typer.Option("--train", help="Data: a file or a glob, local or s3://.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run. Default: the file's name.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="lora, qlora or full. Default: lora.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a job file to start from. Asks for what is not given, when somebody can answer.

    Example:  shoal init job.yaml --base HuggingFaceTB/SmolLM2-135M-Instruct --train "data/*.jsonl"
    """
    import re

    from shoal.spec.starter import Answers, starting_job

    path = Path(file)
    if file != "-" and path.exists() and not force:
        raise SpecError(Problem(file, "is there already", "name another file, or write over it with --force"))
    asking = sys.stdin.isatty()
    missing = [
        Problem(option, "is missing", fix)
        for option, given, fix in (
            ("--base", base, "name the model to start from"),
            ("--train", train, "name the data to learn from"),
        )
        if given is None
    ]
    if missing and not asking:
        raise SpecError(*missing)
    model: str = base or typer.prompt("Model to start from (hub id, folder, s3:// prefix or .gguf file)")
    data: str = train or typer.prompt("Data to learn from (file or glob, local or s3://)")
    method = method or (typer.prompt("Method (lora, qlora, full)", default="lora") if asking and missing else "lora")
    if method not in METHODS:
        raise SpecError(Problem("--method", f"{method!r} is unknown", f"use one of {', '.join(METHODS)}"))
    plain = re.sub(r"[^a-z0-9]+", "-", (path.stem if file != "-" else "my-run").lower()).strip("-")[:40]
    answers = Answers(base=model, train=data, name=name or plain or "my-run", method=method)
    text = starting_job(answers)
    if file == "-":
        typer.echo(text, nl=False)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise SpecError(Problem(file, f"cannot be written: {error.strerror}", "name another file")) from None
    typer.echo(f"{file} is written. Next:  shoal check {file} --show 3     shoal plan {file}     shoal run {file}")


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="`job` or `cluster`.")] = "job",
) -> None:
    """Print the JSON Schema of job files or cluster profiles, so that an editor completes and checks them.

    Example:  shoal schema job > .schema/job.json   and in the job file:  # yaml-language-server: $schema=.schema/job.json
    """
    from shoal.spec.schema import schema as schema_of

    if kind not in ("job", "cluster"):
        raise SpecError(Problem("KIND", f"{kind!r} is unknown", "use job or cluster"))
    typer.echo(json.dumps(schema_of(kind), indent=1))
