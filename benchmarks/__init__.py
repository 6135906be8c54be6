"""What is measured, with peers beside it, in one run. README.md tells the conditions; `make bench` runs it."""
