"""Combinations of vectors as a user writes them: ``toxicity - 0.5 * refusal``, ``orthogonal(toxicity, refusal)``.

Names are vectors; numbers, ``+``, ``-``, ``*``, ``/``, parentheses and ``orthogonal(of, to)`` combine them. The text is
parsed by Python's own grammar and then walked: nothing in it is ever run.
"""

import ast
from collections.abc import Mapping
from typing import Final

from probes.errors import SteeringError
from probes.steering.direction import Direction

LENGTH: Final = 500
"""Characters at most: more is no combination that anybody has written, and nesting would exhaust the parser."""
_REMEDY: Final = "Write such as: a - 0.5 * b, or: orthogonal(a, b)"


def combine(expression: str, directions: Mapping[str, Direction]) -> Direction:
    """The direction that an expression describes.

    Args:
        expression: See the module's docstring.
        directions: What its names stand for.

    Raises:
        SteeringError: It is no such expression, names what is not there, or combines what does not go together.
    """
    if len(expression) > LENGTH:
        raise SteeringError(f"The expression has {len(expression)} characters; {LENGTH} are read.", _REMEDY)
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        found = _value(tree.body, directions)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SteeringError(f"'{expression}' is no combination of vectors.", _REMEDY) from error
    except (OverflowError, ZeroDivisionError) as error:
        raise SteeringError(f"'{expression}' cannot be calculated: {error}.", _REMEDY) from error
    if not isinstance(found, Direction):
        raise SteeringError(f"'{expression}' names no vector.", _REMEDY)
    return found


def _value(node: ast.expr, directions: Mapping[str, Direction]) -> Direction | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.Name(id=name):
            if name not in directions:
                known = ", ".join(sorted(directions)) or "none"
                raise SteeringError(f"There is no vector '{name}' to combine.", f"There are: {known}.")
            return directions[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _value(operand, directions)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=operator, right=right):
            return _combined(_value(left, directions), operator, _value(right, directions))
        case ast.Call(func=ast.Name(id="orthogonal"), args=[of, to], keywords=[]):
            first, second = _value(of, directions), _value(to, directions)
            if isinstance(first, Direction) and isinstance(second, Direction):
                return first.orthogonal_to(second)
            raise SteeringError("orthogonal takes two vectors.", _REMEDY)
        case _:
            raise SteeringError(f"'{ast.unparse(node)}' is no combination of vectors.", _REMEDY)


def _combined(left: Direction | float, operator: ast.operator, right: Direction | float) -> Direction | float:
    match left, operator, right:
        case (Direction(), ast.Add(), Direction()) | (float(), ast.Add(), float()):
            return left + right  # type: ignore[operator]
        case (Direction(), ast.Sub(), Direction()) | (float(), ast.Sub(), float()):
            return left - right  # type: ignore[operator]
        case (float(), ast.Mult(), Direction() | float()) | (Direction(), ast.Mult(), float()):
            return left * right  # type: ignore[operator]
        case (Direction() | float(), ast.Div(), float()):
            return left / right
        case _:
            raise SteeringError(
                "Vectors are added to and taken from vectors, and multiplied with and divided by numbers.", _REMEDY
            )
