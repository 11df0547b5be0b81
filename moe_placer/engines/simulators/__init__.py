"""Files of other simulators: one file here for each."""
