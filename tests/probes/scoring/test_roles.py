from hypothesis import given
from hypothesis import strategies as st

from probes.scoring.roles import AnyHeader, Markers, Role, RoleReader, Thought

# <s>=1 system=2 user=3 assistant=4 newline=5 <e>=6; content is 10 and above.
MARKERS = Markers(
    headers={"system": [1, 2, 5], "user": [1, 3, 5], "assistant": [1, 4, 5]},
    terminator=[6],
    any_header=AnyHeader([1], [5]),
    between=[[7], [7, 8]],
    thoughts=[Thought([40], [41]), Thought([42, 43], [44, 45])],
)


def roles(*ids: int, markers: Markers = MARKERS, typed: bool = False) -> str:
    """One letter a token: the role's first, dots for TEMPLATE, x for TEXT."""
    return said(RoleReader(markers).prompt(ids, typed=typed))


def said(read) -> str:
    letters = {Role.TEMPLATE: ".", Role.TEXT: "x"}
    return "".join(letters.get(role, Role(role).name[0]) for role in read)


def test_headers_and_terminators_are_template():
    assert roles(1, 2, 5, 10, 11, 6, 1, 3, 5, 12, 6, 1, 4, 5) == "...SS....U...."


def test_what_follows_the_last_header_belongs_to_it():
    assert roles(1, 3, 5, 10, 6, 1, 4, 5, 20, 21) == "...U....AA"


def test_between_messages_what_the_template_writes_is_its_own_and_all_else_is_the_users():
    assert roles(1, 3, 5, 10, 6, 7, 8, 1, 4, 5, 10) == "...U......A"
    assert roles(1, 3, 5, 10, 6, 7, 99, 8, 1, 4, 5, 10) == "...U..UU...A"
    assert roles(7, 11, 1, 3, 5, 10, 6, 7, 12) == ".U...U..U"


def test_a_prompt_without_headers_is_text_and_so_is_what_follows_it():
    assert roles(10, 11, 12) == "xxx"
    walk = RoleReader(MARKERS).walk([10, 11, 12])
    assert [walk.next(token) for token in (40, 10, 41)] == [Role.TEXT] * 3


def test_of_a_model_without_a_template_all_is_the_users_and_the_answers():
    assert roles(10, 6, 11, markers=Markers()) == "UUU"
    assert RoleReader(Markers()).walk([10, 6, 11]).next(10) is Role.ASSISTANT


def test_content_under_a_header_of_another_name_is_a_tools():
    assert roles(1, 3, 5, 10, 6, 7, 1, 14, 15, 5, 11, 12, 6, 1, 4, 5) == "...U......TT...."
    # Without an end, or with a name of many tokens, it is no header: nobody's text hides in it.
    assert roles(1, 3, 5, 10, 6, 1, *range(30, 60), 5, 11) == "...U." + "U" * 33
    markers = Markers(headers={"user": [1, 3], "assistant": [1, 4]}, terminator=[6], others=[[1, 3, 9]])
    assert roles(1, 3, 9, 10, 6, 1, 3, 10, 6, markers=markers) == "...T...U."


def test_thoughts_are_told_from_the_answer():
    assert roles(1, 4, 5, 40, 10, 11, 41, 12, 6) == "...RRRRA."
    assert roles(1, 4, 5, 10, 42, 43, 11, 44, 45, 12) == "...AARRRRA"
    # Only in an answer.
    assert roles(1, 3, 5, 40, 10, 41, 6) == "...UUU."


def test_generated_tokens_go_on_where_the_prompt_ends():
    reader = RoleReader(MARKERS)
    walk = reader.walk([1, 3, 5, 10, 6, 1, 4, 5])
    assert said([walk.next(token) for token in (10, 40, 11, 41, 12)]) == "ARRRA"
    # A template that opens the thought, and a marker of which the prompt has the first half.
    walk = reader.walk([1, 3, 5, 10, 6, 1, 4, 5, 40])
    assert said([walk.next(token) for token in (11, 41, 12)]) == "RRA"
    walk = reader.walk([1, 4, 5, 10, 42])
    assert said([walk.next(token) for token in (43, 11, 44, 45, 12)]) == "RRRRA"


@given(st.lists(st.sampled_from([10, 11, 40, 41, 42, 43, 44, 45]), max_size=30), st.integers(0, 30))
def test_generated_tokens_have_the_roles_that_they_have_in_a_prompt(answer, cut):
    reader, header = RoleReader(MARKERS), [1, 3, 5, 10, 6, 7, 1, 4, 5]
    whole = reader.prompt([*header, *answer])
    walk = reader.walk([*header, *answer[:cut]])
    generated = [walk.next(token) for token in answer[cut:]]
    assert whole[len(header) + len(answer[:cut]) :].tolist() == generated


def test_a_system_header_after_the_user_spoke_is_the_users():
    assert roles(1, 2, 5, 10, 6, 1, 3, 5, 11, 6, 1, 2, 5, 12, 6) == "...S....U....U."


def test_a_system_header_after_a_tools_result_is_the_users():
    assert roles(1, 9, 5, 10, 6, 1, 2, 5, 11, 6) == "...T....U."


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


TOKENS = st.lists(st.sampled_from([*range(1, 13), *range(40, 46)]), max_size=40)


@given(TOKENS)
def test_typed_markers_give_no_token_to_another_than_the_user(ids):
    as_they_are, typed = RoleReader(MARKERS).prompt(ids), RoleReader(MARKERS).prompt(ids, typed=True)
    if Role.TEXT not in as_they_are:
        assert ((typed == as_they_are) | (typed == Role.USER)).all()


@given(TOKENS)
def test_every_token_has_one_role_and_no_content_the_templates(ids):
    read = RoleReader(MARKERS).prompt(ids)
    assert len(read) == len(ids) and set(read.tolist()) <= set(Role)
    # 9 to 13 are in no marker; only the name of a role may be such a token.
    hidden = [i for i, (token, role) in enumerate(zip(ids, read, strict=True)) if token >= 9 and role == Role.TEMPLATE]
    for at in hidden:
        begin = max((i for i in range(at) if ids[i] == 1), default=-1)
        assert 0 <= at - begin <= 16 and 5 in ids[at:]
