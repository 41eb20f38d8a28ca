"""The integration in a real browser: Chromium in front of a real Home Assistant, real brokers and QUIC."""
