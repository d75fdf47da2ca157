"""Settings of the documentation, and the pages of its API reference."""

import inspect
import pkgutil
import re
from functools import cache
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from types import ModuleType

from sphinx.pycode import ModuleAnalyzer

import pyrodyn

project = "pyrodyn"
author = copyright = "The pyrodyn developers"
version = release = installed_version("pyrodyn")
html_theme = "furo"
html_title = f"pyrodyn {release}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build", "README.md", "generated"]
# In docstrings, `name` is the object of that name where there is one and plain code elsewhere.
default_role = "py:obj"
# Literal blocks in docstrings are equations.
highlight_language = "text"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# A notebook runs again only when its code changes; one that fails stops the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
# What libraries say while they work is no part of a page.
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# What a method inherits is described where it comes from, and not in our words.
autodoc_inherit_docstrings = False
autodoc_class_signature = "separated"
# Some constants are whole tables: pages would drown in their values.
autodoc_default_options = {"members": True, "show-inheritance": True, "no-value": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def modules_of(package: ModuleType) -> list[str]:
    """Full names of a package's public modules, sub-packages left to themselves."""
    return sorted(
        f"{package.__name__}.{found.name}"
        for found in pkgutil.iter_modules(package.__path__)
        if not found.ispkg and not found.name.startswith("_")
    )


def packages() -> list[str]:
    """Full names of pyrodyn and its packages."""
    root = Path(pyrodyn.__path__[0])
    folders = sorted({path.parent.relative_to(root) for path in root.glob("*/**/*.py")})
    return ["pyrodyn", *(".".join(["pyrodyn", *folder.parts]) for folder in folders)]


def entry(package: ModuleType, public: str) -> tuple[str, str]:
    """Where an exported name is described, and the first line of that description."""
    thing = getattr(package, public)
    if inspect.ismodule(thing):
        return thing.__name__, first_line(inspect.getdoc(thing))
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return f"{thing.__module__}.{public}", first_line(inspect.getdoc(thing))
    # Plain data know neither home nor description; their module's source does.
    for home in modules_of(package):
        described = ModuleAnalyzer.for_module(home).find_attr_docs()
        if ("", public) in described:
            return f"{home}.{public}", first_line("\n".join(described["", public]))
    return f"{package.__name__}.{public}", ""


def first_line(doc: str | None) -> str:
    """The first paragraph of a docstring as one line."""
    paragraph = " ".join((doc or "").split("\n\n")[0].split())
    return re.sub("::$", ".", paragraph)  # an equation follows in the whole docstring


def package_page(name: str) -> str:
    """One page per package: what it exports, then every module with its docstring."""
    package = import_module(name)
    lines = [f"``{name}``", "=" * (len(name) + 4), "", f".. py:module:: {name}", ""]
    lines += [inspect.getdoc(package) or "", ""]
    exported = [public for public in getattr(package, "__all__", []) if public[0] != "_"]
    if exported:
        lines += [".. list-table:: Public names", "   :widths: 30 70", ""]
    for public in exported:
        target, summary = entry(package, public)
        lines += [f"   * - `{public} <{target}>`", f"     - {summary}"]
    for module in modules_of(package):
        short = module.removeprefix(f"{name}.")
        lines += ["", f"``{short}``", "-" * (len(short) + 4), "", f".. automodule:: {module}"]
    return "\n".join([*lines, ""])


def write_api_pages(*_: object) -> None:
    """Write ``api/PACKAGE.rst``, touching only what changed so that a rebuild stays short."""
    folder = Path(__file__).parent / "api"
    folder.mkdir(exist_ok=True)
    pages = {f"{name}.rst": package_page(name) for name in packages()}
    for stale in set(folder.iterdir()) - {folder / page for page in pages}:
        stale.unlink()
    for page, text in pages.items():
        path = folder / page
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


@cache
def described_fields() -> set[int]:
    """Identities of the NamedTuple fields that have a docstring of their own."""
    fields = set()
    modules = [module for package in packages() for module in modules_of(import_module(package))]
    for module_name in modules:
        described = ModuleAnalyzer.for_module(module_name).find_attr_docs()
        for thing in vars(import_module(module_name)).values():
            for field in getattr(thing, "_fields", ()) if inspect.isclass(thing) else ():
                if (thing.__qualname__, field) in described:
                    fields.add(id(vars(thing)[field]))
    return fields


def skip_member(
    _app: object, _kind: str, _name: str, thing: object, _skip: bool, _options: object
) -> bool | None:
    """Leave out what Python itself writes of NamedTuples and their fields, and the copies of
    ``for_recording`` that show the arguments of each class, which the class lists as well.
    """
    if getattr(thing, "__name__", "") == "for_recording" and hasattr(thing, "__wrapped__"):
        return True
    doc = getattr(thing, "__doc__", None) or ""
    if doc.startswith("Alias for field number"):
        return id(thing) not in described_fields()
    return True if doc.startswith("Create new instance of") else None


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_api_pages)  # type: ignore[attr-defined]
    app.connect("autodoc-skip-member", skip_member)  # type: ignore[attr-defined]
