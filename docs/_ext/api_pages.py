"""The pages of the API reference, written from docstrings at every build.

One page per public name, listed by task in ``api.toml``; and, for developers, one page per package
that goes through its modules and leaves out what has a page of its own.
"""

import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from sphinx.domains.python import ObjectEntry
from sphinx.pycode import ModuleAnalyzer

import pyrodyn

DOCS = Path(__file__).parent.parent
FOLDER = DOCS / "api"
CODE = re.compile(r"^```(?:\{code-cell\}|python).*?^```", re.MULTILINE | re.DOTALL)
MAX_SHOWN = 6
"""Pages that use a name, at most."""


def first_line(doc: str | None) -> str:
    """The first paragraph of a docstring as one line."""
    paragraph = " ".join((doc or "").split("\n\n")[0].split())
    return re.sub("::$", ".", paragraph)  # an equation follows in the whole docstring


def title(text: str, underline: str = "=") -> list[str]:
    """Lines of a heading."""
    return [text, underline * len(text), ""]


@cache
def tasks() -> list[dict]:
    """The tasks of ``api.toml``, in its order."""
    return tomllib.loads((DOCS / "api.toml").read_text())["task"]


@cache
def public_names() -> list[str]:
    """Full names of all pages."""
    return [name for task in tasks() for name in task["names"]]


def thing_of(name: str) -> object:
    """The object of a public name."""
    package, _, public = name.rpartition(".")
    return getattr(import_module(package), public)


@cache
def home_of(name: str) -> str:
    """Full name of a public object where it is defined."""
    package, _, public = name.rpartition(".")
    thing = thing_of(name)
    if inspect.ismodule(thing):
        return thing.__name__
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return f"{thing.__module__}.{thing.__qualname__}"
    # Plain data do not know their home; the source of a module has their description.
    for home in all_modules():
        is_here = getattr(import_module(home), public, None) is thing
        if is_here and ("", public) in ModuleAnalyzer.for_module(home).find_attr_docs():
            return f"{home}.{public}"
    raise LookupError(f"{name} has no description in any module of {package}")


@cache
def description(name: str) -> str:
    """The docstring of a public object, constants included."""
    thing, home = thing_of(name), home_of(name)
    if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing):
        return inspect.getdoc(thing) or ""
    module, _, public = home.rpartition(".")
    return "\n".join(ModuleAnalyzer.for_module(module).find_attr_docs()["", public])


def other_names(name: str) -> list[str]:
    """Further public names of the same object: `pyrodyn.fit` is `pyrodyn.infer.fit`."""
    thing = thing_of(name)
    packages = [import_module(f"pyrodyn.{room}") for room in pyrodyn.ROOMS] + [pyrodyn]
    return [
        f"{package.__name__}.{public}"
        for package in packages
        for public in package.__all__
        if getattr(package, public) is thing and f"{package.__name__}.{public}" != name
    ]


@cache
def code_of_pages() -> dict[str, str]:
    """The code of each hand-written page and notebook, by its name without suffix."""
    pages = [path for folder in ("", "models", "howto") for path in (DOCS / folder).glob("*.md")]
    found = {
        path.relative_to(DOCS).with_suffix("").as_posix(): "\n".join(CODE.findall(path.read_text()))
        for path in sorted(pages)
    }
    for path in sorted((DOCS.parent / "notebooks").glob("*.py")):
        lines = path.read_text().splitlines()
        code = "\n".join(line for line in lines if not line.startswith("#"))
        found[f"notebooks/{path.stem}"] = code
    return found


def uses(name: str) -> list[str]:
    """Pages whose code imports a name, or has it as an attribute of its package."""
    package, _, public = name.rpartition(".")
    room = package.rpartition(".")[2]
    imported = rf"from {re.escape(package)} import (?:\([^)]*|[^\n(]*)\b{public}\b"
    used = re.compile(rf"{imported}|\b(?:pyrodyn|{room})\.{public}\b")
    return [page for page, code in code_of_pages().items() if used.search(code)]


