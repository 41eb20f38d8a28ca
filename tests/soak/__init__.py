"""The soak test: numbered messages both ways through random faults, and a check that none is lost. See `__main__`."""
