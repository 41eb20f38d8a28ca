"""The bridge against QUIC stacks that are not its own."""
