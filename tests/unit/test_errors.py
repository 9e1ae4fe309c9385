"""The error tree: as drawn, picklable between actors, and fit to be answered over HTTP."""

import pickle
import re
from http import HTTPStatus

import pytest

from serve_app.domain import errors
from serve_app.domain.errors import CallerError, QuantileError, ServerError


def descendants(root: type) -> list[type]:
    own = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [root, *(below for kind in own for below in descendants(kind))]


TREE = descendants(QuantileError)
LEAVES = [kind for kind in TREE if len(descendants(kind)) == 1]


def drawn_tree() -> list[tuple[str, str | None]]:
    """(name, parent) for each line of the drawing, by its indentation."""
    drawn: list[tuple[str, str | None]] = []
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if not (found := re.match(r"^( {4}[│├└─ ]*)(\w+Error)\b", line)):
            continue
        depth, name = len(found[1]), found[2]
        above = [(column, kind) for column, kind in above if column < depth]
        drawn.append((name, above[-1][1] if above else None))
        above.append((depth, name))
    return drawn


def test_the_drawing_is_the_tree():
    real = [(k.__name__, None if k is QuantileError else k.__base__.__name__) for k in TREE]
    assert sorted(drawn_tree(), key=str) == sorted(real, key=str)


def test_the_drawing_gives_the_statuses():
    drawn = dict(re.findall(r"(\w+Error)\s+(\d{3})\b", errors.__doc__ or ""))
    assert drawn
    for kind in LEAVES:
        inherited = "http_status" not in vars(kind) and kind.__name__ not in drawn
        assert inherited or int(drawn[kind.__name__]) == kind.http_status, kind


@pytest.mark.parametrize("kind", TREE)
def test_survives_the_way_between_two_actors(kind):
    copy = pickle.loads(pickle.dumps(kind("need 2, have 1: add one", 7)))
    assert type(copy) is kind
    assert copy.args == ("need 2, have 1: add one", 7)
    assert str(pickle.loads(pickle.dumps(kind("need 2")))) == "need 2"


@pytest.mark.parametrize("kind", TREE)
def test_can_be_answered(kind):
    assert re.fullmatch(r"[a-z0-9_]+", kind.code)
    callers_fault = issubclass(kind, CallerError)
    assert HTTPStatus(kind.http_status) // 100 == (4 if callers_fault else 5)
    # "it does not fit" and "this cannot be trusted" are answers, not wrong calls
    answers = {errors.PlanError: 1, errors.InvalidRunError: 3}
    assert kind.exit_code == answers.get(kind, 2 if callers_fault else 1)


def test_fault_is_on_one_side_only():
    assert not set(descendants(CallerError)) & set(descendants(ServerError))
    assert set(QuantileError.__subclasses__()) == {CallerError, ServerError}
