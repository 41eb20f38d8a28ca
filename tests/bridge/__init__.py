"""Tests of the bridge: plain asyncio, real brokers, no Home Assistant."""
