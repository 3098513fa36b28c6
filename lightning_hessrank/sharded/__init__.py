"""A live network that no process holds: its shards, differences of gradients, estimates."""
