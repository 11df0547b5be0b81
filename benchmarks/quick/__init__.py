"""Quick plans: how long they take in memory and as a command, and how good they are beside EPLB's."""
