"""Real brokers, certificates, clients and faults for the tests, the demo and the benchmarks."""
