"""What runs inside the virtual machine: does, reads the kernel, and prints what it found as JSON."""
