"""Whether two answers are equal, within one kind (docs/equality.md). A wrong answer paid weighs more than a right one.

Takes texts, reads both and compares what they are; what has no kind is compared as it is spelled. Pure and bounded: a
comparison takes about a millisecond. Leaves out where the answer of a response stands (final).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from capo_ray.tasks.answers import comparison
from capo_ray.tasks.answers.expression import Node, symbols
from capo_ray.tasks.answers.kinds import (
    About,
    Answer,
    Based,
    Items,
    Matrix,
    Named,
    Quantity,
    Ratio,
    Reals,
    Relation,
    Spelling,
    Words,
)
from capo_ray.tasks.answers.layout import one_name
from capo_ray.tasks.answers.names import NUMBER_WORDS
from capo_ray.tasks.answers.quantities import rounds_to, same_quantity
from capo_ray.tasks.answers.reading import read_clean
from capo_ray.tasks.answers.relations import same_relation
from capo_ray.tasks.answers.sets import same_set
from capo_ray.tasks.answers.spelling import clean

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_CHOICE = re.compile(r"(?:(?:option|choice|answer) )?\(?([A-Z])\)?[.:)]?", re.IGNORECASE)
_CHOICE_AND_TEXT = re.compile(r"(?:(?:option|choice) )?(?:\(([A-J])\) ?[.:]?|([A-J]) ?[.:)]) ?(\S.*)")


def equal(gold: str, answer: str) -> bool:
    """Whether two bare answers are equal."""
    gold, answer = clean(gold), clean(answer)
    if not gold or gold == answer:
        return bool(gold)
    if (choice := _same_choice(gold, answer)) is not None:
        return choice
    joined = [_without_commas(text) for text in (gold, answer)]
    if _equal(read_clean(joined[0]), read_clean(joined[1])):
        return True
    if _decimal_comma(gold, answer) or _decimal_comma(answer, gold):
        return True
    if joined == [gold, answer]:
        return False
    if joined[0] != gold:  # the gold answer is one number, unless the other repeats its commas
        return gold.replace(" ", "") == answer.replace(" ", "") or (joined[1] == answer and _comma_list(gold, answer))
    return _equal(read_clean(gold), read_clean(answer))


def _without_commas(text: str) -> str:
    """Without the commas between thousands, but for those directly in brackets, where they part."""

    def joined(found: re.Match[str]) -> str:
        before = text[: found.start()]
        inside = max(
            before.count("(") - before.count(")"),
            before.count("[") - before.count("]"),
            before.count("\\{") - before.count("\\}"),
        )
        return found[0] if inside > 0 else found[0].replace(",", "")

    return _THOUSANDS.sub(joined, text)


def _comma_list(gold: str, answer: str) -> bool:
    return re.sub(r"[ ()\[\]]", "", gold) == re.sub(r"[ ]", "", answer)


def _decimal_comma(point: str, comma: str) -> bool:
    """2,74 for 2.74."""
    found = re.fullmatch(r"(-?\d+),(\d+)(\D*)", comma)
    if "." not in point or found is None or (_THOUSANDS.fullmatch(comma) and not comma.startswith("0")):
        return False
    return _equal(read_clean(point), read_clean(f"{found[1]}.{found[2]}{found[3]}"))


def _same_choice(gold: str, answer: str) -> bool | None:
    """Of a gold answer that is an option's letter, or a letter with the option's text; None where it is neither."""
    if (alone := _CHOICE.fullmatch(gold)) and (alone[1].isupper() or gold.startswith("(")):
        found = _CHOICE.fullmatch(answer)
        if found:
            in_brackets = "(" in gold or "(" in answer
            return found[1] == alone[1] or (in_brackets and found[1].upper() == alone[1].upper())
        longer = _CHOICE_AND_TEXT.fullmatch(answer)
        if longer is None:
            return None
        return (longer[1] or longer[2]) == alone[1].upper() and not _another_option(longer[3])
    if longer := _CHOICE_AND_TEXT.fullmatch(gold):
        if _another_option(longer[3]):
            return None
        letter, text = longer[1] or longer[2], longer[3]
        if found := _CHOICE.fullmatch(answer):
            return found[1].upper() == letter
        if same := _CHOICE_AND_TEXT.fullmatch(answer):
            return (same[1] or same[2]) == letter and not _another_option(same[3])
        return equal(text, answer)
    return None


def _another_option(text: str) -> bool:
    return bool(re.search(r"\([A-J]\)|(?<![A-Za-z\\])[B-J](?![A-Za-z])|^(?:or|and|,)\b|^[A-J]\b", text))


# ---- by kind ---------------------------------------------------------------------------------------------------------


def _equal(gold: Answer, found: Answer) -> bool:
    if isinstance(gold, About) or isinstance(found, About):
        return any(_equal(one, other) for one in _values(gold) for other in _values(found))
    if isinstance(gold, Named) or isinstance(found, Named):
        return _named(gold, found)
    if isinstance(gold, Reals) or isinstance(found, Reals):
        return _reals(gold, found)
    gold, found = _lone(gold), _lone(found)
    if isinstance(gold, Items) and isinstance(found, Items):
        return _items(gold, found)
    if isinstance(gold, Quantity) and isinstance(found, Quantity):
        return same_quantity(gold, found)
    if isinstance(gold, Words) or isinstance(found, Words):
        return _words(gold) == _words(found) is not None
    if isinstance(gold, Relation) and isinstance(found, Relation):
        return same_relation(gold, found)
    if isinstance(gold, Quantity) and isinstance(found, Relation):
        return _sum_of_letters(gold, found)
    if isinstance(gold, Ratio) or isinstance(found, Ratio):
        return _ratios(gold, found)
    if isinstance(gold, Matrix) or isinstance(found, Matrix):
        return _matrices(gold, found)
    return isinstance(gold, Based | Spelling) and gold == found


def _sum_of_letters(gold: Quantity, found: Relation) -> bool:
    """m + n = 27 for 27."""

    def letters(node: Node) -> bool:
        return node.op == "symbol" or (node.op == "add" and all(map(letters, node.parts)))

    left, right = found.sides[0], found.sides[-1]
    return found.ops == ("=",) and letters(left) and not symbols(gold.node) and comparison.equal(gold.node, right)


def _lone(answer: Answer) -> Answer:
    """A set or list of one is that one, unless that is a list or set itself."""
    if not isinstance(answer, Items) or len(answer.items) != 1 or answer.brackets not in ("", "{}"):
        return answer
    return answer if isinstance(answer.items[0], Items) else answer.items[0]


def _values(answer: Answer) -> Sequence[Answer]:
    """Both sides of "2/3, about 0.67"; none where the second is not the first, rounded."""
    if not isinstance(answer, About):
        return (answer,)
    first, *rest = answer.values
    return answer.values if all(rounds_to(first, one) for one in rest) else ()


def _words(answer: Answer) -> str | int | None:
    if isinstance(answer, Words):
        return NUMBER_WORDS.get(answer.text, answer.text)
    if isinstance(answer, Quantity) and not answer.percent:
        if letters := _letters(answer.node):
            return letters
        if answer.node.op == "number" and answer.node.value.denominator == 1:
            return int(answer.node.value)
    return None


def _letters(node: Node) -> str:
    """Of a letter, and of a product of letters: in their order."""
    if node.op == "mul":
        parts = [_letters(part) for part in node.parts]
        return "".join(parts) if all(parts) else ""
    return node.name.lower() if node.op in ("symbol", "constant") and len(node.name) == 1 else ""


# ---- names and relations ---------------------------------------------------------------------------------------------


def _named(gold: Answer, found: Answer) -> bool:
    """A name says nothing, unless the other answer has another one; y = 2x may be written as an equation, too."""
    if isinstance(gold, Named) and isinstance(found, Named):
        renamed = _argument_renamed(gold, found)
        if one_name(gold.name, renamed.name) and _equal(gold.value, renamed.value):
            return True
        return gold.relation is not None and found.relation is not None and same_relation(gold.relation, found.relation)
    named, other = (gold, found) if isinstance(gold, Named) else (found, gold)
    assert isinstance(named, Named)
    if isinstance(other, Relation):
        return named.relation is not None and same_relation(named.relation, other)
    return _equal(named.value, found) if named is gold else _equal(gold, named.value)


_FUNCTION = re.compile(r"\s*([A-Za-z])\s*\(\s*([A-Za-z])\s*\)\s*")


def _argument_renamed(gold: Named, found: Named) -> Named:
    """f(n) = 2n is f(x) = 2x."""
    wanted, there = _FUNCTION.fullmatch(gold.name), _FUNCTION.fullmatch(found.name)
    if (
        not wanted
        or not there
        or wanted[1] != there[1]
        or wanted[2] == there[2]
        or not isinstance(found.value, Quantity)
    ):
        return found
    if wanted[2] in symbols(found.value.node):
        return found
    node = _renamed(found.value.node, there[2], wanted[2])
    return Named(gold.name, Quantity(node, found.value.percent, found.value.unit))


def _renamed(node: Node, old: str, new: str) -> Node:
    name = new if node.op == "symbol" and node.name == old else node.name
    return Node(node.op, tuple(_renamed(part, old, new) for part in node.parts), name, node.value)


# ---- lists and sets --------------------------------------------------------------------------------------------------


def _items(gold: Items, found: Items) -> bool:
    if gold.brackets in ("", "±"):
        if found.brackets in ("", "±", "{}"):
            return _in_order(gold, found) if gold.labelled else _in_any_order(gold, found)
        return found.brackets in ("()", "[]") and _in_order(gold, found)
    if gold.brackets == "{}":
        if found.brackets == "{}" and len(gold.items) != len(found.items):
            return bool(gold.items and found.items) and _contained(gold, found) and _contained(found, gold)
        return found.brackets in ("{}", "", "±") and _in_any_order(gold, found)
    if len(gold.items) > 2 or gold.brackets == "()":
        alike = found.brackets in (gold.brackets, "") or (len(gold.items) > 2 and found.brackets in ("()", "[]"))
    else:
        alike = found.brackets == gold.brackets
    return alike and _in_order(gold, found)


def _in_order(gold: Items, found: Items) -> bool:
    return len(gold.items) == len(found.items) and all(map(_equal, gold.items, found.items))


def _in_any_order(gold: Items, found: Items) -> bool:
    rest = list(found.items)
    if len(gold.items) != len(rest):
        return False
    if gold.named != found.named and any(isinstance(item, Named) for item in (*gold.items, *rest)):
        return _in_order(gold, found)  # names that one of them leaves out give the order
    for item in gold.items:
        place = next((n for n, other in enumerate(rest) if _equal(item, other)), None)
        if place is None:
            return False
        rest.pop(place)
    return True


def _contained(one: Items, other: Items) -> bool:
    return all(any(_equal(item, there) for there in other.items) for item in one.items)


def _reals(gold: Answer, found: Answer) -> bool:
    if isinstance(gold, Reals) and isinstance(found, Reals):
        if gold.relation is not None and found.relation is not None and same_relation(gold.relation, found.relation):
            return True
        if gold.name and found.name and not one_name(gold.name, found.name):
            return False
    if isinstance(gold, Relation) or isinstance(found, Relation):
        relations = [one.relation if isinstance(one, Reals) else one for one in (gold, found)]
        return all(isinstance(one, Relation) for one in relations) and same_relation(*relations)  # type: ignore[arg-type]
    return same_set(gold, found)


# ---- the rest --------------------------------------------------------------------------------------------------------


def _ratios(gold: Answer, found: Answer) -> bool:
    """Part by part; a time of day with or without am and pm; 3:4 is 3/4 too."""
    if isinstance(gold, Ratio) and isinstance(found, Ratio):
        halves_agree = not (gold.half and found.half) or gold.half == found.half
        return halves_agree and _in_order(Items(gold.parts), Items(found.parts))
    ratio, other = (gold, found) if isinstance(gold, Ratio) else (found, gold)
    if (
        not isinstance(ratio, Ratio)
        or not isinstance(other, Quantity)
        or ratio.half
        or len(ratio.parts) != 2
        or other.node.op != "div"
    ):
        return False
    above, below = ratio.parts
    assert isinstance(above, Quantity) and isinstance(below, Quantity)
    return comparison.equal(Node("div", (above.node, below.node)), other.node) and not other.percent


def _matrices(gold: Answer, found: Answer) -> bool:
    """Cell by cell; a column may be written as a tuple."""
    if isinstance(gold, Matrix) and isinstance(found, Matrix):
        return [len(row) for row in gold.rows] == [len(row) for row in found.rows] and all(
            _equal(one, other)
            for rows in zip(gold.rows, found.rows, strict=True)
            for one, other in zip(*rows, strict=True)
        )
    matrix, other = (gold, found) if isinstance(gold, Matrix) else (found, gold)
    if not isinstance(matrix, Matrix) or not isinstance(other, Items) or other.brackets != "()":
        return False
    flat = [cell for row in matrix.rows for cell in row]
    return 1 in (len(matrix.rows), max(map(len, matrix.rows))) and _in_order(Items(tuple(flat)), Items(other.items))
