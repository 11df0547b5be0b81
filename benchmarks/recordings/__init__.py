"""What a recording larger than memory takes to inspect and to solve."""
