"""Reads pickles without running them: what they use, and what they cost.

A pickle of a few bytes can describe a tuple of 2**40 others, by naming the
same tuple twice at each level, and hashing or printing the tuple takes years.
PyTorch's reader has no limit. So the program is first followed here with the
sizes of its values in place of the values.
"""

from __future__ import annotations

import pickletools
from typing import Any

# A state dict of a thousand tensors takes 2**15 instructions, and its values
# are ten deep.
_MOST_BYTES = 2**26
_MOST_DEPTH = 100
_FREE_WORK, _WORK = 10**6, 64  # values handled: at all, and per instruction

_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_GROW = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}


class BombError(ValueError):
    """A small pickle that would take memory or time without measure."""


def names_in(file: Any) -> set[str]:
    """Follows the next pickle of a file.

    Args:
        file: binary file or mmap at the start of a pickle. It is left at the
            end.

    Returns:
        The full names of the classes and functions that the pickle uses.

    Raises:
        BombError: if reading the pickle would take without measure.
        ValueError: if the pickle is damaged.
    """
    names: set[str] = set()
    stack: list = []
    memo: dict[int, tuple[int, int]] = {}
    count = work = 0
    start = file.tell()
    for code, argument, _ in pickletools.genops(file):
        count += 1
        if code.name in ("GLOBAL", "INST"):
            module, _, name = argument.partition(" ")
            names.add(f"{module.replace('__builtin__', 'builtins')}.{name}")
        try:
            if code.name in _PUT:
                memo[len(memo) if argument is None else argument] = stack[-1]
                continue
            if code.name in _GET:
                stack.append(memo[argument])
                continue
            taken = _take(stack, code.stack_before)
        except (IndexError, KeyError) as error:
            raise ValueError("its pickle is damaged") from error
        grown = taken[:1] if code.name in _GROW else []
        sizes, depths = zip((0, -1), *taken[len(grown) :], strict=True)
        work += sum(sizes)
        depth = max(1 + max(depths), *(each[1] for each in grown), 0)
        if (
            work > _FREE_WORK + _WORK * count
            or depth > _MOST_DEPTH
            or file.tell() - start > _MOST_BYTES
        ):
            raise BombError(
                f"its pickle describes {work:,} values, {depth} deep, in "
                f"{count:,} instructions."
            )
        size = 1 + sum(sizes) + sum(each[0] for each in grown)
        for kind in code.stack_after:
            mark = kind is pickletools.markobject
            stack.append(None if mark else (size, depth))
    return names


def _take(stack, kinds):
    """Takes what an instruction takes off the stack."""
    taken = []
    if pickletools.markobject in kinds:
        while (top := stack.pop()) is not None:
            taken.append(top)
        kinds = kinds[: kinds.index(pickletools.markobject)]
    taken += [stack.pop() for _ in kinds]
    return [x for x in reversed(taken) if x is not None]
