"""Where the pages of other versions are, seen from the root of one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping


def listed(environment: Mapping[str, str]) -> tuple[str, list[tuple[str, str]]]:
    """Return this version's name, and name and start page of each; the present one has no name, and comes first.

    Parameters
    ----------
    environment : mapping
        `DOCS_VERSIONS`: JSON list of the releases; `DOCS_VERSION`: the one that is built. Without releases there is
        nothing to choose from.
    """
    here = environment.get("DOCS_VERSION", "")
    releases = json.loads(environment.get("DOCS_VERSIONS", "[]"))
    root = "../../" if here else ""
    starts = [("", f"{root}index.html"), *((name, f"{root}versions/{name}/index.html") for name in releases)]
    return here, starts if releases else []
