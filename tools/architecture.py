"""Reads which module imports which, and finds imports that break the layers.

    python -m tools.architecture

Imports inside functions count as well. See "The house" in docs/notes.md.
"""

import ast
import dataclasses
import functools
import graphlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Packages and top-level modules of seed_tf, the lowest layer first. A module
# imports from its own layer and from those below it.
LAYERS = (
    (
        "version",
        "arguments",
        "onednn",
        "io",
        "random",
        "keras_internals",
        "images",
        "resampling",
    ),
    (
        "embeddings",
        "embedding_queue",
        "encoders",
        "losses",
        "optimizers",
        "grouped_batch_norm",
        "replicas",
        "reporting",
    ),
    ("acceleration",),
    ("views",),
    ("trainer",),
    ("seed", "moco"),
    ("datasets",),
    ("checkpoints", "config", "view_cache"),
    ("teachers",),
    ("recipes",),
    ("evaluation",),
    ("conversion", "training"),
    ("detection", "export", "search"),
    ("runs",),
    ("__init__",),
    ("cli", "__main__"),
)
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}

# Each folder of Python files, and those that it may import from.
FOLDERS = {
    "seed_tf": ("seed_tf",),
    "experiments": ("seed_tf",),
    "benchmarks": ("benchmarks", "experiments", "seed_tf"),
    "tools": ("tools",),
    "tests": ("benchmarks", "experiments", "seed_tf", "tests", "tools"),
}


@dataclasses.dataclass(frozen=True)
class Import:
    """`importer` imports `imported` in `line`. Both are names of modules."""

    importer: str
    imported: str
    line: int

    def __str__(self):
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules(root: pathlib.Path = ROOT) -> dict[str, pathlib.Path]:
    """All modules of the repository, by name. A package is its __init__.py."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[:2] == ("tests", "data"):
                continue
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join(parts)] = path
    return found


def imports(root: pathlib.Path = ROOT) -> list[Import]:
    """Every import of every module, those of other distributions included."""
    known = modules(root)
    found = {}  # an import by its modules: the first of several lines
    for importer, path in known.items():
        for name, line in _names(path.read_text()):
            imported = _module(name, importer, known)
            found.setdefault((importer, imported), line)
    return [Import(*pair, line) for pair, line in found.items()]


@functools.cache
def _names(text):
    """What a module imports: dotted names, and their lines."""
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                if node.level:
                    raise ValueError(
                        "Expected absolute imports. Received a relative one: "
                        f"{ast.unparse(node)}"
                    )
                names = [f"{node.module}.{each.name}" for each in node.names]
            # importlib.import_module("seed_tf.search")
            case ast.Call(
                ast.Attribute(_, "import_module"), [ast.Constant(str(name)), *_]
            ):
                names = [name]
            case _:
                continue
        found += [(name, node.lineno) for name in names]
    return found


def _module(name, importer, known):
    """The module that `name` is, or else the one that defines it."""
    prefixes = [""]
    if importer.startswith("tests."):  # tests/ and the script's folder
        prefixes += ["tests.", importer.rpartition(".")[0] + "."]
    for prefix in prefixes:
        for module in (name, name.rpartition(".")[0]):
            if prefix + module in known:
                return prefix + module
    return name


def distribution(name: str) -> str:
    return name.partition(".")[0]


def place(module: str) -> str:
    """The package or top-level module of seed_tf that `module` belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def problems(root: pathlib.Path = ROOT) -> list[str]:
    """What breaks the layers, a line each."""
    found = []
    known = modules(root)
    for name in known:
        if distribution(name) == "seed_tf" and place(name) not in LAYER:
            found.append(f"{name} has no layer: add {place(name)!r} to LAYERS.")
    if found:
        return found
    all_imports = imports(root)
    for each in all_imports:
        reason = _reason(each)
        if reason:
            found.append(f"{each}: {reason}")
    inside = [x for x in all_imports if x.imported in known]
    found += _cycle("modules", ((x.importer, x.imported) for x in inside))
    found += _cycle(
        "packages",
        (
            (place(x.importer), place(x.imported))
            for x in inside
            if distribution(x.importer) == distribution(x.imported) == "seed_tf"
        ),
    )
    return found


def _reason(each):
    """Why an import is wrong, or None."""
    source, target = distribution(each.importer), distribution(each.imported)
    above, below = place(each.importer), place(each.imported)
    if target in FOLDERS and target not in FOLDERS[source]:
        return f"{source}/ may not import {target}/."
    if source == "experiments" and target == "seed_tf" and below != "cli":
        return "launchers import seed_tf.cli and nothing else of seed_tf."
    if each.imported.endswith("_test"):
        return "move what tests share to tests/helpers/."
    if source != "seed_tf":
        return None
    if f"{each.imported}.".startswith("absl.flags.") and above != "cli":
        return "only seed_tf.cli reads flags. Take an argument instead."
    if target == "seed_tf" and LAYER[above] < LAYER[below]:
        return f"{below!r} is in a layer above {above!r}."
    return None


def _cycle(kind, pairs):
    sorter = graphlib.TopologicalSorter()
    for importer, imported in pairs:
        if importer != imported:
            sorter.add(importer, imported)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return [f"A cycle of {kind}: {' <- '.join(error.args[1])}"]
    return []


if __name__ == "__main__":
    wrong = problems()
    print("\n".join(wrong) or "Every import goes down.")
    sys.exit(bool(wrong))
