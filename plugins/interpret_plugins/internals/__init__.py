"""What happens inside a network: layers, units, weights and codes."""
