"""Storage on a local folder, and what needs no server: names, patterns, answers."""

import errno
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from shoal import store
from shoal.errors import Problem, StorageError
from shoal.spec.cluster import CredentialRef, S3Spec
from shoal.storage import Storage, absolute, join, keys
from shoal.storage.answers import answer
from shoal.storage.local import PARTIAL


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for name in ("a/1.jsonl", "a/2.jsonl", "a/3.csv", "a/b/4.jsonl", "a/b/c/5.jsonl", "z.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return str(tmp_path)


def test_join_puts_one_slash_between_parts() -> None:
    assert join("s3://shoal/runs/", "one", "plan.json") == "s3://shoal/runs/one/plan.json"
    assert join("/data", "/a/", "b/") == "/data/a/b/"
    assert join("/data/") == "/data/"


def test_absolute_is_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.chdir(tmp_path)
    assert absolute("~/data/") == "/home/anna/data/"
    assert absolute("data/../x*.jsonl") == f"{tmp_path}/x*.jsonl"
    assert absolute("s3://bucket/../key") == "s3://bucket/../key"
    assert absolute("/") == "/"


def test_write_read_info_delete(storage: Storage, tmp_path: Path) -> None:
    url = join(str(tmp_path), "deep", "er", "x.bin")
    storage.write(url, b"0123456789")
    first = storage.info(url)
    assert (storage.read(url), first.url, first.size) == (b"0123456789", url, 10)
    assert storage.read_ranges(url, [(8, 10), (0, 3), (4, 4)]) == [b"89", b"012", b""]
    storage.write(url, b"changed")
    assert storage.info(url).etag != first.etag
    with storage.open(url) as stream:
        stream.seek(2)
        assert stream.read() == b"anged"
    storage.delete(url)
    storage.delete(url)
    assert not storage.exists(url)
    assert not list((tmp_path / "deep" / "er").iterdir())


def test_only_the_first_conditional_write_wins(storage: Storage, tmp_path: Path) -> None:
    url = str(tmp_path / "manifest.json")
    storage.write(url, b"first", if_absent=True)
    with pytest.raises(FileExistsError) as caught:
        storage.write(url, b"second", if_absent=True)
    assert not isinstance(caught.value, StorageError)
    assert storage.read(url) == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a/*.jsonl", ["a/1.jsonl", "a/2.jsonl"]),
        ("a/[13].*", ["a/1.jsonl", "a/3.csv"]),
        ("a/?.csv", ["a/3.csv"]),
        ("a/", ["a/1.jsonl", "a/2.jsonl", "a/3.csv", "a/b/4.jsonl", "a/b/c/5.jsonl"]),
        ("a/**/*.jsonl", ["a/1.jsonl", "a/2.jsonl", "a/b/4.jsonl", "a/b/c/5.jsonl"]),
        ("**/5.jsonl", ["a/b/c/5.jsonl"]),
        ("a/b/**", ["a/b/4.jsonl", "a/b/c/5.jsonl"]),
        ("*/b/4.jsonl", ["a/b/4.jsonl"]),
        ("a/*/c/", ["a/b/c/5.jsonl"]),
        ("a/1.jsonl", ["a/1.jsonl"]),
        ("a/none.jsonl", []),
        ("none/*.jsonl", []),
        ("a", []),
    ],
)
def test_list_by_pattern(storage: Storage, folder: str, pattern: str, names: list[str]) -> None:
    assert [one.url for one in storage.list(f"{folder}/{pattern}")] == [f"{folder}/{name}" for name in names]


def test_a_name_with_brackets_is_found_as_it_is_written(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "rows[1].jsonl").write_text("")
    assert len(storage.list(str(tmp_path / "rows[1].jsonl"))) == 1


