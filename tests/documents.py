"""The documents of the repository, taken apart: prose, spans and blocks of code; and the names that its code has."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "vembed", "tests", "examples", "benchmark", ".github", ".ci")
_WHERE = ("*.md", "docs/**/*.md", ".github/**/*.md", "examples/*", "vembed/configs/*.yaml", "benchmark/*.py")

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1``` *$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*(?:\n|$)|\n(?= {4}))+")
_SPAN = re.compile(r"(`+)(.+?)\1(?!`)", re.DOTALL)
_GONE = re.compile(r"~~.+?~~", re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s)# ?(.*)$")


@dataclass(frozen=True)
class Block:
    """Lines of code in a language, "" where none is named."""

    language: str
    code: str


@dataclass(frozen=True)
class Document:
    """A page of Markdown."""

    path: Path
    source: str = field(repr=False)

    @cached_property
    def text(self) -> str:
        """The page without what is ~~struck through~~."""
        return _GONE.sub("", self.source)

    @cached_property
    def blocks(self) -> list[Block]:
        """Its fenced and indented blocks."""
        fenced = [Block(language, code) for _, language, code in _FENCE.findall(self.text)]
        return fenced + [Block("", found.group()) for found in _INDENTED.finditer(self._unfenced)]

    @cached_property
    def prose(self) -> str:
        """The text without its blocks."""
        return _INDENTED.sub("", self._unfenced)

    @cached_property
    def spans(self) -> list[str]:
        """The code in its prose and in comments of its blocks, each in one line."""
        paragraphs = re.split(r"\n\s*\n|(?<=\|)\n", self.prose)
        paragraphs += [line for block in self.blocks for line in block.code.splitlines()]
        return [" ".join(code.split()) for text in paragraphs for _, code in _SPAN.findall(text)]

    @cached_property
    def lines(self) -> list[str]:
        """All code: every span, and every line of every block, with those that it goes on in."""
        blocks = [re.sub(r"\\\n\s*", "", block.code) for block in self.blocks]
        return self.spans + [line.strip() for code in blocks for line in code.splitlines()]

    @cached_property
    def code_names(self) -> frozenset[str]:
        """The names that its own Python has: what a page defines it may speak of."""
        trees = [ast.parse(block.code) for block in self.blocks if block.language == "python"]
        return frozenset(name for tree in trees for node in ast.walk(tree) for name in names_of(node))

    @property
    def _unfenced(self) -> str:
        return _FENCE.sub("", self.text)


def read_document(path: Path) -> Document:
    """A Markdown file, the comments of a YAML file, or the docstring of a Python file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        text = _comments(text)
    elif path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    return Document(path, text)


@cache
def documents() -> dict[str, Document]:
    """Every document by its path in the repository."""
    paths = sorted({path for pattern in _WHERE for path in ROOT.glob(pattern) if path.is_file()})
    return {path.relative_to(ROOT).as_posix(): read_document(path) for path in paths}


@cache
def repository_files() -> list[str]:
    """The files of the repository, as /path/from/its/root."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return ["/" + path.relative_to(ROOT).as_posix() for path in [*ROOT.iterdir(), *inside] if path.is_file()]


@cache
def names_in_code() -> frozenset[str]:
    """The names that code defines or uses and, but in tests, the words that it has as text (columns, fields)."""
    names = set()
    for file in repository_files():
        if file.endswith(".py"):
            tree = ast.parse((ROOT / file[1:]).read_text(encoding="utf-8"))
            names |= {name for node in ast.walk(tree) for name in names_of(node, texts=not file.startswith("/tests/"))}
    return frozenset(names)


@cache
def members() -> dict[str, frozenset[str]]:
    """The classes of vembed by name, with what they and their bases in vembed define."""
    files = (ROOT / "vembed").rglob("*.py")
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def members_of(name: str) -> set[str]:
        if name not in classes:
            return set()
        bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
        return {found for node in ast.walk(classes[name]) for found in _bound(node)}.union(*map(members_of, bases))

    return {name: frozenset(members_of(name)) for name in classes}


@cache
def script_flags(script: str) -> frozenset[str]:
    """The options that a script adds to its argparse, by name or as the fields of a class of vembed."""
    source = (ROOT / script).read_text(encoding="utf-8")
    flags = set(re.findall(r"add_argument\(\s*\"(--[\w-]+)\"", source))
    for name in re.findall(r"in fields\((\w+)\)", source):
        flags |= {f"--{member}" for member in members()[name]}
    return frozenset(flags)


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a link's file is there, and has the heading that it names."""
    name, _, anchor = target.partition("#")
    path = page.parent / name if name else page
    return path.exists() and (not anchor or anchor in _anchors(path))


def _anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def names_of(node: ast.AST, *, texts: bool = True) -> Iterator[str]:
    """The names in one node of a syntax tree, parts of dotted ones each for itself; with `texts`, its text too."""
    for field_name, value in ast.iter_fields(node):
        if isinstance(value, str) and (texts or field_name != "value"):
            yield from value.split(".")


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a node defines or assigns."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.id if isinstance(node, ast.Name) else node.attr


def _comments(yaml: str) -> str:
    """The comments of a YAML file as Markdown: what they indent is a block, and one behind a value a paragraph."""
    found = [(line.startswith("#"), _COMMENT.search(line)) for line in yaml.splitlines()]
    lines = [(whole, re.sub(r"^ {2,}", "    ", comment[1])) for whole, comment in found if comment]
    return "\n".join(text if whole else f"\n{text}\n" for whole, text in lines)
