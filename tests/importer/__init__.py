"""Configuration files of other bridges."""
