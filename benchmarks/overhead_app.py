"""The app of round_overhead.py, whose clients do next to nothing, and the legacy engine's two sides."""

MANIFEST = """
[project]
name = "overhead"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = []
[tool.flwr.app]
publisher = "coldframe"
fab-include = ["/overhead/*.py", "/LICENSE"]
[tool.flwr.app.components]
serverapp = "overhead.server:app"
clientapp = "overhead.client:app"
[tool.flwr.app.config]
rounds = 3
warmup = 1
clients = 3
packed = false
out = ""
"""

MODEL = """
import pathlib, time
import numpy as np

def pause(out):
    # The caches are warm: let the benchmark read its counters before the rounds that count.
    path = pathlib.Path(out)
    path.with_suffix(".warm").touch()
    while not path.with_suffix(".go").exists():
        time.sleep(0.02)

SHAPES = [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 9216), (128,), (10, 128), (10,)]

def initial(packed):
    if packed:
        return [np.zeros(sum(int(np.prod(shape)) for shape in SHAPES), np.float32)]
    return [np.zeros(shape, np.float32) for shape in SHAPES]
"""

SERVER = """
import json, time
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from overhead.model import initial, pause

app = ServerApp()

class Timed(FedAvg):
    times = []
    out = None
    warmup = 0
    def configure_train(self, *args, **kwargs):
        if len(self.times) == self.warmup:
            pause(self.out)
        self.times.append(time.time())
        return super().configure_train(*args, **kwargs)

@app.main()
def main(grid, context):
    config = context.run_config
    clients = config["clients"]
    while len(list(grid.get_node_ids())) < clients:
        time.sleep(0.2)
    Timed.out, Timed.warmup = config["out"], config["warmup"]
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    result = strategy.start(grid, ArrayRecord(initial(config["packed"])), num_rounds=config["rounds"])
    Timed.times.append(time.time())
    first = float(result.arrays.to_numpy_ndarrays()[0].flat[0])
    app = [metrics["app-cpu-seconds"] for metrics in result.train_metrics_clientapp.values()]
    with open(config["out"], "w") as file:
        json.dump({"times": Timed.times, "first": first, "app": app}, file)
"""

CLIENT = """
import time
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    begin = time.process_time()
    arrays = ArrayRecord([array + 1.0 for array in message.content["arrays"].to_numpy_ndarrays()])
    metrics = {"num-examples": 1, "app-cpu-seconds": time.process_time() - begin}
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)
"""

LEGACY_SERVER = """
import json, sys, time
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig, start_server
from flwr.server.strategy import FedAvg
sys.path.insert(0, sys.argv[1])
from overhead.model import initial, pause
_, _, port, clients, warmup, rounds, out = sys.argv
times = []

class Timed(FedAvg):
    def configure_fit(self, *args, **kwargs):
        if len(times) == int(warmup):
            pause(out)
        times.append(time.time())
        return super().configure_fit(*args, **kwargs)

n = int(clients)
start_server(
    server_address=f"127.0.0.1:{port}",
    config=ServerConfig(num_rounds=int(rounds)),
    strategy=Timed(
        fraction_evaluate=0.0, min_fit_clients=n, min_available_clients=n,
        initial_parameters=ndarrays_to_parameters(initial(False)),
    ),
)
times.append(time.time())
with open(out, "w") as file:
    json.dump({"times": times, "first": float(rounds), "app": []}, file)
"""

LEGACY_CLIENT = """
import sys
from flwr.client import NumPyClient, start_client

class Client(NumPyClient):
    def fit(self, parameters, config):
        return [array + 1.0 for array in parameters], 1, {}

start_client(server_address=f"127.0.0.1:{sys.argv[1]}", client=Client().to_client(), insecure=True)
"""
