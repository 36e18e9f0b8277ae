"""What stands beneath every Flower app: its files, and a record of its run, without a changed line of it."""
