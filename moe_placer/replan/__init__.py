"""From one placement to the next: what to move within a budget, what that can reach, and how the weights travel."""
