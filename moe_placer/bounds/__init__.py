"""What can be proved of a layer: lower bounds, the linear relaxation behind them, and its assignment problem."""
