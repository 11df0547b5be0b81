"""Figures by release: this checkout, an earlier one and other planners' own code on fixed instances, in one run."""
