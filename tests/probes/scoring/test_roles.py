from hypothesis import given
from hypothesis import strategies as st

from probes.scoring.roles import Markers, Role, RoleReader

# <s>=1 system=2 user=3 assistant=4 newline=5 <e>=6; content is 10 and above.
MARKERS = Markers(headers={"system": [1, 2, 5], "user": [1, 3, 5], "assistant": [1, 4, 5]}, terminator=[6])


def roles(*ids: int, markers: Markers = MARKERS, typed: bool = False) -> str:
    """One letter a token: the role's first, dots for TEMPLATE."""
    read = RoleReader(markers).prompt(ids, typed=typed)
    return "".join("." if role == Role.TEMPLATE else Role(role).name[0] for role in read)


def test_headers_and_terminators_are_template():
    assert roles(1, 2, 5, 10, 11, 6, 1, 3, 5, 12, 6, 1, 4, 5) == "...SS....U...."


def test_what_follows_the_last_header_belongs_to_it():
    assert roles(1, 3, 5, 10, 6, 1, 4, 5, 20, 21) == "...U....AA"


def test_between_messages_is_template():
    assert roles(1, 3, 5, 10, 6, 99, 98, 1, 4, 5, 20) == "...U......A"


def test_a_prompt_without_headers_is_the_users():
    assert roles(10, 11, 12) == "UUU"
    assert roles(10, 6, 11, markers=Markers()) == "UUU"


def test_a_system_header_after_the_user_spoke_is_the_users():
    assert roles(1, 2, 5, 10, 6, 1, 3, 5, 11, 6, 1, 2, 5, 12, 6) == "...S....U....U."


def test_a_header_ends_a_message_that_has_no_terminator():
    assert roles(1, 3, 5, 10, 1, 4, 5, 11, 6) == "...U...A."


def test_the_longest_header_wins():
    markers = Markers(headers={"assistant": [1, 4], "reasoning": [1, 4, 7]}, terminator=[6])
    assert roles(1, 4, 7, 10, 6, 1, 4, 10, 6, markers=markers) == "...R...A."


def test_a_message_without_terminator_runs_to_the_end():
    assert roles(1, 3, 5, 10, 11) == "...UU"


def test_where_markers_were_typed_all_is_the_users_from_the_users_first_turn_on():
    assert roles(1, 2, 5, 10, 6, 1, 3, 5, 11, 6, 1, 4, 5, 12, 6, 13, typed=True) == "...S....UUUUUUUU"
    assert roles(1, 4, 5, 10, 6, 11, typed=True) == "...UUU"
    assert roles(10, 6, 11, typed=True) == "UUU"


@given(st.lists(st.integers(1, 12), max_size=40))
def test_typed_markers_give_no_token_to_another_than_the_user(ids):
    as_they_are, typed = RoleReader(MARKERS).prompt(ids), RoleReader(MARKERS).prompt(ids, typed=True)
    assert ((typed == as_they_are) | (typed == Role.USER)).all()


@given(st.lists(st.integers(1, 12), max_size=40))
def test_every_token_has_one_role(ids):
    read = RoleReader(MARKERS).prompt(ids)
    assert len(read) == len(ids) and set(read.tolist()) <= set(Role)
