"""What wrk prints, and what is said where there is none."""

import pytest

from bench import __main__ as bench_command
from bench import run, wrk
from bench.wrk import WrkResult

SAID = """Running 1s test @ http://127.0.0.1:1/
  1 threads and 4 connections
RESULT {"requests": 1200, "seconds": 1.000125, "p50_ms": 2.125, "p95_ms": 4.5, "p99_ms": 9.75, \
"broken": 0, "refused": 3}
"""


def test_the_result_is_found_among_what_wrk_says() -> None:
    assert wrk.parse_result(SAID) == WrkResult(1200, 1.000125, 2.125, 4.5, 9.75, 0, 3)


def test_without_a_result_its_words_are_quoted() -> None:
    with pytest.raises(RuntimeError, match="unable to connect"):
        wrk.parse_result("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_missing_wrk_is_said_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[object] = []
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(run, "run", lambda *arguments: started.append(arguments))
    assert bench_command.main([]) == 2
    assert not started
    assert "apt-get install wrk" in capsys.readouterr().err


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(SystemExit, match="no part validat; there are validate, sqlite"):
        bench_command.main(["--only", "validat"])
