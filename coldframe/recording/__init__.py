"""What stands beneath every app: what a run was is learned and written down here."""
