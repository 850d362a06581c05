"""README, CONTRIBUTING, docs and the comments that users read name nothing that does not exist.

Read are all Markdown files, the comments of the YAML files, and the docstrings of benchmarks and examples. All of them
keep the same rules, decisions too: a name that is gone may be told of where it is struck through, ~~`old_name`~~.
Not checked are single words without an underscore (`epochs`, `infonce`) outside of YAML, `key: value` and tables of
keys: they may be anything.
"""

import ast
import pydoc
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import typer

from tests.documents import (
    FOLDERS,
    ROOT,
    Document,
    documents,
    leads_somewhere,
    members,
    names_in_code,
    repository_files,
    script_flags,
)
from vembed.cli import app
from vembed.configuration.keys import faults_of
from vembed.configuration.layers import flags_of
from vembed.configuration.sections import SECTIONS, every_key
from vembed.configuration.yaml_text import parse_value, parse_yaml
from vembed.data.settings import DataEntry
from vembed.losses.registry import LossRegistry
from vembed.utils.settings import Section

EXCEPTIONS = {
    "file: my_trackers.py": "the page has the reader write it",
    "file: regnet_family.py": "the page has the reader write it",
    "flag: --logdir": "an option of TensorBoard",
    "flag: --signal": "an option of sbatch",
    "key: include_prompt": "a field of sentence-transformers' files",
    "key: mask_ratio": "a field of an MAE's config.json",
    "key: with_lora": "a block of presets",
    "module: vembed.schema.json": "a file that the reader's editor reads",
    "name: negative_1": "a column of data that sentence-transformers wrote",
    "name: negative_2": "a column of data that sentence-transformers wrote",
    "path: vembed/teachers": "a folder in the user's cache",
}

# How many names of a kind the documents have at least, a name once per document.
LEAST = {
    "command": 32,
    "option": 26,
    "script flag": 40,
    "flag": 80,
    "make target": 8,
    "key": 190,
    "value": 65,
    "name": 250,
    "class": 30,
    "member": 4,
    "variable": 2,
    "path": 55,
    "file": 60,
    "link": 25,
    "module": 38,
    "extra": 5,
}

