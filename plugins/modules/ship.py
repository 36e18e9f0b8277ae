"""Documents the action plugin ship."""

DOCUMENTATION = r"""
module: ship
short_description: Moves files between controller and machine and shows how far it is
description:
  - Is ansible.posix.synchronize, and takes its options, but C(use_ssh_args) and C(verify_host) are true and
    C(archive) is false unless said otherwise.
  - A large file has a bar on a terminal, and a line every ten seconds elsewhere.
options:
  src:
    description: A file or folder of the controller; with C(mode=pull) of the machine.
    type: path
    required: true
  dest:
    description: Where it goes to on the other side.
    type: path
    required: true
  mode:
    description: Which way they go; C(push) is from the controller.
    type: str
    choices: [push, pull]
    default: push
  recursive:
    description: Folders with all that is in them.
    type: bool
    default: false
  checksum:
    description: Compare contents, not sizes and times, to find what has to be sent.
    type: bool
    default: false
  times:
    description: Keep the times of the last change.
    type: bool
    default: false
  perms:
    description: Keep the permissions.
    type: bool
    default: false
  delete:
    description: Remove what the source has not.
    type: bool
    default: false
  partial:
    description: Keep what has arrived when the transfer is interrupted, and go on from there.
    type: bool
    default: false
  delay_updates:
    description: Give files their names when all have arrived.
    type: bool
    default: true
  compress:
    description: Compress on the way.
    type: bool
    default: true
  rsync_opts:
    description: More of rsync's own options.
    type: list
    elements: str
    default: []
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Bring the archive there
  ship:
    src: /home/me/image.tar
    dest: /var/lib/coldframe/image.tar
    partial: true
"""

RETURN = r""" # """
