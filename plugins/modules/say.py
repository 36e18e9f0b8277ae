"""Documents the action plugin say."""

DOCUMENTATION = r"""
module: say
short_description: Shows lines to the person at the terminal as they are
description:
  - Tables and closing words, which a result printed as YAML would fold.
options:
  lines:
    description: The lines.
    type: list
    elements: str
    required: true
  indent:
    description: Spaces before each line.
    type: int
    default: 0
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Say where to look
  say:
    lines: ["Results are in results/latest"]
"""

RETURN = r""" # """
