"""One folder of mistakes for all tests here, and the command line in it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mistakes import Case, fill, write_job

from shoal import cli

Told = tuple[int, str, str]
"""(exit status, stdout, stderr)"""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("place")
    fill(folder, tiny_model)
    return folder


@pytest.fixture
def tell(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[Case], None]]:
    """Runs a case's command as its person would, and asserts what comes of it."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("WRONG_ID", "nobody")
    monkeypatch.setenv("WRONG_SECRET", "wrong-secret-of-nobody")
    for name in ("SHOAL_PROFILE", "SHOAL_DEBUG", "NOBODY_SET_THIS"):
        monkeypatch.delenv(name, raising=False)

    def run(case: Case) -> None:
        write_job(place, case)
        monkeypatch.setattr(sys, "argv", ["shoal", *case.words])
        status = cli._status()
        out, err = capsys.readouterr()
        assert status == case.status, err
        for sentence in case.says:
            assert sentence.format(place=place) in err
        assert "Traceback" not in out + err
        assert not [word for word in case.never if word in out + err]

    yield run
    (place / "job.yaml").unlink()
