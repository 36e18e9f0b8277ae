"""Grafana's dashboards as code: `python -m dashboards` writes them under roles/grafana/files/dashboards/."""
