"""Groups rows alike in length under a limit of tokens, so that little of what a model computes is padding."""

from collections.abc import Sequence


def groups_within(num_tokens: Sequence[int], most_tokens: int, *, most_rows: int | None = None) -> list[list[int]]:
    """Row numbers in groups, longest first: a group's rows times its longest row's tokens is at most `most_tokens`.

    A row that is longer than that is a group of its own.

    >>> groups_within([3, 9, 4, 9], 18)
    [[1, 3], [2, 0]]
    >>> groups_within([3, 9, 4, 9], 18, most_rows=1)
    [[1], [3], [2], [0]]
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(num_tokens)), key=lambda row: -num_tokens[row]):
        last = groups[-1] if groups else []
        room = most_rows is None or len(last) < most_rows
        if last and room and (len(last) + 1) * num_tokens[last[0]] <= most_tokens:
            last.append(row)
        else:
            groups.append([row])
    return groups
