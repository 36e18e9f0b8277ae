#!/bin/sh
# Make the base image's virtual environment /opt/venv of the wheelhouse /base/wheels. Runs in a container of the Debian part that
# has no network; what it leaves there is committed as one layer.
set -eu
python3 -m venv --without-pip /opt/venv
cd /opt/venv/lib/python3*/site-packages
python=/opt/venv/bin/python
"$python" "$(ls /base/wheels/pip-*.whl)/pip" install --no-index --find-links /base/wheels --no-compile --disable-pip-version-check \
  --progress-bar off --root-user-action ignore -r /base/wheels/requirements.txt
# Tests, headers and static libraries are a quarter of torch.
rm -rf torch/include torch/test torch/share torch/lib/*.a torch/bin/protoc* torch/bin/test_*
find mpmath networkx numpy sympy -type d -name tests -prune -exec rm -rf {} +
echo "Compiling to bytecode, since the containers can write none"
"$python" -m compileall -q -j 0 -x 'py31[2-9]' .
