"""The rank of the loss Hessian of a live network, beside the bound its architecture implies."""

__version__ = "0.1.0"
