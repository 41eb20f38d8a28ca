"""The demo: two real brokers, a QUIC front and a real Home Assistant with the bridge between them, on loopback."""
