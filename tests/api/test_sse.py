from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from p2pllm.api.sse import event


@given(st.text("ab\n\r:\x00\x85\u2028\ud800é", max_size=20))
def test_an_event_is_one_line_whatever_stands_in_it(text: str) -> None:
    data = event({"text": text})
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    line = data[len(b"data: ") : -2].decode("ascii")
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"text": text}
