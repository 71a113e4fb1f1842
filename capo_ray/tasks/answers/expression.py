r"""An expression, from its cleaned spelling to a tree: LaTeX and program notation in one grammar.

Reads numbers, symbols with subscripts, + - * / ^ !, implied products, fractions, roots, the usual functions with and
without brackets, absolute values, floors and ceilings, and f(x) of an unknown f. What it does not know it refuses: it
never takes a word for the product of its letters, nor two numbers side by side for one. Leaves out words and signs
(tokens) and values (value).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

from capo_ray.tasks.answers.names import FUNCTIONS, GREEK
from capo_ray.tasks.answers.tokens import Unreadable, tokens

_DEEPEST = 60


@dataclass(frozen=True, slots=True)
class Node:
    """`op` over `parts`; a number has a `value`, a symbol, a function and a constant a `name`."""

    op: str
    parts: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


def number(value: int | Fraction) -> Node:
    return Node("number", value=Fraction(value))


def symbols(node: Node) -> frozenset[str]:
    """Names of its free symbols and unknown functions."""
    own = {node.name} if node.op in ("symbol", "call") else set()
    return frozenset(own.union(*(symbols(part) for part in node.parts)))


def contains(node: Node, ops: tuple[str, ...]) -> bool:
    return node.op in ops or node.name in ops or any(contains(part, ops) for part in node.parts)


def parse(text: str) -> Node:
    """Raises Unreadable."""
    return _Parser(tokens(text)).whole()


class _Parser:
    """By recursive descent: sum, product, power, atom."""

    def __init__(self, tokens: list[tuple[str, str, bool]]) -> None:
        self._tokens, self._at, self._depth = tokens, 0, 0

    def whole(self) -> Node:
        node = self._sum()
        if self._at < len(self._tokens):
            self._refuse()
        return node

    def _refuse(self) -> NoReturn:
        raise Unreadable(f"{self._text()!r} has no place here" if self._at < len(self._tokens) else "it ends too early")

    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _text(self, ahead: int = 0) -> str:
        return self._tokens[self._at + ahead][1] if self._at + ahead < len(self._tokens) else ""

    def _take(self, *texts: str) -> bool:
        if self._kind() != "number" and self._text() in texts:
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._refuse()

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Unreadable("too deep")
        node = self._product()
        while self._text() in ("+", "-"):
            sign = self._text()
            self._at += 1
            right = self._product()
            node = Node("add", (node, right if sign == "+" else Node("neg", (right,))))
        self._depth -= 1
        return node

    def _product(self) -> Node:
        if self._take("-"):
            return Node("neg", (self._product(),))
        if self._take("+"):
            return self._product()
        node = self._power()
        while True:
            if self._take("*"):
                node = Node("mul", (node, self._signed()))
            elif self._take("/"):
                node = Node("div", (node, self._signed()))
            elif self._starts_atom():
                right = self._power()
                if node.op == "number" and right.op == "div" and all(part.op == "number" for part in right.parts):
                    raise Unreadable("a whole number before an improper fraction is neither a sum nor a product")
                node = Node("mul", (node, right))
            else:
                return node

    def _signed(self) -> Node:
        if self._take("-"):
            return Node("neg", (self._signed(),))
        self._take("+")
        return self._power()

    def _starts_atom(self) -> bool:
        """Whether a factor follows. A number does so only behind a closing bracket: 1 2 and x2 are no products."""
        kind, text = self._kind(), self._text()
        if kind == "number":
            return self._text(-1) in (")", "]") if self._at else False
        if kind == "letter":
            return True
        if kind == "command":
            return text[1:] in _STARTS
        return text in ("(", "[", "{") and kind == "sign"

    def _power(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Unreadable("too deep")
        node = self._postfix(self._atom())
        if self._take("^"):
            node = self._postfix(Node("pow", (node, self._exponent())))
        self._depth -= 1
        return node

    def _exponent(self) -> Node:
        """Powers are taken from the right: 2^3^4 is 2^(3^4)."""
        if self._take("-"):
            return Node("neg", (self._exponent(),))
        self._take("+")
        return self._power()

    def _postfix(self, node: Node) -> Node:
        while True:
            if self._take("!"):
                if self._text() == "!":
                    self._refuse()
                node = Node("call_known", (node,), "factorial")
            elif self._take("\\deg"):
                node = Node("degrees", (node,))
            else:
                return node

    def _atom(self) -> Node:
        kind, text = self._kind(), self._text()
        self._at += 1
        if kind == "number":
            return Node("number", value=Fraction(text.rstrip(".") if text.endswith(".") else text))
        if kind == "letter":
            return self._letter(text)
        if kind == "sign" and text in _CLOSING:
            return self._bracket(text)
        if kind == "command":
            return self._command(text[1:])
        self._at -= 1
        self._refuse()

    def _bracket(self, opening: str) -> Node:
        node = self._sum()
        self._expect(_CLOSING[opening])
        return node if opening != "|" else Node("call_known", (node,), "abs")

    def _letter(self, letter: str) -> Node:
        if (letter in "fgh" and self._text() == "(") or (letter in "fgh" and self._text() in ("'", "_")):
            name = self._named(letter).name
            if self._take("("):
                argument = self._sum()
                self._expect(")")
                return Node("call", (argument,), name)
            return Node("symbol", name=name)
        if letter in ("e", "i") and self._text() not in ("_", "'"):
            return Node("constant", name=letter)
        return self._named(letter)

    def _named(self, name: str) -> Node:
        """With its subscript and primes."""
        while self._text() in ("_", "'"):
            if self._take("'"):
                name += "'"
                continue
            self._at += 1
            name += "_" + self._subscript()
        return Node("symbol", name=name)

    def _subscript(self) -> str:
        if not self._take("{"):
            self._at += 1
            return self._text(-1).lstrip("\\")
        parts = []
        while not self._take("}"):
            if self._at >= len(self._tokens):
                self._refuse()
            parts.append(self._text().lstrip("\\"))
            self._at += 1
        return "".join(parts)

    def _command(self, name: str) -> Node:
        if name == "frac":
            above, below = self._group(), self._group()
            return Node("div", (above, below))
        if name == "binom":
            return Node("call_known", (self._group(), self._group()), "binom")
        if name == "sqrt":
            return self._root()
        if name in ("lfloor", "lceil"):
            node = self._sum()
            self._expect("\\r" + name[1:])
            return Node("call_known", (node,), "floor" if name == "lfloor" else "ceil")
        if name in ("pi", "infty"):
            return Node("constant", name=name)
        if name in ("currency", "dollar"):
            return self._power()
        if name in FUNCTIONS:
            return self._function(name)
        if name in GREEK:
            return self._named(name)
        self._at -= 1
        self._refuse()

    def _group(self) -> Node:
        self._expect("{")
        node = self._sum()
        self._expect("}")
        return node

    def _root(self) -> Node:
        index = number(2)
        if self._take("["):
            index = self._sum()
            self._expect("]")
        inner = self._bracket(self._tokens[self._at - 1][1]) if self._take("{", "(") else self._power()
        return Node("call_known", (inner, index), "root")

    def _function(self, name: str) -> Node:
        base: Node | None = None
        power: Node | None = None
        while self._text() in ("_", "^"):
            if self._take("_"):
                base = self._group() if self._text() == "{" else self._atom()
            else:
                self._at += 1
                power = self._group() if self._text() == "{" else self._exponent()
        argument = self._argument()
        if power is not None and power == Node("neg", (number(1),)) and name in ("sin", "cos", "tan"):
            name, power = "arc" + name, None
        parts = (argument,) if base is None else (argument, base)
        node = Node("call_known", parts, name)
        return node if power is None else Node("pow", (node, power))

    def _argument(self) -> Node:
        """In brackets; else the factors that follow, up to a sign or the next function."""
        if self._take("(", "{", "[", "|"):
            node = self._bracket(self._tokens[self._at - 1][1])
            return self._postfix(node)
        if self._take("-"):
            return Node("neg", (self._argument(),))
        node = self._power()
        while self._starts_atom() and not (
            self._kind() == "command" and self._text()[1:] in FUNCTIONS and self._text() != "\\sqrt"
        ):
            node = Node("mul", (node, self._power()))
        return node


_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
_STARTS = {*FUNCTIONS, *GREEK, "pi", "frac", "binom", "lfloor", "lceil", "infty"}
