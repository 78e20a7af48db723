"""Reads what a compiled program does from its text, XLA's HLO.

A program is a tree of computations: a loop repeats others, and a fusion is one operation on the
device whose parts are written down in a computation of its own.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_COMPUTATION = re.compile(r"^(ENTRY )?(%[\w.\-]+) \(")
_OPERATION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|branch_computations|(?:true|false)_computation)"
    r"=(\{[^}]*\}|%[\w.\-]+)"
)
_NAME = re.compile(r"%[\w.\-]+")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Groups of devices: their number and size, all of them, or (from jax 0.11 on) axes of a mesh.
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[([^\]]*)\] \{([^}]*)\})"
)
_AXIS = re.compile(r"'([^']*)'(?:=|:\(\d+\))?(\d*)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
GATHERING = frozenset(["gather", "scatter", "dynamic-slice", "dynamic-update-slice", "sort"])
TAKING = frozenset(["gather", "slice", "dynamic-slice"])

# These take no time of their own.
FREE = frozenset(
    [
        *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast"),
        *("while", "call", "conditional", "after-all", "opt-barrier"),
        *("partition-id", "replica-id"),
    ]
)
MOVING = FREE | {
    *("copy", "copy-start", "copy-done", "slice", "slice-start", "slice-done"),
    *("transpose", "reshape", "reverse", "concatenate", "pad", "broadcast"),
    *("convert", "bitcast-convert", "fusion", "async-start", "async-done"),
}

# Parts of the names of calls to what is no part of the program.
KERNELS = ("tpu_custom_call", "triton", "fmha")
PRODUCTS = ("cublas", "gemm")

KINDS = (
    *("products", "attention kernel", "norms and elementwise", "copies", "gathers"),
    "collectives",
)
"""The kinds of operations among which the time of a program is divided."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation.

    Attributes:
        name: as others refer to it, without the `%`.
        opcode: such as `fusion`.
        result: its type, as in `bf16[8,128]{1,0}`.
        operands: the types of its operands.
        arguments: the text between its parentheses.
        called: names of the computations that it consists of or repeats.
        trips: how often a loop repeats them where the compiler says so, else 0.
        cycles: that the compiler estimates for it, 0 where it makes no estimate.
        text: the rest of its line.
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    arguments: str
    called: tuple[str, ...]
    trips: int
    cycles: int
    text: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its computations by name, and the name of the first."""

    computations: Mapping[str, tuple[Operation, ...]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Reads a program; layouts, metadata and everything else that has no meaning here stay in
        the text."""
        computations: dict[str, list[Operation]] = {}
        types: dict[str, str] = {}
        entry = ""
        own: list[Operation] = []
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                own, types = computations.setdefault(start[2], []), {}
                entry = start[2] if start[1] else entry
            elif found := _OPERATION.match(line):
                name, result, opcode, rest = found.groups()
                types[name] = result
                arguments, _, attributes = rest.partition(")")
                trips, cycles = _TRIPS.search(rest), _CYCLES.search(rest)
                own.append(
                    Operation(
                        name.removeprefix("%"),
                        opcode,
                        result,
                        tuple(types.get(each, "") for each in _NAME.findall(arguments)),
                        arguments,
                        tuple(
                            name
                            for each in _CALLED.findall(attributes)
                            for name in _NAME.findall(each)
                        ),
                        int(trips[1]) if trips else 0,
                        int(cycles[1]) if cycles else 0,
                        attributes,
                    )
                )
        return cls({name: tuple(each) for name, each in computations.items()}, entry)

    def executed(self) -> Iterator[tuple[Operation, int]]:
        """Yields the operations of the device, and how often each is executed.

        All branches of a conditional are counted, and a loop that may end early in full.
        """
        yield from self._of(self.entry, 1)

    def _of(self, name: str, times: int) -> Iterator[tuple[Operation, int]]:
        for each in self.computations[name]:
            if each.opcode in ("while", "call", "conditional"):
                repeated = self._trips(each) if each.opcode == "while" else 1
                for called in each.called:
                    yield from self._of(called, times * repeated)
            elif each.opcode not in FREE:
                yield each, times

    def _trips(self, loop: Operation) -> int:
        """Finds how often a loop is repeated: its condition compares with this number alone."""
        if loop.trips:
            return loop.trips
        limits = [
            int(each.arguments)
            for name in loop.called
            if any(each.result.startswith("pred[]") for each in self.computations[name][-1:])
            for each in self.computations[name]
            if each.opcode == "constant" and each.arguments.isdigit()
        ]
        return limits[0] if len(limits) == 1 else 1

    def parts(self, operation: Operation) -> Iterator[Operation]:
        """Yields an operation, and all that it consists of."""
        yield operation
        if operation.opcode in ("fusion", "async-start"):
            for name in operation.called:
                for each in self.computations[name]:
                    yield from self.parts(each)

    def kind(self, operation: Operation) -> str:
        """Tells what kind of work most of an operation is: one of `KINDS`."""
        opcode = operation.opcode
        if opcode.startswith(COLLECTIVES):
            return "collectives"
        if opcode == "custom-call" and any(name in operation.text for name in PRODUCTS):
            return "products"
        if opcode == "custom-call" and any(name in operation.text for name in KERNELS):
            return "attention kernel"
        inside = {each.opcode for each in self.parts(operation)}
        if inside & {"convolution", "dot"}:
            return "products"
        if any(each.startswith(COLLECTIVES) for each in inside):
            return "collectives"
        if inside & GATHERING:
            return "gathers"
        if inside <= MOVING:
            return "copies"
        return "norms and elementwise"


