# The base of the FL image: Debian, and a virtual environment with every package of requirements.txt. Made rarely.
# DEBIAN is made by roles/fl_image from Debian packages: python3, python3-venv, tini, nginx-light, iproute2, prometheus-node-exporter.
# The build needs no network: wheels/ is the wheelhouse that the controller made.
ARG DEBIAN
FROM ${DEBIAN} AS build
COPY wheels /wheels
# Tests, headers and static libraries are a quarter of torch.
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --no-index --find-links /wheels --no-compile --disable-pip-version-check --progress-bar off -r /wheels/requirements.txt \
 && cd /opt/venv/lib/python3*/site-packages \
 && rm -rf torch/include torch/test torch/share torch/lib/*.a torch/bin/protoc* torch/bin/test_* pip pip-* \
 && /opt/venv/bin/python -m compileall -q -j 0 -x 'py31[2-9]' . \
 && rm -rf /opt/venv/bin/pip*

FROM ${DEBIAN}
COPY --from=build /opt/venv /opt/venv
