"""Ways to follow drifting traffic as a report: rows of every way and window, and the page that is made from them."""
