"""The shape of a package by its files: who imports whom, circles, comments, private names, overridden methods.

Files are read, never imported. A package is named by its folder, so that the tests can try each rule on a made-up one.
"""

import ast
import io
import re
import tokenize
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Graph = Mapping[str, Set[str]]

# What a namedtuple has is public; its names begin so lest they clash with its fields.
# Documented as public whatever they begin with: the methods of named tuples, and the way out of a process.
_PUBLIC = {"_exit", "_asdict", "_fields", "_field_defaults", "_make", "_replace"}
_PRAGMA = re.compile(r"#\s*(?:noqa|ruff:|type:|pragma:|fmt:)")
_REASON = re.compile(r"#\s*(?:ruff: )?noqa: PLC0415\W+\w+")


@cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def modules_of(package: Path) -> dict[str, Path]:
    """The files of a package by the name of their module; an empty `__init__.py` holds nothing, and is none of them."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[-1] != "__init__":
            found[".".join(parts)] = path
        elif path.stat().st_size:
            found[".".join(parts[:-1])] = path
    return found


@dataclass(frozen=True)
class Import:
    """One module that a file imports. deferred: inside a function, so that it is imported when that is called."""

    module: str
    names: tuple[str, ...]
    line: int
    deferred: bool


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Every import of a file that runs, in order: those for type checkers do not."""
    return tuple(_imports(tree_of(path), deferred=False))


def _imports(node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, (), node.lineno, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "an import that starts with a dot: write the module's whole name"
        yield Import(node.module or "", tuple(alias.name for alias in node.names), node.lineno, deferred)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.orelse:
            yield from _imports(child, deferred=deferred)
    else:
        deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, deferred=deferred)


def own_imports(path: Path, package: Path) -> frozenset[str]:
    """The modules of its own package that a file imports: `from a import b` is a.b where there is such a module."""
    modules = modules_of(package)
    found = set()
    for one in imports_of(path):
        inner = {f"{one.module}.{name}" for name in one.names} & modules.keys()
        found |= inner
        if one.module in modules and len(inner) < max(len(one.names), 1):
            found.add(one.module)
    return frozenset(found)


def import_graph(package: Path) -> Graph:
    """Each module with those that it imports; the package's own `__init__.py`, which is lazy, is left out."""
    modules = {name: path for name, path in modules_of(package).items() if name != package.name}
    return {name: own_imports(path, package) & modules.keys() for name, path in modules.items()}


def circles(graph: Graph) -> list[str]:
    """The shortest circle of each knot in a graph, as "a > b > a"; [] where there is none.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
    ['b > c > b']
    """
    return sorted(_shortest_circle(graph, knot) for knot in _knots(graph))


def _knots(graph: Graph) -> list[set[str]]:
    """The strongly connected components with more than one node, or with an arrow to itself (Tarjan 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}  # the earliest node on the stack that a node leads back to
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
            if target in stack:
                lowest[node] = min(lowest[node], lowest[target])
        if lowest[node] == index[node]:
            start = stack.index(node)
            found.append(set(stack[start:]))
            del stack[start:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return [knot for knot in found if len(knot) > 1 or any(node in graph[node] for node in knot)]


def _shortest_circle(graph: Graph, knot: Set[str]) -> str:
    def around(start: str) -> list[str]:
        ways = deque([[start]])
        seen: set[str] = set()
        while ways:
            way = ways.popleft()
            for target in sorted(graph[way[-1]] & knot):
                if target == start:
                    return [*way, start]
                if target not in seen:
                    seen.add(target)
                    ways.append([*way, target])
        raise AssertionError(f"{start} is in no circle")

    return " > ".join(min((around(node) for node in sorted(knot)), key=len))


def arrows(package: Path, folder: Path) -> set[tuple[str, str]]:
    """Pairs of rooms, of which the first imports the second; a room is a folder in `folder`, or a file beside it."""
    base = ".".join(folder.relative_to(package.parent).parts) + "."
    pairs = {
        (module.removeprefix(base).partition(".")[0], target.removeprefix(base).partition(".")[0])
        for module, targets in import_graph(package).items()
        for target in targets
        if module.startswith(base) and target.startswith(base)
    }
    return {(room, other) for room, other in pairs if room != other}


def deferred_without_reason(path: Path) -> list[int]:
    """Lines of imports inside functions that have no `# noqa: PLC0415 (reason)`, nor has the file one for all."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if any(line.startswith("# ruff: noqa: PLC0415") and _REASON.search(line) for line in lines):
        return []
    return [one.line for one in imports_of(path) if one.deferred and not _REASON.search(lines[one.line - 1])]


def share_of_comments(path: Path) -> float:
    """Comments over lines, in percent: those beside code, as the shape of a tensor, count too, `# noqa` does not."""
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    telling = [comment for comment in comments if not _PRAGMA.match(comment)]
    return 100 * len(telling) / max(text.count("\n"), 1)


def methods_of(node: ast.ClassDef) -> set[str]:
    """The names of a class's own methods and properties."""
    return {child.name for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)}


def overridden_private_methods(package: Path) -> set[str]:
    """Private methods that a class overrides of another class of the package, at any depth: "Child._name over Parent".

    Classes are told apart by name alone; of two with one name either counts as a base.
    """
    classes: dict[str, list[ast.ClassDef]] = {}
    for path in modules_of(package).values():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)

    def ancestors(names: Set[str]) -> set[str]:
        bases = {_base_name(base) for name in names for node in classes[name] for base in node.bases}
        found = names | (bases & classes.keys())
        return found if found == names else ancestors(found)

    return {
        f"{name}.{method} over {base}"
        for name, nodes in classes.items()
        for base in ancestors({name}) - {name}
        for method in set().union(*map(methods_of, nodes)) & set().union(*map(methods_of, classes[base]))
        if method.startswith("_") and not method.endswith("__")
    }


def _base_name(base: ast.expr) -> str:
    """The name of a base class, without its module and type arguments: `module.Base[int]` is Base."""
    while isinstance(base, ast.Subscript):
        base = base.value
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


@cache
def own_names(package: Path) -> frozenset[str]:
    """What a package defines anywhere: functions, classes, variables, fields, attributes of `self` and `cls`."""
    found = set()
    for path in modules_of(package).values():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                found.add(node.attr)
    return frozenset(found)


def private_names(path: Path, package: Path) -> set[str]:
    """Private names of other libraries that a file uses: in imports, as attributes, in `getattr(x, "_name")`."""
    found = set()
    for one in imports_of(path):
        if one.module.partition(".")[0] != package.name:
            found |= {part for part in (*one.module.split("."), *one.names) if _is_private(part)}
    for node in ast.walk(tree_of(path)):
        name = _attribute(node)
        if name is not None and _is_private(name) and name not in own_names(package):
            found.add(name)
    return found


def _attribute(node: ast.AST) -> str | None:
    """The attribute that an expression reads, writes or asks for by its name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if not isinstance(node, ast.Call) or len(node.args) < 2 or not isinstance(node.func, ast.Name):
        return None
    asked, by_name = node.args[1], node.func.id in {"getattr", "hasattr", "setattr", "delattr"}
    return asked.value if by_name and isinstance(asked, ast.Constant) and isinstance(asked.value, str) else None


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _PUBLIC


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}
