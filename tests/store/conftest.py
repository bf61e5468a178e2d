"""States, and entries of every kind."""

from hypothesis import strategies as st

from monitor.store import (
    Admitted,
    AlertFired,
    Applied,
    Armed,
    Confirmed,
    Disarmed,
    EngineForgotten,
    PolicyInForce,
    Processed,
    RequestEnded,
    Resumed,
    State,
)
from monitor.store.entries import Noted

ENGINES = st.sampled_from(["e", "f"])
NAMES = st.sampled_from(["a", "b", "c"])
POSITIONS = st.dictionaries(st.sampled_from(["audit", "alerts"]), st.integers(0, 9))
CHANNELS = st.sampled_from(["gate", "guard", "refusal"])
ENTRIES = st.lists(
    st.builds(
        Noted,
        st.floats(0, 2000),
        st.one_of(
            st.builds(Processed, ENGINES, CHANNELS, st.integers(0, 9), POSITIONS),
            st.builds(Confirmed, ENGINES),
            st.builds(Armed, ENGINES, NAMES),
            st.builds(Disarmed, ENGINES, NAMES),
            st.builds(EngineForgotten, ENGINES),
            st.builds(Admitted, ENGINES, NAMES, POSITIONS),
            st.builds(Applied, ENGINES, NAMES, st.lists(NAMES, unique=True).map(tuple)),
            st.builds(RequestEnded, ENGINES, NAMES),
            st.builds(PolicyInForce, NAMES, NAMES),
            st.builds(AlertFired, NAMES, NAMES, st.just("info"), NAMES),
            st.builds(Resumed, POSITIONS),
        ),
    ),
    max_size=30,
)


def fold(entries) -> State:
    """The state that entries come to."""
    state = State()
    for noted in entries:
        state.apply(noted)
    return state


def said(state: State) -> object:
    """All that a state knows, to compare."""
    engines = {
        engine: (
            {channel: numbers.ranges for channel, numbers in known.processed.items() if numbers},
            known.unsettled,
            known.partly,
            known.armed,
        )
        for engine, known in state.engines.items()
    }
    requests = {
        identity: (request.admitted, request.at, request.partly, request.rules)
        for identity, request in state.requests.items()
    }
    return engines, requests, state.policy, state.firing(0.0)
