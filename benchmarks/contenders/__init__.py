"""One small module a contender. benchmarks/protocol.py tells what each offers, README.md why it is set as it is."""
