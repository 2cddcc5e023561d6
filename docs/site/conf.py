"""Settings of Sphinx for the documentation site. `make docs` builds it (see build.py)."""

from macrec_pipeline import __version__

project = "macrec_pipeline"
author = "macrec_pipeline contributors"
version = release = __version__
copyright = f"{author}. Licence: Apache 2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["LICENSE"]

myst_heading_anchors = 4
myst_enable_extensions = ["fieldlist"]

html_theme = "furo"
html_title = f"macrec_pipeline {__version__}"
html_copy_source = False
html_static_path: list[str] = []

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_use_rtype = False
default_role = "code"
