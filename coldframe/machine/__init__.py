"""What our Ansible modules import on a machine (ansible.cfg: module_utils): the standard library only."""
