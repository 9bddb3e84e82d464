"""The ring against the obvious model: one long byte string."""

from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from streamdet import ring as ring_module
from streamdet.ring import FIRST_SAMPLES, Ring

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


@given(steps, st.integers(0, 10_000), st.integers(1, CAPACITY + 1))
def test_holds_the_newest_samples_wherever_the_stream_began(steps, origin, first_samples):
    with mock.patch.object(ring_module, "FIRST_SAMPLES", first_samples):
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


def test_memory_is_taken_as_audio_comes_and_what_is_given_back_holds_none():
    ring = Ring(100 * FIRST_SAMPLES, b"\0\0")
    places = [ring._bytes]
    for _ in range(200):
        ring.append(b"ab" * FIRST_SAMPLES)
        assert len(ring._bytes) <= max(2 * FIRST_SAMPLES, 2 * 2 * (ring.end_sample - ring.origin_sample))
        if ring._bytes is not places[-1]:
            places.append(ring._bytes)
    assert len(ring._bytes) == 2 * 100 * FIRST_SAMPLES
    assert len(places) == 8
    assert [set(place) for place in places[:-1]] == [{0}] * 7
    assert ring.window(ring.start_sample, ring.end_sample) == b"ab" * 100 * FIRST_SAMPLES
