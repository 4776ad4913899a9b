"""Writes the BUILD file of every folder from the imports of its modules.

    python -m tools.build_files

This is what Gazelle does for Go: sources, deps and visibility follow from the
code, and a test fails if a BUILD file is out of date. Only the BUILD file at
the top is written by hand.

A folder is one library; each test and each program is a target of its own. At
the top of seed_tf each module is a library, because they are in different
layers. A library is visible to its own layer and to those above it, see
`tools.architecture.LAYERS`.
"""

import collections
import json
import pathlib
import sys

from tools import architecture
from tools.architecture import LAYER, LAYERS, ROOT

# Distributions that are imported by another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "faiss": "faiss_cpu",
    "grpc": "grpcio",
    "sklearn": "scikit_learn",
    "tensorflow_serving": "tensorflow_serving_api",
}


def build_files(root: pathlib.Path = ROOT) -> dict[str, str]:
    """The text of each BUILD file below the top, by its folder."""
    modules = architecture.modules(root)
    imports = collections.defaultdict(set)
    for each in architecture.imports(root):
        imports[each.importer].add(each.imported)
    folders = collections.defaultdict(list)
    for name, path in modules.items():
        if path.name != "conftest.py":  # pytest's; Bazel runs absltest
            folders[path.parent.relative_to(root).as_posix()].append(name)

    packages = {root / folder for folder in folders}

    def rule(kind, name, sources, **attributes):
        """A target whose deps are what its sources import."""
        deps = {_label(m, modules) for s in sources for m in imports[s]}
        deps -= {None}
        if kind == "py_library":
            deps -= {_label(sources[0], modules)}
        return _call(
            kind,
            name=name,
            srcs=[modules[source].name for source in sources],
            deps=sorted((_short(x, folder) for x in deps), key=_order),
            **attributes,
        )

    def is_used(name):
        return any(name in names for names in imports.values())

    files = {}
    for folder, names in folders.items():
        calls, libraries = [], collections.defaultdict(list)
        for name in names:
            path = modules[name]
            text = path.read_text()
            if path.stem.endswith("_test"):
                slow = "pytest.mark.slow" in text
                calls.append(
                    rule(
                        "py_test",
                        path.stem,
                        [name],
                        size="large" if slow else "medium",
                        data=_data(path.parent, packages, text),
                        # Reads the whole repository.
                        local=folder == "tests/repository",
                    )
                )
            elif '\nif __name__ == "__main__":' in text:
                calls.append(rule("py_binary", path.stem.strip("_"), [name]))
                if is_used(name):
                    libraries[_label(name, modules)].append(name)
            else:
                libraries[_label(name, modules)].append(name)
        for label, sources in libraries.items():
            package = "__init__.py" in (modules[s].name for s in sources)
            calls.append(
                rule(
                    "py_library",
                    label.replace(":", "/").rpartition("/")[2],
                    sources,
                    data=package and _data(root / folder, packages),
                    # `from helpers import ...`
                    imports=folder == "tests/helpers" and [".."],
                    testonly=folder.startswith("tests"),
                    visibility=_visibility(sources[0]),
                )
            )
        if folder == "seed_tf":
            calls += _layers(folders)
        files[folder] = _text(calls)
    return files


def _label(module, modules):
    """The target that `module` is in; None for the standard library."""
    if module not in modules:
        name = module.partition(".")[0]
        if name in sys.stdlib_module_names:
            return None
        return f"@pypi//{DISTRIBUTIONS.get(name, name)}"
    parent, _, stem = module.rpartition(".")
    if modules[module].name == "__init__.py":
        return f"//{module.replace('.', '/')}"
    folder = parent.replace(".", "/")
    if parent == "seed_tf" or stem.endswith("_test"):
        return f"//{folder}:{stem.strip('_')}"
    return f"//{folder}"


def _short(label, folder):
    """The label as the BUILD file in `folder` spells it."""
    package, _, name = label.partition(":")
    if package != f"//{folder}":
        return label
    return f":{name or folder.rpartition('/')[2]}"


def _order(label):
    """Buildifier's order: this package, this repository, others."""
    return ":/@".index(label[0]), label.replace(":", ".").split(".")


def _data(folder, packages, text=None):
    """Patterns of the files in a folder that are no modules of ours.

    With a text, only those that it names.
    """
    patterns = []
    for path in sorted(folder.iterdir()):
        name = path.name
        if name in ("BUILD", "__pycache__") or path.suffix == ".py":
            continue
        if text is not None and f'"{name}' not in text:
            continue
        if path.is_file():
            patterns.append(name)
        elif path not in packages:
            patterns.append(f"{name}/**")
    return patterns


def _visibility(module):
    top = architecture.distribution(module)
    if top == "tests":
        return ["//tests:__subpackages__"]
    if top == "benchmarks":
        return ["//tests/benchmarks:__pkg__"]
    if top != "seed_tf":
        return ["//visibility:private"]
    place = architecture.place(module)
    groups = [f"//seed_tf:layer_{LAYER[place]}"]
    if place == "cli":
        groups.insert(0, "//experiments:__pkg__")
    return groups


def _layers(folders):
    """A package_group for each layer: the packages that may use it."""
    calls = []
    for i, names in enumerate(LAYERS):
        packages = {
            f"//{folder}"
            for folder in folders
            for name in names
            if f"{folder}/".startswith(f"seed_tf/{name}/")
        }
        if any(f"seed_tf/{name}" not in folders for name in names):
            packages.add("//seed_tf")
        above = [f":layer_{i + 1}"]
        if i == len(LAYERS) - 1:
            above = []
            packages |= {"//benchmarks/...", "//tests/..."}
        calls.append(
            _call(
                "package_group",
                name=f"layer_{i}",
                packages=sorted(packages),
                includes=above,
            )
        )
    return calls


def _call(kind, **attributes):
    """A rule as Buildifier formats it, without empty attributes."""
    first = ["name", "size", "testonly", "srcs"]
    names = [x for x in first if attributes.get(x)]
    names += sorted(
        (x for x in attributes if attributes[x] and x not in first),
        key=lambda x: (x == "deps", x),
    )
    lines = [f"    {x} = {_value(attributes[x])},\n" for x in names]
    return f"{kind}(\n{''.join(lines)})\n"


def _value(value):
    if not isinstance(value, list):
        return json.dumps(value) if isinstance(value, str) else str(value)
    if len(value) == 1:
        text = json.dumps(value)
    else:
        items = "".join(f"        {json.dumps(x)},\n" for x in value)
        text = f"[\n{items}    ]"
    return f"glob({text})" if "*" in text else text


def _text(calls):
    rules = sorted({x.partition("(")[0] for x in calls if x.startswith("py_")})
    names = ", ".join(json.dumps(x) for x in rules)
    load = f'load("@rules_python//python:defs.bzl", {names})\n'
    return "\n".join([f"# Written by tools.build_files.\n{load}", *calls])


def stale(root: pathlib.Path = ROOT) -> list[str]:
    """Folders whose BUILD file is not what `build_files` writes."""
    expected = build_files(root)
    found = {
        path.parent.relative_to(root).as_posix(): path.read_text()
        for top in architecture.FOLDERS
        for path in (root / top).rglob("BUILD")
    }
    return sorted(
        folder
        for folder in expected.keys() | found.keys()
        if expected.get(folder) != found.get(folder)
    )


def main(root=ROOT):
    files = build_files(root)
    for folder in stale(root):
        path = root / folder / "BUILD"
        if folder in files:
            path.write_text(files[folder])
        else:
            path.unlink()
        print(path.relative_to(root))


if __name__ == "__main__":
    main()
