"""A deployment plan on one page: what it states, held against what is computed of it."""
