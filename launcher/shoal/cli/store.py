"""store ls | put | get | rm: a look into the profile's object store."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.common import Json, On, Yes, console, profile_name, storage_of
from shoal.errors import Problem, SpecError

app = typer.Typer(
    help="Look into the object store, put files there and get them back.\n\n"
    "Example:  shoal store put data/*.jsonl s3://shoal/data/     shoal store ls s3://shoal/data/",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Url = Annotated[str, typer.Argument(metavar="URL", help="s3://BUCKET/KEY or a local path; a folder ends in /.")]


@app.command()
def ls(
    url: Url = "s3://shoal/",
    on: On = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Everything below.")] = False,
    as_json: Json = False,
) -> None:
    """List a folder, a glob or one object.

    Example:  shoal store ls s3://shoal/runs/     shoal store ls "s3://shoal/data/*.jsonl"
    """
    from shoal.display import size
    from shoal.spec.load import load_profile
    from shoal.storage import join

    with storage_of(load_profile(profile_name(on))) as storage:
        is_glob = any(sign in url for sign in "*?[")
        if not is_glob and not url.endswith("/") and not storage.exists(url):
            url += "/"
        flat = recursive or is_glob or not url.endswith("/")
        folders = [] if flat else storage.folders(url)
        objects = storage.list(url if flat else join(url, "*"))
    if as_json:
        typer.echo(json.dumps({"folders": folders, "objects": [asdict(one) for one in objects]}, indent=1))
        return
    for folder in folders:
        typer.echo(f"{'':>10}  {folder}")
    for one in objects:
        typer.echo(f"{size(one.size):>10}  {one.url}")
    if not folders and not objects:
        typer.echo(f"nothing in {url}", err=True)


@app.command()
def put(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files, or folders with all that is in them.")],
    url: Url,
    on: On = None,
) -> None:
    """Copy local files into the store. To a URL that ends in / they keep their names.

    Example:  shoal store put train.jsonl s3://shoal/data/
    """
    from shoal.spec.load import load_profile
    from shoal.storage import join

    missing = [Problem(str(path), "there is no such file or folder") for path in files if not path.exists()]
    if missing:
        raise SpecError(*missing)
    if not url.endswith("/") and (len(files) > 1 or files[0].is_dir()):
        raise SpecError(Problem(url, "would hold several files", f"write it as a folder: {url}/"))
    with storage_of(load_profile(profile_name(on))) as storage:
        for path in files:
            target = url if not url.endswith("/") else join(url, path.name + ("/" if path.is_dir() else ""))
            storage.upload(path, target)
            console().print(f"{path} -> {target}", markup=False)


@app.command()
def get(
    url: Url,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to; a folder when URL ends in /.")] = Path(),
    on: On = None,
) -> None:
    """Copy an object, or a folder of them, out of the store.

    Example:  shoal store get s3://shoal/runs/RUN/export/adapter/ my-adapter
    """
    from shoal.spec.load import load_profile

    if path.is_dir() and not url.endswith("/"):
        path = path / url.rpartition("/")[2]
    with storage_of(load_profile(profile_name(on))) as storage:
        storage.download(url, path)
    console().print(f"{url} -> {path}", markup=False)


@app.command()
def rm(url: Url, on: On = None, yes: Yes = False) -> None:
    """Remove one object, or with a / at the end everything below it, after asking.

    Example:  shoal store rm s3://shoal/data/old.jsonl
    """
    from shoal.display import size
    from shoal.spec.load import load_profile
    from shoal.storage import absolute

    if url.removeprefix("s3://").strip("/") == "" or (not url.startswith("s3://") and absolute(url).strip("/") == ""):
        raise SpecError(Problem(url, "is everything there is", "name a bucket or a folder in it"))
    with storage_of(load_profile(profile_name(on))) as storage:
        doomed = storage.list(url) if url.endswith("/") else [storage.info(url)]
        if not doomed:
            typer.echo(f"nothing in {url}", err=True)
            return
        what = f"{len(doomed)} object{'s' if len(doomed) > 1 else ''} ({size(sum(one.size for one in doomed))})"
        if not yes and not typer.confirm(f"remove {what} at {url}?"):
            raise typer.Exit(1)
        storage.delete(url)
    console().print(f"removed {what}", markup=False)
