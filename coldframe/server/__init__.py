"""What the server's container runs beside flwr: the gateway, control, the start of ServerApps."""
