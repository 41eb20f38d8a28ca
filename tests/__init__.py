"""Tests of the integration, of the bridge beneath it, and what they stand on."""
