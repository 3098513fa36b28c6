"""From a network in training to its loss as a function of parameters, without touching it."""
