"""The bridge itself: plain asyncio, nothing of Home Assistant."""
