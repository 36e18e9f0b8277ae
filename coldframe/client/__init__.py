"""What a client's container runs beside flwr: the warm executor, the zygote."""
