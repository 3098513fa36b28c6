"""Upper bounds on the rank of the loss Hessian: from the architecture, or from a live batch."""
