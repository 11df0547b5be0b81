"""Predictions of the network against real packets: TCP over Linux network namespaces with shaped links."""
