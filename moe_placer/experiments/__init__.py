"""Many runs, each in a process of its own: rows, and the pages made from them."""
