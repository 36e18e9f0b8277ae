"""Every change to flwr, by the process that it is made in, and what is known of its database."""
