"""The three ways to a Grafana, on real hosts; its image is not in reach, so a stand-in takes its place.

What the stand-in proves is how an archive is loaded and what the container is given, no more.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.federation import FEDERATION, PORT, SCRAPE
from tests.cluster.lab import ROOT, Play
from tests.cluster.watch import PORTS, WatchedLab

STATE = f"/var/lib/coldframe/{FEDERATION}"
GRAFANA_PORT = PORT - 6092
PLAY = "playbooks/grafana.yml"  # what site.yml plays, alone
IMAGE = "grafana/grafana:13.2.1"


@pytest.fixture(scope="module")
def archive(watched: WatchedLab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the stand-in under the name of Grafana's image; no engine has the image itself."""
    source = (ROOT / "tests" / "cluster" / "grafana_stand_in.py").read_text()
    base = watched.on_server(f"docker inspect --format {{{{.Config.Image}}}} {FEDERATION}-server").strip()
    watched.on_server(f"mkdir -p /tmp/stand && cat > /tmp/stand/stand_in.py <<'END'\n{source}END")
    # The FL image's Python without the packages: a tenth of its size.
    inside = "rm -rf /opt/venv; install /in/stand_in.py /; ln -s /stand_in.py /usr/local/bin/curl"
    settings = ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "USER 472", 'ENTRYPOINT ["python3", "/stand_in.py"]']
    given = " ".join(f"--change '{setting}'" for setting in settings)
    watched.on_server(
        f"docker run --name stand-in --user 0 --entrypoint sh --volume /tmp/stand:/in {base} -c '{inside}'"
        f" && docker export stand-in | docker import {given} - {IMAGE} && docker rm stand-in"
        f" && docker save {IMAGE} | gzip -1 > /tmp/stand/grafana.tar.gz && docker rmi {IMAGE}"
    )
    path = tmp_path_factory.mktemp("grafana") / "grafana.tar.gz"
    fetch = [*watched.server.ssh(), "cat /tmp/stand/grafana.tar.gz"]
    path.write_bytes(subprocess.run(fetch, check=True, capture_output=True).stdout)
    return path


def stand_in(watched: WatchedLab, path: str = "/api/health") -> dict[str, Any]:
    """What the container says that it was given, over TLS checked against the federation's authority."""
    context = ssl.create_default_context(cafile=str(watched.authority))
    url = f"https://{watched.server.address}:{GRAFANA_PORT}{path}"
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        seen: dict[str, Any] = json.loads(answer.read())
    return seen


def expanded(watched: WatchedLab, text: str) -> str:
    """What Grafana makes of a value that names a file."""
    found = re.fullmatch(r"\$__file\{(.+)\}", text)
    assert found, text
    return watched.on_server(f"cat {found[1]}").strip()


def asks_prometheus(watched: WatchedLab, datasource: dict[str, Any]) -> str:
    """Ask Prometheus from the monitor with what the datasource says, as Grafana would."""
    secrets = datasource["secureJsonData"]
    password = expanded(watched, secrets["basicAuthPassword"])
    assert "BEGIN CERTIFICATE" in expanded(watched, secrets["tlsCACert"])
    authority = secrets["tlsCACert"].removeprefix("$__file{").removesuffix("}")
    return watched.on_server(
        f"curl -sS --cacert {authority} -u {datasource['basicAuthUser']}:{password}"
        f" '{datasource['url']}/api/v1/query?query=up'"
    )


def changes(play: Play) -> dict[str, int]:
    return {machine: number for machine, number in play.changed.items() if number}


def test_without_an_image_one_line_names_three_ways_and_the_play_goes_on(watched: WatchedLab) -> None:
    play = watched.must(PLAY)
    (line,) = [text for _, text in play.lines if "No Grafana yet" in text]
    for way in ("-e grafana_image=NAME:TAG", "-e grafana_archive=FILE", "-e grafana_directory=DIR"):
        assert way in line
    assert changes(play) == {}
    assert watched.on_server(f"docker ps -aq --filter name=^{FEDERATION}-grafana$") == ""