def arrays(text: str) -> list[tuple[int, tuple[int, ...]]]:
    """The bytes of an element and the sizes of each array of a type."""
    return [
        (
            1 if dtype == "pred" else max(1, int(re.sub(r"\D", "", dtype)) // 8),
            tuple(int(size) for size in sizes.split(",") if size),
        )
        for dtype, sizes in _ARRAY.findall(text)
    ]


def count_bytes(text: str) -> int:
    """The bytes of a type."""
    return sum(element * math.prod(sizes) for element, sizes in arrays(text))


def traffic(program: Program, operation: Operation) -> int:
    """The bytes that an operation reads and writes.

    A fusion that only takes slices of an operand, or gathers rows of it, reads no more than these.
    """
    read = list(map(count_bytes, operation.operands))
    parts = program.computations[operation.called[0]] if operation.opcode == "fusion" else ()
    for part in parts:
        if part.opcode == "parameter":
            place = int(part.arguments)
            taken = _taken(part.name, parts)
            read[place] = read[place] if taken is None else min(read[place], taken)
    return sum(read) + count_bytes(operation.result)


def _taken(name: str, parts: Sequence[Operation]) -> int | None:
    """The bytes of the parts that are taken of an array; None if it is used as a whole."""
    users = [each for each in parts if f"%{name}" in _NAME.findall(each.arguments)]
    whole = (
        each.opcode not in TAKING or f"%{name}" in _NAME.findall(each.arguments)[1:]
        for each in users
    )
    return None if any(whole) else sum(count_bytes(each.result) for each in users)


def sent_bytes(operation: Operation) -> float:
    """The bytes that each of n devices in a ring sends for a collective.

    A sum goes around twice, everything else once, and nobody sends to itself: `(n - 1) / n` of the
    array each time.
    """
    most = max(map(count_bytes, (operation.result, *operation.operands)))
    rounds = 2 if operation.opcode.startswith("all-reduce") else 1
    if groups := _GROUPS.search(operation.text):
        n = _group_size(*groups.groups())
        return rounds * most * (n - 1) / n
    return rounds * most


def _group_size(size: str | None, listed: str | None, mesh: str | None, axes: str | None) -> int:
    """The devices of a group, from the parts of `_GROUPS`; an axis may be a part of a mesh's."""
    if size:
        return int(size)
    if listed:
        return listed.count(",") + 1
    sizes = dict(_AXIS.findall(mesh or ""))
    return math.prod(int(part or sizes[name]) for name, part in _AXIS.findall(axes or ""))


def product_flops(program: Program, operation: Operation) -> float:
    """The FLOPs of the matrix products of an operation: two for every pair of factors."""
    return sum(_dot_flops(each) for each in program.parts(operation))


def _dot_flops(operation: Operation) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", operation.text)
    if operation.opcode != "dot" or not contracted:
        return 0.0
    ((_, factor), *_) = arrays(operation.operands[0])
    ((_, result), *_) = arrays(operation.result)
    inner = math.prod(factor[int(axis)] for axis in contracted[1].split(","))
    return 2.0 * math.prod(result) * inner


def kernel_rows(operation: Operation) -> int:
    """The rows of the attention kernel, whose first operand is the mask `[W, S, S]`."""
    (_, mask), *_ = arrays(operation.operands[0])
    return mask[0]
