"""How Sphinx makes the documentation site; `make docs` runs it over the repository's root."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from versions import listed

import moe_placer

project = "moe_placer"
author = "The moe_placer developers"
version = release = moe_placer.__version__
copyright = "The moe_placer developers, Apache-2.0"  # noqa: A001 - the name that Sphinx reads

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "site_pages"]

root_doc = "docs/README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**.md", "reports/*/README.md"]
exclude_patterns = [".*", "build", "dist", "out", "moe_placer", "solvers", "tests", "benchmarks", "examples"]

myst_heading_anchors = 4  # links to headings as on GitHub
myst_links_external_new_tab = False

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
toc_object_entries_show_parents = "hide"
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = f"moe_placer {release}"
html_extra_path = ["index.html"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # summaries are fetched, which browsers refuse for files on a disk
here, versions = listed(os.environ)
html_context = {"default_mode": "auto", "here": here, "versions": versions}
templates_path = ["templates"]
html_sidebars = {"**": ["all-pages"]}
html_theme_options = {
    "show_prev_next": False,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    "navbar_center": [],
    "navbar_end": [*(["versions"] if versions else []), "theme-switcher"],
    "show_toc_level": 3,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