def test_relative_patterns_give_absolute_urls(storage: Storage, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [one.url for one in storage.list("a/*.csv")] == [f"{folder}/a/3.csv"]
    assert storage.info("z.jsonl").url == f"{folder}/z.jsonl"


def test_half_written_files_are_not_listed(storage: Storage, folder: str) -> None:
    Path(folder, f".6.jsonl.abcd{PARTIAL}").write_text("half")
    assert [one.url for one in storage.list(f"{folder}/*")] == [f"{folder}/z.jsonl"]


def test_a_folder_is_listed_while_others_delete_in_it(storage: Storage, folder: str) -> None:
    """A driver lists the leases of a run while another takes it, and retention deletes beside a listing."""
    over = threading.Event()

    def churn() -> None:
        number = 0
        while not over.is_set():
            path = Path(folder, "a", f"{number % 50}.jsonl")
            path.unlink(missing_ok=True) if path.exists() else path.write_text("x")
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(500):
            assert f"{folder}/a/b/c/5.jsonl" in [one.url for one in storage.list(f"{folder}/")]
            storage.find(f"{folder}/a/7.jsonl")
    finally:
        over.set()
        thread.join()


def test_folders_and_prefixes(storage: Storage, folder: str) -> None:
    assert storage.folders(folder) == [f"{folder}/a/"]
    assert storage.exists(f"{folder}/a/") and not storage.exists(f"{folder}/a") and not storage.exists(f"{folder}/q/")
    storage.delete(f"{folder}/a/")
    storage.delete(f"{folder}/a/")
    assert [one.url for one in storage.list(f"{folder}/")] == [f"{folder}/z.jsonl"]


def test_upload_and_download_of_folders(storage: Storage, folder: str, tmp_path: Path) -> None:
    storage.upload(Path(folder, "a"), f"{folder}/copy/")
    storage.download(f"{folder}/copy/", tmp_path / "back")
    found = sorted(path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*.*"))
    assert found == ["1.jsonl", "2.jsonl", "3.csv", "b/4.jsonl", "b/c/5.jsonl"]
    assert (tmp_path / "back/b/4.jsonl").read_text() == "a/b/4.jsonl"


def test_storage_and_its_errors_can_be_pickled(storage: Storage, tmp_path: Path) -> None:
    again: Storage = pickle.loads(pickle.dumps(storage))
    again.write(str(tmp_path / "x"), b"1")
    error = StorageError(Problem("a", "b", "c"), Problem("d", "e"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a: b; c\nd: e"


def said(call) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_answers_are_one_line_with_place_and_fix(storage: Storage, folder: str, tmp_path: Path) -> None:
    near = said(lambda: storage.info(f"{folder}/a/1.json"))
    assert near == f"{folder}/a/1.json: no such file; did you mean {folder}/a/1.jsonl?"
    assert said(lambda: storage.read(f"{folder}/a/none")).startswith(f"{folder}/a/none: no such file; ")
    assert "no such file" in said(lambda: storage.open(f"{folder}/a/none"))
    assert "no such files" in said(lambda: storage.download(f"{folder}/none/", tmp_path / "x"))
    assert "is a folder, not a file" in said(lambda: storage.read(f"{folder}/a"))
    assert "is a file, not a folder" in said(lambda: storage.write(f"{folder}/z.jsonl/x", b""))
    assert "the object ends after 7" in said(lambda: storage.read_ranges(f"{folder}/z.jsonl", [(2, 4), (5, 99)]))
    assert said(lambda: storage.upload(tmp_path / "none", f"{folder}/x")).startswith(f"{tmp_path}/none: no such file")
    assert "gs:// is not supported" in said(lambda: storage.list("gs://bucket/x"))
    assert "'Up' is no bucket name" in said(lambda: storage.read("s3://Up/x"))


def test_a_full_disk_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    script = (
        "import sys; from shoal.storage import Storage\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: Storage().write(sys.argv[1], bytes(1 << 20))\n"
        "except OSError as error: print(type(error).__name__, error.__cause__.errno)\n"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # noqa: E731
    command = [sys.executable, "-c", script, str(tmp_path / "x")]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["StorageError", str(errno.EFBIG)]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_no_space_is_named(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(bytes(1 << 16))
    monkeypatch.setattr(Path, "with_name", lambda self, name: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    assert said(lambda: storage.write(str(tmp_path / "x"), bytes(1 << 16))) == (
        f"{tmp_path}/x: the disk is full; free space there, or choose another folder"
    )


def external(**credentials: object) -> Storage:
    return Storage(S3Spec(endpoint_url="http://127.0.0.1:9", credentials=CredentialRef(**credentials)))  # type: ignore[arg-type]


def test_keys_are_looked_up_by_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SET", "x")
    monkeypatch.delenv("UNSET", raising=False)
    unset = said(lambda: external(access_key_env="SET", secret_key_env="UNSET").read("s3://abc/d"))
    assert unset == "storage.s3.credentials.secret_key_env: the variable UNSET is not set; set it, or name another"
    lone = said(lambda: external(access_key_env="SET").read("s3://abc/d"))
    assert lone.startswith("storage.s3.credentials.secret_key_env: ")
    keys = tmp_path / "keys.json"
    assert "cannot be read as a key file" in said(lambda: external(file=str(keys)).read("s3://abc/d"))
    keys.write_text('{"access_key": "AK-secret"}')
    keys.chmod(0o600)
    partial = said(lambda: external(file=str(keys)).read("s3://abc/d"))
    assert "cannot be read as a key file" in partial and "AK-secret" not in partial
    keys.chmod(0o644)
    assert f"chmod 600 {keys}" in said(lambda: external(file=str(keys)).read("s3://abc/d"))


def test_an_unreachable_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "x")
    line = said(lambda: external(access_key_env="SET", secret_key_env="SET").read("s3://abc/d"))
    assert line == ("s3://abc/d: http://127.0.0.1:9 cannot be reached; check storage.s3.endpoint_url and the network")


def test_an_embedded_store_without_room_names_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from obstore.exceptions import GenericError

    error = GenericError("Server returned non-2xx status code: 500: <Error><Code>InternalError</Code></Error>")
    s3 = S3Spec(server="embedded", folder=str(tmp_path))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(free=3 << 20))
    line = "s3://shoal/x: the store failed; the disk has only 3 MiB left; free space on the disk of "
    assert str(answer(error, "s3://shoal/x", s3)) == f"{line}{tmp_path}"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(free=3 << 30))
    assert "the store failed (InternalError)" in str(answer(error, "s3://shoal/x", s3))


def test_without_the_server_a_folder_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "available", lambda: False)
    s3 = S3Spec(server="embedded", folder=str(tmp_path))
    with store.serving(s3):
        storage = Storage(s3)
        storage.make_bucket("empty-one")
        storage.write("s3://shoal/a/b", b"1")
        assert [one.url for one in storage.list("s3://shoal/*/b")] == ["s3://shoal/a/b"]
        assert storage.folders("s3://shoal/") == ["s3://shoal/a/"]
        assert pickle.loads(pickle.dumps(storage)).read("s3://shoal/a/b") == b"1"
        assert said(lambda: storage.read("s3://shoal/a/c")) == "s3://shoal/a/c: no such file; check the name"
    assert (tmp_path / "objects/shoal/a/b").read_bytes() == b"1"
    assert f"{tmp_path}/objects" in capsys.readouterr().err


ANSWERS = {
    "status code: 403 Forbidden: <Error><Code>ExpiredToken</Code></Error>": "the key has expired; renew it; ",
    "status code: 400 Bad Request: <Error><Code>AuthorizationHeaderMalformed</Code></Error>": "lies in another region",
    "Received redirect without LOCATION, this normally indicates an incorrectly configured region": "another region",
    "Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error: kind: Connect": "no key was found",
    "Error performing POST https://sts.eu.amazonaws.com/ in 1ms - status code: 403": "web identity was not accepted",
    "Error performing GET https://x in 1ms - HTTP error: kind: Connect, InvalidCertificate": "cannot be trusted",
    "Error performing GET https://x in 1ms - HTTP error: kind: Timeout": "does not answer in time",
    "status code: 503 Service Unavailable: <Error><Code>SlowDown</Code></Error>": "too busy; try again later",
    "status code: 418 I'm a teapot": "the store failed (418)",
    "something new\n\nDebug source:\nDetails {}": "the store failed (something new); see",
}


@pytest.mark.parametrize(("text", "said_to_person"), ANSWERS.items(), ids=ANSWERS.values())
def test_the_clients_words_become_one_line(text: str, said_to_person: str) -> None:
    from obstore.exceptions import GenericError

    line = str(answer(GenericError(text), "s3://abc/d", S3Spec(endpoint_url="https://x")))
    assert line.startswith("s3://abc/d: ") and said_to_person in line and "\n" not in line


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "ftp://host", "http://host name", "http://key:word@host"])
def test_an_impossible_endpoint_is_no_panic(endpoint: str) -> None:
    anonymous = CredentialRef(anonymous=True)
    # Most of these no profile lets through.
    spec = S3Spec(credentials=anonymous).model_copy(update={"endpoint_url": endpoint})
    line = said(lambda: Storage(spec).read("s3://abc/d"))
    assert line.startswith("storage.s3.endpoint_url: ") and line.endswith("; write https://HOST:PORT")
    assert "word" not in line
    odd = Storage(S3Spec(endpoint_url="http://127.0.0.1:9", region="eu central", credentials=anonymous))
    assert said(lambda: odd.read("s3://abc/d")).startswith("storage.s3.region: 'eu central' is no region")


def test_a_key_with_a_line_break_is_no_panic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "AK\nIA")
    line = said(lambda: external(access_key_env="KEY", secret_key_env="KEY").read("s3://abc/d"))
    assert "holds a space or a line break" in line and "AK" not in line


def test_a_temporary_key_brings_its_session_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ID", "SECRET", "TOKEN"):
        monkeypatch.setenv(f"SHOAL_TEST_{name}", name.lower())
    names = {"access_key_env": "SHOAL_TEST_ID", "secret_key_env": "SHOAL_TEST_SECRET"}
    found = keys.provider(CredentialRef(**names, session_token_env="SHOAL_TEST_TOKEN"))
    assert found and found()["token"] == "token"
    with pytest.raises(StorageError, match="session_token_env: the variable SHOAL_TEST_NONE is not set"):
        keys.provider(CredentialRef(**names, session_token_env="SHOAL_TEST_NONE"))