def public_page(name: str) -> str:
    """The page of one public name."""
    package, _, public = name.rpartition(".")
    thing = thing_of(name)
    lines = [*title(name), f".. py:currentmodule:: {package}", ""]
    if inspect.ismodule(thing):
        lines += [f".. automodule:: {thing.__name__}"]
    elif inspect.isclass(thing):
        kind = "exception" if issubclass(thing, BaseException) else "class"
        lines += [f".. auto{kind}:: {package}::{public}"]
    elif inspect.isroutine(thing):
        lines += [f".. autofunction:: {package}::{public}"]
    else:
        lines += [f".. py:data:: {name}", ""]
        lines += [f"   {line}".rstrip() for line in description(name).splitlines()]
        if isinstance(thing, dict):
            lines += ["", "   Keys: " + ", ".join(f"``{key}``" for key in thing) + "."]
    others = other_names(name)
    if others:
        lines += [
            "",
            "The same object is " + " and ".join(f"``{other}``" for other in others) + ".",
        ]
    pages = uses(name)[:MAX_SHOWN]
    if pages:
        lines += ["", ".. rubric:: Shown in", ""]
        lines += ["- :doc:`/" + page + "`" for page in pages]
    return "\n".join([*lines, ""])


def task_page(task: dict) -> str:
    """The page of one task: its public names, each with the first line of its description."""
    lines = [*title(task["title"]), task["intro"], ""]
    lines += [".. list-table::", "   :widths: 34 66", "   :class: api-names", ""]
    for name in task["names"]:
        short = name.rpartition(".")[2]
        lines += [f"   * - `{short} <{name}>`", f"     - {first_line(description(name))}"]
    lines += ["", ".. toctree::", "   :hidden:", ""]
    lines += [f"   {name.rpartition('.')[2]} <{name}>" for name in task["names"]]
    return "\n".join([*lines, ""])


def tasks_table() -> str:
    """The table of all tasks and their names, which the front page of the reference includes."""
    lines = [".. list-table::", "   :widths: 22 78", ""]
    for task in tasks():
        names = ", ".join(f"`{name.rpartition('.')[2]} <{name}>`" for name in task["names"])
        lines += [f"   * - :doc:`/api/{task['page']}`", f"     - {names}"]
    return "\n".join([*lines, ""])


def modules_of(package: ModuleType) -> list[str]:
    """Full names of a package's public modules, sub-packages left to themselves."""
    return sorted(
        f"{package.__name__}.{found.name}"
        for found in pkgutil.iter_modules(package.__path__)
        if not found.ispkg and not found.name.startswith("_")
    )


@cache
def packages() -> list[str]:
    """Full names of pyrodyn and its packages."""
    root = Path(pyrodyn.__path__[0])
    folders = sorted({path.parent.relative_to(root) for path in root.glob("*/**/*.py")})
    return ["pyrodyn", *(".".join(["pyrodyn", *folder.parts]) for folder in folders)]


@cache
def all_modules() -> list[str]:
    """Full names of all public modules."""
    return [module for package in packages() for module in modules_of(import_module(package))]


def unlisted(module: str) -> list[str]:
    """The option of a module that has the name of a public function, which keeps the name."""
    return ["   :no-index:"] if module in public_names() else []


def package_page(name: str) -> str:
    """What a package is for, and every module with its docstring and internals."""
    package = import_module(name)
    lines = [*title(f"``{name}``"), f".. py:module:: {name}", *unlisted(name), ""]
    lines += [inspect.getdoc(package) or "", ""]
    homes = {home_of(public): public for public in public_names()}
    for module in modules_of(package):
        short = module.removeprefix(f"{name}.")
        if module in homes:  # the module is a public name itself
            continue
        lines += ["", *title(f"``{short}``", "-"), f".. automodule:: {module}", *unlisted(module)]
        here = [public for home, public in homes.items() if home.rpartition(".")[0] == module]
        if here:
            links = ", ".join(f"`{public}`" for public in here)
            lines += ["", f"Public: {links}."]
    return "\n".join([*lines, ""])


