"""The schedule that follows from a placement: what runs when, on which resource, and how long a step takes."""
