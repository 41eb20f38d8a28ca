"""The two ways bytes reach a broker."""
