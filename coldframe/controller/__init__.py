"""What the controller does with a run beside Ansible: packs the app, makes results and pictures."""
