"""What only a kernel with unified control groups and netem can show: `make test-kernel`."""
