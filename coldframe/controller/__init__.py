"""What the controller does with a run beside Ansible: packs the app, makes the results folder and its
pictures."""
