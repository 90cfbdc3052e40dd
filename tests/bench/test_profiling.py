"""What py-spy wrote, shared out to threads and layers."""

from bench.profiling import by_function, by_layer, by_thread, parse_samples

RAW = """\
thread (7): MainThread;main (a.py:1);data_received (uvicorn/protocols/http.py:5) 60
thread (7): MainThread;main (a.py:1);data_received (uvicorn/protocols/http.py:6) 15
thread (8): validation-writer;run (threading.py:1);digest (protocol/key_derivation.py:9);\
digest (hmac.py:3) 25
"""


def test_samples_are_shared_out() -> None:
    samples = parse_samples(RAW)
    assert by_thread(samples).rows == [["MainThread", "75.0%"], ["validation-writer", "25.0%"]]
    assert by_layer(samples).rows == [
        ["MainThread: HTTP server", "75.0%"],
        ["validation-writer: opening tokens, deriving keys", "25.0%"],
    ]
    assert by_function(samples).rows[0] == [
        "MainThread: data_received (uvicorn/protocols/http.py)",
        "75.0%",
    ]
