"""How a network is seen: its layers as Toeplitz maps, its losses, its batches."""