BEFORE = r"(?:[A-Z_]+=\S+ |uv run )*(?:\S*/)?"
VEMBED = re.compile(BEFORE + r"(?:python -m )?vembed((?: .*)?)")
SCRIPT = re.compile(BEFORE + rf"python ((?:{'|'.join(FOLDERS)})/\S+\.py)(.*)")
MAKE = re.compile(r"make ([\w-]+)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
KEY_AND_VALUE = re.compile(r"([a-z]\w*):(?: |$)")
ASSIGNED = re.compile(r"([a-z]\w*)=")
SNAKE_CASE = re.compile(r"([a-z][a-z0-9]*(?:_[a-z0-9]+)+)(?:\(.*\))?")
CAPITALISED = re.compile(r"([A-Z]\w*[a-z]\w*)((?:\.\w+)*)(?:\(.*\))?")
UPPER_CASE = re.compile(r"([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=.*)?")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*")
FILE = re.compile(r"(?<![\w./-])[\w./-]+\.(?:py|md|toml)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOTTED = re.compile(r"\bvembed(?:\.\w+)+(?::\w+)?")
FIRST_CELL = re.compile(r"^\| `(\w+)`", re.MULTILINE)
EXTRAS = re.compile(r"vembed-factory\[([\w,]+)\]")
KEY_TABLE = re.compile(r"^\| (?:key|option) \|.*\n\|[-| ]+\n((?:\|.*\n?)+)", re.MULTILINE)


@dataclass(frozen=True)
class Mention:
    """A name that a document has, of what kind it is, and whether there is such a thing."""

    kind: str
    name: str
    exists: bool


def mentions(document: Document) -> Iterator[Mention]:
    """Every name in a document that can be checked."""
    yield from commands(document)
    yield from flags(document)
    yield from keys(document)
    yield from names(document)
    yield from paths(document)
    yield from modules(document)


def commands(document: Document) -> Iterator[Mention]:
    """Commands of vembed with their options, scripts with theirs, targets of make."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in document.lines:
        if found := VEMBED.fullmatch(line):
            yield from vembed_command(shlex.split(found[1], comments=True))
        elif (found := SCRIPT.fullmatch(line)) and (ROOT / found[1]).is_file():
            for flag in FLAG.findall(found[2]):
                yield Mention("script flag", f"{found[1]} {flag}", flag in script_flags(found[1]))
        elif found := MAKE.match(line):
            yield Mention("make target", found[1], found[1] in targets)


def vembed_command(words: list[str]) -> Iterator[Mention]:
    """The command, and its subcommand, that the words after `vembed` begin with; then its options and keys."""
    command = typer.main.get_command(app)
    while words and not words[0].startswith("-") and (known := subcommands(command)):
        yield Mention("command", words[0], words[0] in known)
        if words[0] not in known:
            return
        command, words = known[words[0]], words[1:]
    takes_keys = command.context_settings.get("ignore_unknown_options", False)
    for word in words:
        name = word.partition("=")[0]
        if word.startswith("--"):
            yield Mention("option", name, name in options(command) or (takes_keys and is_key(name[2:])))
        elif takes_keys and "=" in word:
            yield Mention("option", name, is_key(name))


def subcommands(command: typer.core.TyperCommand) -> dict[str, typer.core.TyperCommand]:
    return getattr(command, "commands", {})


def options(command: typer.core.TyperCommand) -> set[str]:
    """The options of a command itself, config keys not among them."""
    return {"--help", *(name for parameter in command.params for name in parameter.opts)}


@cache
def known_flags() -> frozenset[str]:
    """The options of all commands and of all scripts."""
    waiting, known = [typer.main.get_command(app)], set()
    while waiting:
        command = waiting.pop()
        waiting += subcommands(command).values()
        known |= options(command)
    scripts = [name[1:] for name in repository_files() if name.startswith(("/benchmark/", "/examples/"))]
    return frozenset(known.union(*(script_flags(name) for name in scripts if name.endswith(".py"))))


def is_key(name: str) -> bool:
    """Whether an option without its hyphens is a config key, or switches one off (`no-report`)."""
    key = name.replace("-", "_")
    return key in every_key() or key.removeprefix("no_") in flags_of(every_key().values())


def flags(document: Document) -> Iterator[Mention]:
    """Options anywhere in the text."""
    for flag in FLAG.findall(document.text):
        yield Mention("flag", flag, flag in known_flags() or is_key(flag[2:]))


def keys(document: Document) -> Iterator[Mention]:
    """Keys of YAML blocks, of `key: value` spans with their values, and of tables headed "key" or "option"."""
    known = every_key().keys() | DataEntry.model_fields.keys() | document.code_names
    found = [match[1] for span in document.spans if (match := KEY_AND_VALUE.match(span))]
    found += [key for rows in KEY_TABLE.findall(document.text) for key in FIRST_CELL.findall(rows)]
    found += [key for block in document.blocks if block.language == "yaml" for key in yaml_keys(block.code)]
    yield from (Mention("key", key, key in known) for key in found)
    for span in document.spans:
        key, _, value = span.partition(": ")
        if value and key in every_key():
            yield Mention("value", span, not faults_of(section_of(key), {key: parse_value(value)}))


def section_of(key: str) -> type[Section]:
    """The section that declares a key: one of every run, or that of a loss."""
    name = every_key()[key].section
    return SECTIONS[name] if name in SECTIONS else LossRegistry.get(name.removeprefix("loss_type: ")).settings


def yaml_keys(code: str) -> Iterator[str]:
    """The keys of a config, and those of the data sets that it lists."""
    for key, value in parse_yaml(code).values.items():
        yield key
        if key.endswith("data_path") and isinstance(value, list):
            yield from (name for entry in value if isinstance(entry, dict) for name in entry)


def names(document: Document) -> Iterator[Mention]:
    """Names in spans: of functions, keys and fields, of classes with what they have, of the environment."""
    known = names_in_code() | document.code_names
    for span in document.spans:
        if found := SNAKE_CASE.fullmatch(span) or ASSIGNED.match(span):
            yield Mention("name", found[1], found[1] in known)
        elif found := UPPER_CASE.fullmatch(span):
            yield Mention("variable", found[1], found[1] in known)
        elif found := CAPITALISED.fullmatch(span):
            yield Mention("class", found[1], found[1] in known)
            of_class = members().get(found[1], known)
            yield from (Mention("member", span, name in of_class) for name in found[2].split(".")[1:2])


def paths(document: Document) -> Iterator[Mention]:
    """Files and folders of the repository: from its root, from any folder of it (`losses/strips.py`), and as links."""
    text = LINK.sub("", document.text)
    for path in PATH.findall(text):
        yield Mention("path", path, any(ROOT.glob(path.rstrip("."))))
    for name in FILE.findall(text):
        yield Mention("file", name, any(file.endswith(f"/{name}") for file in repository_files()))
    for target in LINK.findall(document.prose):
        if "://" not in target:
            yield Mention("link", target, leads_somewhere(document.path, target))


def modules(document: Document) -> Iterator[Mention]:
    """Dotted names that begin with vembed, in the text and in the imports of Python blocks; extras of the package."""
    dotted = [name.replace(":", ".") for name in DOTTED.findall(document.text)]
    dotted += [name for block in document.blocks if block.language == "python" for name in imported_names(block.code)]
    yield from (Mention("module", name, pydoc.locate(name) is not None) for name in dotted)
    declared = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for extras in EXTRAS.findall(document.text):
        yield from (Mention("extra", name, name in declared) for name in extras.split(","))


def imported_names(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vembed":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def missing(document: Document) -> set[str]:
    """What a document names that does not exist."""
    return {f"{mention.kind}: {mention.name}" for mention in mentions(document) if not mention.exists}


@pytest.mark.parametrize("name", documents())
def test_a_document_names_only_what_exists(name):
    assert missing(documents()[name]) - EXCEPTIONS.keys() == set()


def test_every_exception_is_met():
    assert EXCEPTIONS.keys() <= set().union(*map(missing, documents().values()))


def test_names_of_every_kind_are_seen():
    found = Counter(mention.kind for document in documents().values() for mention in set(mentions(document)))
    assert len(documents()) > 50
    assert {kind: least for kind, least in LEAST.items() if found[kind] < least} == {}
    assert found.keys() == LEAST.keys()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`vembed trian my.yaml`", "command: trian"),
        ("```bash\nvembed config shows  # all\n```", "command: shows"),
        ("`vembed\nencode output --batchsize 3`", "option: --batchsize"),
        ("Text:\n\n    python -m vembed train my.yaml batchsize=3\n", "option: batchsize"),
        ("`python benchmark/step.py --batch_size 64`", "script flag: benchmark/step.py --batch_size"),
        ("`make tests`", "make target: tests"),
        ("```bash\nmake lint  # `make lints` is quicker\n```", "make target: lints"),
        ("with --benchmarks, it", "flag: --benchmarks"),
        ("```yaml\nepoch: 3\n```", "key: epoch"),
        ("```yaml\ndata_path: [{path: a.csv, weigth: 2}]\n```", "key: weigth"),
        ("`epoch: 3`", "key: epoch"),
        ("| option | effect |\n|---|---|\n| `margins` | more |\n", "key: margins"),
        ("`epochs: many`", "value: epochs: many"),
        ("`bach_size`", "name: bach_size"),
        ("`VEMBED_DEBUGS=1`", "variable: VEMBED_DEBUGS"),
        ("`GradCash`", "class: GradCash"),
        ("`Trainer.overviews()`", "member: Trainer.overviews()"),
        ("in docs/speeds.md", "path: docs/speeds.md"),
        ("`losses/stripes.py`", "file: losses/stripes.py"),
        ("[speed](docs/speed.md#slowness)", "link: docs/speed.md#slowness"),
        ("`vembed.cli:apps`", "module: vembed.cli.apps"),
        ("```python\nfrom vembed import Trainers\n```", "module: vembed.Trainers"),
        ("`pip install vembed-factory[lightening]`", "extra: lightening"),
    ],
)
def test_a_mistyped_name_is_found_unless_struck_through(text, wrong):
    page = ROOT / "PAGE.md"
    assert wrong in missing(Document(page, text))
    assert missing(Document(page, f"~~{text}~~")) == set()