def test_a_wrong_archive_is_refused_before_anything_changes(watched: WatchedLab, tmp_path: Path) -> None:
    play = watched.play("site.yml", train="false", grafana_archive=str(tmp_path / "nothing.tar"))
    assert play.code != 0
    assert "nothing.tar is not a file on this machine" in play.output
    assert changes(play) == {}


def test_archive_is_loaded_and_the_container_gets_what_it_needs(watched: WatchedLab, archive: Path) -> None:
    play = watched.must("site.yml", train="false", dataset="synthetic", grafana_archive=str(archive))
    assert f"Grafana: https://{watched.server.address}:{GRAFANA_PORT}, user admin" in play.output
    assert changes(watched.must(PLAY, grafana_archive=str(archive))) == {}

    seen = stand_in(watched)
    assert seen["home"] == "Federation"
    assert seen["admin"] == watched.password("grafana")
    assert len(seen["admin"]) == 43
    assert (watched.state / "monitoring" / "grafana.password").stat().st_mode & 0o777 == 0o600
    assert seen["admin"] not in watched.on_server(f"docker inspect {FEDERATION}-grafana")
    assert seen["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert seen["user"] == 10002

    files = {Path(name).parent.name: yaml.safe_load(text) for name, text in seen["files"].items()}
    (provider,) = files["dashboards"]["providers"]
    assert not provider["allowUiUpdates"]
    assert provider["options"]["foldersFromFilesStructure"]
    shown = watched.on_server(f"ls {provider['options']['path']}/Coldframe").split()
    assert shown == ["client.json", "federation.json", "machine.json", "run.json"]
    (datasource,) = files["datasources"]["datasources"]
    assert (datasource["uid"], datasource["editable"]) == ("coldframe-prometheus", False)
    assert datasource["jsonData"]["timeInterval"] == SCRAPE
    assert datasource["url"] == f"https://{watched.server.address}:{PORTS['prometheus']}"
    assert '"federation":"coldframe"' in asks_prometheus(watched, datasource)

    status = watched.must("status.yml")
    assert f"https://{watched.server.address}:{GRAFANA_PORT}" in status.output


def test_anonymous_viewing_and_the_images_name_are_variables(watched: WatchedLab, archive: Path) -> None:
    assert archive.exists()  # and its source on the host
    name = "registry.test/grafana:13"
    watched.on_server(f"docker load --quiet --input /tmp/stand/grafana.tar.gz && docker tag {IMAGE} {name}")
    watched.must(PLAY, grafana_image=name, grafana_anonymous="true")
    container = watched.container(watched.server, f"{FEDERATION}-grafana")
    assert container["Config"]["Image"] == name
    environment = stand_in(watched)["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_own_server_gets_its_files_and_is_told_where_to_put_them(watched: WatchedLab) -> None:
    own = "/srv/grafana"
    watched.on_server("getent group grafana >/dev/null || groupadd --system grafana")
    play = watched.must(PLAY, grafana_directory=own)
    (line,) = [text for _, text in play.lines if "Grafana: for your own server" in text]
    assert f"{own}/provisioning/datasources/coldframe.yml /etc/grafana/provisioning/datasources/" in line
    assert changes(watched.must(PLAY, grafana_directory=own)) == {}
    assert watched.on_server(f"docker ps -aq --filter name=^{FEDERATION}-grafana$") == ""

    described = watched.on_server(f"cat {own}/provisioning/datasources/coldframe.yml")
    assert watched.password("prometheus") not in described
    (datasource,) = yaml.safe_load(described)["datasources"]
    assert '"status":"success"' in asks_prometheus(watched, datasource)
    access = watched.on_server(f"stat -c '%U:%G %a' {own}/secrets {own}/secrets/prometheus.password").split(
        "\n"
    )
    assert access[:2] == ["root:grafana 750", "root:grafana 440"]
