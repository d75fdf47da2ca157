"""Settings of the documentation. The pages of its API reference are written by `_ext.api_pages`."""

import json
import os
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "_ext"))

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
    "sphinx_copybutton",
    "sphinx_design",
    "api_pages",
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
# Without the recordings this page shows the outputs that it was committed with.
nb_execution_excludepatterns = (
    [] if os.environ.get("PYRODYN_DATA") else ["notebooks/real_recordings.ipynb"]
)
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


LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:)([^)#]+)\.(md|ipynb)\)")


def _doc_role(link):
    """A link of a notebook, to a page as ../docs/page.md or to another notebook, as a role: Sphinx
    would follow the symbolic link docs/notebooks and look outside the documentation.
    """
    text, page = " ".join(link[1].split()), link[2]
    if page.startswith("../"):
        page = page.removeprefix("../").removeprefix("docs/")
    else:
        page = f"notebooks/{page}"
    return f"{{doc}}`{text} </{page}>`"


def _relink(app, docname, source):
    if docname.startswith("notebooks/"):
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = LINK.sub(_doc_role, "".join(cell["source"]))
        source[0] = json.dumps(notebook)


def setup(app):
    app.connect("source-read", _relink)