def developer_page() -> str:
    """The list of the packages' pages."""
    lines = [*title("Developer reference")]
    lines += [
        "One page per package: what each module is, its equations and sources, and the internals"
        " behind the public names. These may change between versions.",
        "",
        ".. toctree::",
        "   :maxdepth: 1",
        "",
    ]
    return "\n".join([*lines, *(f"   {name} <developer/{name}>" for name in packages()), ""])


def write_pages(*_: object) -> None:
    """Write ``api/``, touching only what changed so that a rebuild stays short."""
    pages = {f"{task['page']}.rst": task_page(task) for task in tasks()}
    pages |= {f"{name}.rst": public_page(name) for name in public_names()}
    pages |= {f"developer/{name}.rst": package_page(name) for name in packages()}
    pages |= {"developer.rst": developer_page(), "tasks.inc": tasks_table()}
    (FOLDER / "developer").mkdir(parents=True, exist_ok=True)
    kept = {FOLDER / page for page in pages}
    for stale in {path for path in FOLDER.rglob("*") if path.is_file()} - kept:
        stale.unlink()
    for page, text in pages.items():
        path = FOLDER / page
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


@cache
def described_fields() -> set[int]:
    """Identities of the NamedTuple fields that have a docstring of their own."""
    return set(_described_fields())


def _described_fields() -> Iterator[int]:
    for module_name in all_modules():
        described = ModuleAnalyzer.for_module(module_name).find_attr_docs()
        for thing in vars(import_module(module_name)).values():
            for field in getattr(thing, "_fields", ()) if inspect.isclass(thing) else ():
                if (thing.__qualname__, field) in described:
                    yield id(vars(thing)[field])


def skip_member(
    app: object, kind: str, name: str, thing: object, _skip: bool, _options: object
) -> bool | None:
    """Leave out what Python itself writes of NamedTuples and their fields, the copies of
    ``for_recording`` that show the arguments of each class, which the class lists as well, and on
    the pages for developers what has a page of its own.
    """
    docname = getattr(app, "env").docname  # noqa: B009  # typed as an object
    if kind == "module" and docname.startswith("api/developer/"):
        homes = {home_of(public) for public in public_names()}
        where = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', name)}"
        if where in homes or any(home.endswith(f".{name}") for home in data_homes()):
            return True
    if getattr(thing, "__name__", "") == "for_recording" and hasattr(thing, "__wrapped__"):
        return True
    doc = getattr(thing, "__doc__", None) or ""
    if doc.startswith("Alias for field number"):
        return id(thing) not in described_fields()
    return True if doc.startswith("Create new instance of") else None


@cache
def data_homes() -> list[str]:
    """Full names of public constants where they are defined."""
    return [home_of(name) for name in public_names() if home_of(name).rpartition(".")[2].isupper()]


def add_names(_app: object, env: object) -> None:
    """Let links by another public name, or by the module that defines an object, find its page."""
    objects = env.domains.python_domain.objects  # type: ignore[attr-defined]
    for name in public_names():
        for full in [full for full in objects if full == name or full.startswith(f"{name}.")]:
            entry = objects[full]
            for other in (home_of(name), *other_names(name)):
                alias = other + full.removeprefix(name)
                if alias not in objects:
                    objects[alias] = ObjectEntry(entry.docname, entry.node_id, entry.objtype, True)


def setup(app: object) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)  # type: ignore[attr-defined]
    app.connect("autodoc-skip-member", skip_member)  # type: ignore[attr-defined]
    app.connect("env-updated", add_names)  # type: ignore[attr-defined]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
