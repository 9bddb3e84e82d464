"""The ring against the obvious model: one long byte string."""

from hypothesis import given
from hypothesis import strategies as st

from streamdet.ring import Ring

CAPACITY = 7
SILENCE = b"\xff\x01"


def written(data: bytes) -> tuple[str, bytes | int]:
    return ("append", data)


steps = st.lists(
    st.one_of(
        st.binary(max_size=20).map(lambda data: data[: len(data) // 2 * 2]).map(written),
        st.integers(0, 20).map(lambda count: ("silence", count)),
    ),
    max_size=20,
)


@given(steps, st.integers(0, 10_000))
def test_holds_the_newest_samples_wherever_the_stream_began(steps, origin):
    ring, model = Ring(CAPACITY, SILENCE, origin), b""
    for kind, what in steps:
        if kind == "append":
            ring.append(what)
            model += what
        else:
            ring.append_silence(what)
            model += SILENCE * what
    end = origin + len(model) // 2
    assert ring.end_sample == end
    assert ring.start_sample == max(origin, end - CAPACITY)
    for start in range(ring.start_sample, end + 1):
        for stop in range(start, end + 1):
            assert ring.window(start, stop) == model[2 * (start - origin) : 2 * (stop - origin)]


def test_wipe_leaves_only_silence():
    ring = Ring(4, b"\0")
    ring.append(b"abcd")
    ring.wipe()
    assert ring.window(0, 4) == b"\0\0\0\0"
