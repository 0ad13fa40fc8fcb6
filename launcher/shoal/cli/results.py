"""chat and export: what one does with a result."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.common import Json, On, Run, console, profile_name, storage_of

if TYPE_CHECKING:
    from rich.console import Console

Answer = Callable[[list[dict[str, str]], bool], Iterator[str]]
"""(messages, whether the base is asked) -> pieces of the answer."""

ExportMerge = Annotated[bool, typer.Option("--merge", help="Merge the adapter into its base: one full model.")]


def chat(
    run: Run,
    on: On = None,
    base: Annotated[bool, typer.Option("--base", help="Let the base model answer beside it.")] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Ask once and leave, rather than talk.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    as_json: Json = False,
) -> None:
    """Talk to a result; an empty line or Ctrl-D leaves, /new forgets what was said.

    Example:  shoal chat quickstart --base --prompt "What is AI?"
    """
    from shoal.backends.inline import quiet
    from shoal.runs import find_run
    from shoal.spec.load import load_profile

    profile = load_profile(profile_name(on))
    out = console(as_json)
    with storage_of(profile) as storage:
        folder = find_run(storage, profile.storage.runs, run)
        quiet()
        with out.status(f"loading {folder.id}"):
            answer = _loaded(folder, storage, base, max_new_tokens)
        if prompt is None:
            _talk(answer, base, out)
            return
        messages = [{"role": "user", "content": prompt}]
        if as_json:
            told = {"prompt": prompt, "answer": "".join(answer(messages, False))}
            if base:
                told["base"] = "".join(answer(messages, True))
            typer.echo(json.dumps(told, indent=1, ensure_ascii=False))
            return
        _say(answer, messages, base, out)


def export(run: Run, on: On = None, merge: ExportMerge = False, as_json: Json = False) -> None:
    """Say where a run's export lies; with --merge also write adapter and base as one full model, and compare it.

    Example:  shoal export quickstart --merge
    """
    from shoal.backends.inline import quiet
    from shoal.display import gate_words
    from shoal.errors import Problem, SpecError
    from shoal.record.ending import read_result
    from shoal.runs import find_run
    from shoal.spec.load import load_profile

    profile = load_profile(profile_name(on))
    out = console(as_json)
    with storage_of(profile) as storage:
        folder = find_run(storage, profile.storage.runs, run)
        if merge:
            quiet()
            from shoal.train.export import merge_run

            with out.status(f"merging the adapter of {folder.id} into its base"):
                figures = merge_run(folder, storage)
        elif storage.exists(folder.result):
            result = read_result(folder)
            figures = {**(result.get("gate") or {}), "url": result["export"]}
        else:
            raise SpecError(Problem(folder.id, "has no export yet", f"finish it: shoal resume {folder.id}"))
    if as_json:
        typer.echo(json.dumps({"run": folder.id, **figures}, indent=1))
        return
    out.print(f"{figures['url']}\nexport gate {gate_words(figures)}", markup=False)
    if str(figures["url"]).startswith("s3://"):
        out.print(f"to have it as a folder:  shoal store get {figures['url']}/ FOLDER", markup=False)


def _loaded(folder: Any, storage: Any, with_base: bool, max_new_tokens: int) -> Answer:
    from shoal.infer.generate import stream
    from shoal.infer.load import load, load_base

    model, tokenizer = load(folder, storage)
    has_adapter = hasattr(model, "disable_adapter")
    other = load_base(folder, storage) if with_base and not has_adapter else model

    def answer(messages: list[dict[str, str]], base: bool) -> Iterator[str]:
        asked = other if base else model
        return stream(asked, tokenizer, messages, max_new_tokens, base=base and has_adapter)

    return answer


def _talk(answer: Answer, base: bool, out: "Console") -> None:
    messages: list[dict[str, str]] = []
    while True:
        try:
            asked = out.input("[bold cyan]you[/] ").strip()
        except EOFError:
            out.print()
            return
        if not asked:
            return
        if asked == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": asked})
        said = _say(answer, messages, base, out)
        messages.append({"role": "assistant", "content": said})


def _say(answer: Answer, messages: list[dict[str, str]], base: bool, out: "Console") -> str:
    """Print the answer as it comes (the base's first, when asked for); Ctrl-C cuts an answer short."""
    said = ""
    for name, is_base in (("base", True), ("tuned", False)) if base else (("", False),):
        if name:
            out.print(f"[bold]{name:<5}[/] ", end="")
        pieces: list[str] = []
        try:
            for piece in answer(messages, is_base):
                piece = piece if pieces else piece.lstrip()
                if not piece:
                    continue
                pieces.append(piece)
                out.print(piece, end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            out.print(" ...", end="")
        out.print()
        said = "".join(pieces)
    return said
