"""Documents the action plugin connect."""

DOCUMENTATION = r"""
module: connect
short_description: Opens the connection from the flwr command on the controller to the server's Control API
description:
  - Starts a process of the user's on the controller, which accepts that user's connections on a port of the
    loopback and carries them into the server's container, and names it in the configuration of C(flwr).
  - An open connection that answers is kept.
options:
  container:
    description: The server's container.
    type: str
    required: true
  directory:
    description: Where the process keeps its state, on the controller.
    type: path
    required: true
  name:
    description: The connection's name for C(flwr).
    type: str
    required: true
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Open the connection
  connect:
    container: coldframe-server
    directory: /home/me/.local/state/coldframe/coldframe/connection
    name: coldframe
  become: true
"""

RETURN = r"""
port:
  description: The port on 127.0.0.1.
  returned: success
  type: int
flwr:
  description: The server's version of Flower.
  returned: success
  type: str
proxied:
  description: Whether the environment names a proxy that the command flwr would use.
  returned: success
  type: bool
"""
