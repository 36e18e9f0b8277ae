"""Tests of coldframe/controller/settings.py: what every variable may be, and what a wrong one is told."""

import inspect
import itertools
import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from coldframe.controller import settings
from coldframe.controller.settings import (
    INVENTORY,
    VERBS,
    cast,
    cast_inventory,
    check_clients,
    check_names,
)
from fl import arguments


def messages(findings):
    return [str(finding) for finding in findings]


def only(findings):
    assert len(findings) == 1, messages(findings)
    return str(findings[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": "abc"}, "rounds=abc is not a whole number ≥ 1: type -e rounds=5"),
        ({"rounds": 0}, "rounds=0 is not a whole number ≥ 1: type -e rounds=5"),
        ({"rounds": "2.5"}, "rounds=2.5 is not a whole number ≥ 1: type -e rounds=5"),
        ({"rounds": True}, "rounds=True is not a whole number ≥ 1: type -e rounds=5"),
        (
            {"fraction_train": 1.5},
            "fraction_train=1.5 is not a number > 0 and ≤ 1: type -e fraction_train=1.0",
        ),
        ({"fraction_evaluate": -1}, "fraction_evaluate=-1 is not a number from 0 to 1: type -e"),
        ({"learning_rate": "nan"}, "learning_rate=nan is not a number > 0"),
        ({"momentum": 2}, "momentum=2 is not a number from 0 to 1"),
        ({"dataset": "fashion-mnist"}, "did you mean fashion_mnist? Type -e dataset=fashion_mnist"),
        ({"partitioner": "dirichelt"}, "did you mean dirichlet? Type -e partitioner=dirichlet"),
        ({"wait": "perhaps"}, "wait=perhaps is not true or false"),
        ({"round_timeout": "soon"}, "round_timeout=soon is not a duration in seconds > 0"),
        ({"strategy_args": "mu=1"}, """type -e '{"strategy_args": {"proximal_mu": 0.1}}'"""),
        ({"run_name": "../x"}, "run_name=../x does not have the form"),
        (
            {"evaluate_every": 0},
            "evaluate_every=0 is not a whole number ≥ 1: type -e evaluate_every=5",
        ),
        ({"evaluate_samples": "-1"}, "evaluate_samples=-1 is not a whole number"),
        ({"collect": "latest"}, "collect=latest does not have the form"),
    ],
)
def test_a_bad_value_is_told_what_to_type(given, message):
    values, findings = cast("run", given)
    assert message in only(findings)
    assert values["rounds"] == 5  # a default stands in, so that the other checks can go on


def test_an_unknown_strategy_gets_the_nearest_and_all_names():
    _values, findings = cast("site", {"fl_strategy": "fedfoo"})
    message = only(findings)
    assert message.startswith("fl_strategy=fedfoo is not known (one of fedavg, fedavgm, fedprox,")
    assert ": did you mean fed" in message
    _values, findings = cast("site", {"fl_strategy": "fedprxo"})
    assert "did you mean fedprox? Type -e fl_strategy=fedprox" in only(findings)


@pytest.mark.parametrize("name", ["fedxgb", "FedXgbBagging", "fedxgbcyclic"])
def test_xgboost_is_refused_with_the_reason(name):
    _values, findings = cast("run", {"fl_strategy": name})
    assert "merges the trees of XGBoost models, and the models here are arrays" in only(findings)


def test_values_from_the_command_line_become_typed():
    given = {
        "rounds": "7",
        "fl_strategy": "FedProx",
        "strategy_args": '{"proximal_mu": 0.1}',
        "fraction_train": "0.5",
        "round_timeout": "10m",
        "wait": "no",
        "collect": 1234,
    }
    values, findings = cast("run", given)
    assert findings == []
    assert {name: values[name] for name in given} == {
        "rounds": 7,
        "fl_strategy": "fedprox",
        "strategy_args": {"proximal_mu": 0.1},
        "fraction_train": 0.5,
        "round_timeout": 600.0,
        "wait": False,
        "collect": "1234",
    }


def test_without_values_there_are_defaults_for_every_variable():
    for verb, table in settings.VERBS.items():
        values, findings = cast(verb, {})
        assert findings == []
        assert list(values) == list(table)
    assert cast("site", {})[0]["train"] is True
    assert cast("teardown", {})[0] == {"purge": False, "yes": False, "interrupt": False}
    assert cast("status", {})[0] == {"output": "table"}


def test_every_example_that_is_suggested_is_accepted():
    for table in [*settings.VERBS.values(), settings.CLIENT, settings.INVENTORY]:
        for variable in table.values():
            if variable.kind == "entries":
                assert cast_inventory({variable.name: json.loads(variable.example)})[1] == []
            elif variable.example != "RUN_ID":
                settings.cast_value(variable, variable.example.strip("'"))


def test_the_strategies_arguments_are_those_of_flwr():
    from flwr.serverapp import strategy as flower

    classes = {
        name.lower(): kind
        for name, kind in vars(flower).items()
        if inspect.isclass(kind) and issubclass(kind, flower.FedAvg) and not name.startswith("FedXgb")
    }
    assert set(arguments.STRATEGIES) - set(arguments.ASYNCHRONOUS) == set(classes)
    common = set(inspect.signature(flower.FedAvg.__init__).parameters)
    for name, kind in classes.items():
        own = [
            parameter
            for parameter, spec in inspect.signature(kind.__init__).parameters.items()
            if parameter not in common and spec.annotation in (int, float, "int", "float")
        ]
        assert sorted(arguments.STRATEGIES[name]) == sorted(own), name


def test_the_asynchronous_strategies_arguments_are_theirs():
    from coldframe import strategies
    from coldframe.strategies import fedasync, fedbuff

    for kind in (strategies.FedBuff, strategies.FedAsync):
        rules = arguments.STRATEGIES[kind.__name__.lower()]
        own = [
            name
            for name, spec in inspect.signature(kind.__init__).parameters.items()
            if str(spec.annotation).partition(" ")[0] in ("int", "float", "str")
        ]
        assert sorted(rules) == sorted(own), kind
        kind(**{name: rule.example for name, rule in rules.items()})
    assert arguments.STRATEGIES["fedbuff"]["server_optimizer"].choices == fedbuff.OPTIMIZERS
    assert arguments.STRATEGIES["fedasync"]["staleness"].choices == fedasync.STALENESS


def test_an_argument_that_is_a_word_is_one_of_those_it_can_be():
    given = {"fl_strategy": "fedasync", "strategy_args": {"staleness": "polynomal"}}
    (finding,) = cast("run", given)[1]
    assert str(finding) == (
        "strategy fedasync: staleness=polynomal is not one of constant, polynomial, hinge: type -e"
        ' \'{"strategy_args": {"staleness": "polynomial"}}\''
    )
    assert cast("run", {**given, "strategy_args": {"staleness": "hinge"}})[1] == []


def test_the_wrappers_arguments_are_those_of_flwr():
    from flwr.serverapp import strategy as flower

    for name, kind in {
        "server-fixed": flower.DifferentialPrivacyServerSideFixedClipping,
        "server-adaptive": flower.DifferentialPrivacyServerSideAdaptiveClipping,
        "client-fixed": flower.DifferentialPrivacyClientSideFixedClipping,
        "client-adaptive": flower.DifferentialPrivacyClientSideAdaptiveClipping,
    }.items():
        parameters = dict(inspect.signature(kind.__init__).parameters)
        for other in ("self", "strategy", "accountant"):
            parameters.pop(other, None)
        assert set(arguments.PRIVACY[name]) == set(parameters), name
        needed = {key for key, spec in parameters.items() if spec.default is inspect.Parameter.empty}
        rules = arguments.PRIVACY[name].items()
        assert {key for key, rule in rules if rule.needed} == needed - {"num_sampled_clients"}


def test_names_agree_with_the_training():
    pytest.importorskip("torch", reason="the environment of Python 3.13 is without the training's packages")
    from fl import data, partition, strategy

    assert set(arguments.STRATEGIES) == {*strategy.STRATEGIES, *strategy.ELSEWHERE}
    assert set(arguments.ASYNCHRONOUS) == set(strategy.ELSEWHERE)
    assert set(arguments.PRIVACY) == {*strategy.PRIVACY, strategy.LOCAL}
    assert tuple(data.SPECS) == settings.DATASETS
    assert {name: tuple(args) for name, args in partition.DEFAULTS.items()} == settings.PARTITIONER_ARGUMENTS


def test_run_config_keys_are_those_of_the_manifest():
    import tomllib
    from pathlib import Path

    manifest = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    config = manifest["tool"]["flwr"]["app"]["config"]
    assert set(settings.RUN_CONFIG_KEYS.values()) == set(config)
    defaults, _findings = cast("run", {})
    for name, key in settings.RUN_CONFIG_KEYS.items():
        value = defaults[name]
        flat = json.dumps(value) if isinstance(value, dict) else value
        assert (flat, type(flat)) == (config[key], type(config[key])), key


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"fl_strategy": "fedprox", "strategy_args": {"proximal_nu": 0.1}},
            """strategy fedprox has no argument proximal_nu: did you mean proximal_mu? """
            """Type -e '{"strategy_args": {"proximal_mu": 0.1}}'""",
        ),
        ({"strategy_args": {"beta": 1}}, "strategy fedavg has no argument beta: it takes none, so leave"),
        (
            {"fl_strategy": "fedadam", "strategy_args": {"zzz": 1}},
            "has no argument zzz: it has eta, eta_l, tau, beta_1, beta_2",
        ),
        ({"fl_strategy": "fedprox", "strategy_args": {"proximal_mu": "x"}}, "proximal_mu=x is not a number"),
        (
            {"partitioner": "shards", "partitioner_args": {"alpha": 1}},
            "partitioner shards has no argument alpha",
        ),
        ({"fl_dp": "server-fixed"}, "fl_dp=server-fixed needs noise_multiplier, clipping_norm: type"),
        ({"dp_args": {"noise_multiplier": 1}}, "dp_args are given, but fl_dp is not: type -e fl_dp="),
        ({"collect": "1", "stop": "2"}, "collect and stop are given together: type -e stop=2 first"),
        ({"follow": "1", "stop": "2"}, "stop and follow are given together: type -e follow=1 first"),
        ({"run_config": {"num-rounds": 3}}, "run_config has the key num-rounds, which the app does not know"),
    ],
)
def test_arguments_must_fit_what_they_are_for(given, message):
    assert message in only(cast("run", given)[1])


def test_the_run_config_of_another_app_is_its_own_affair():
    assert cast("run", {"app": "x", "run_config": {"whatever": 3}})[1] == []


def test_more_clients_than_there_are_is_refused_with_number_and_remedy():
    values, _findings = cast("run", {"min_train_clients": 9})
    assert only(check_clients(values, 3)) == (
        "min_train_clients=9 is more than the 3 clients of the inventory: "
        "type -e min_train_clients=3, or add clients (fl_client_count)"
    )
    assert check_clients(values, 9) == []
    values, _findings = cast("run", {})
    assert "-e min_train_clients=1 -e min_evaluate_clients=1 -e min_available_clients=1" in only(
        check_clients(values, 1)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"fl_strategy": "fedtrimmedavg", "strategy_args": {"beta": 0.6}},
            "strategy fedtrimmedavg: beta=0.6 is not a number ≥ 0 and < 0.5: "
            """type -e '{"strategy_args": {"beta": 0.2}}'""",
        ),
        (
            {"fl_strategy": "multikrum", "strategy_args": {"num_nodes_to_select": 1.5}},
            "num_nodes_to_select=1.5 is not a whole number ≥ 1",
        ),
        (
            {"fl_dp": "server-fixed", "dp_args": {"noise_multiplier": -1, "clipping_norm": 1}},
            """-1 is not a number ≥ 0 and ≤ 1e+06: type -e '{"dp_args": {"noise_multiplier": 0.1, "cl""",
        ),
        (
            {
                "fl_dp": "local",
                "dp_args": {"epsilon": 0, "delta": 1e-5, "sensitivity": 1, "clipping_norm": 1},
            },
            "fl_dp=local: epsilon=0 is not a number > 0",
        ),
        (
            {"fl_strategy": "krum", "strategy_args": {"num_malicious_nodes": 10**30}},
            "is not a whole number ≥ 0 and ≤ 10000",
        ),
        ({"fl_strategy": "fedadam", "strategy_args": {"eta": [1]}}, "eta=[1] is not a number > 0"),
    ],
)
def test_arguments_are_judged_by_the_rules_of_the_run(given, message):
    assert message in only(cast("run", given)[1])


def test_noise_that_the_count_of_clipped_updates_cannot_bear_is_refused():
    given = {"fl_dp": "server-adaptive", "dp_args": {"noise_multiplier": 1.0}}
    values, findings = cast("run", given)
    assert findings == []
    message = only(check_clients(values, 4))
    assert "needs a clipped_count_stddev above 0.5, and that is 0.2 (4 clients / 20): type -e" in message


ROBUST = [
    (name, {"num_malicious_nodes": malicious, **more})
    for name, more in (("krum", {}), ("bulyan", {}), ("multikrum", {"num_nodes_to_select": 4}))
    for malicious in (0, 1, 2, 5)
]


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 5, 7, 12])
@pytest.mark.parametrize(("name", "args"), ROBUST)
@pytest.mark.parametrize("least", [1, 2, 7, 20])
def test_what_a_remedy_says_is_accepted(name, args, clients, least):
    """Not that min_train_clients is too small for bulyan, and what bulyan needs too large for the clients."""
    least = min(least, clients)
    given = {
        "fl_strategy": name,
        "strategy_args": args,
        **{f"min_{kind}_clients": least for kind in ("train", "evaluate", "available")},
    }
    values, findings = cast("run", given)
    assert findings == []
    if found := check_clients(values, clients):
        command = only(found).partition(": type ")[2].partition(", or add")[0]
        if "without strategy_args" in command:
            given.pop("strategy_args")
        given |= dict(typed_in(command))
        values, findings = cast("run", given)
        assert findings == []
        assert check_clients(values, clients) == []


def typed_in(command):
    """The variables that a command sets."""
    words = shlex.split(command)
    for option, word in itertools.pairwise(words):
        if option == "-e" and word.startswith("{"):
            yield from json.loads(word).items()
        elif option == "-e":
            yield word.split("=")[0], word.split("=")[1]


def test_more_malicious_clients_than_there_can_be_are_refused():
    values, _findings = cast("run", {"fl_strategy": "krum", "strategy_args": {"num_malicious_nodes": 5}})
    assert only(check_clients(values, 4)).startswith(
        "krum with num_malicious_nodes=5 needs the replies of 13 clients, and the inventory has 4: "
        """type -e '{"strategy_args": {"num_malicious_nodes": 0}}' -e min_train_clients=2, or add clients"""
    )
    values, _findings = cast("run", {"fl_strategy": "bulyan", "strategy_args": {"num_malicious_nodes": 1}})
    assert "bulyan with num_malicious_nodes=1 needs the replies of 7 clients" in only(
        check_clients(values, 4)
    )


def test_a_run_without_clients_is_refused():
    assert "type -e train=false" in only(check_clients(cast("site", {})[0], 0))
    assert check_clients(cast("site", {"train": False})[0], 0) == []
    assert "train=false" not in only(check_clients(cast("run", {})[0], 0))
    assert check_clients(cast("run", {"collect": "1"})[0], 0) == []


def test_an_unknown_name_is_refused_with_the_nearest():
    assert only(check_names("run", ["roundz"])) == (
        "unknown variable 'roundz' for run.yml: did you mean 'rounds'? Type -e rounds=5"
    )
    assert "it belongs to teardown.yml" in only(check_names("run", ["purge"]))
    assert "did you mean 'fl_client_count'? Type -e fl_client_count=3" in only(
        check_names("site", ["fl_client_cuont"])
    )
    assert "remove it (status.yml takes output)" in only(check_names("status", ["qqqqqq"]))


def test_names_of_ansible_roles_and_inventory_are_known():
    assert (
        check_names("run", ["ansible_user", "fl_client_cpu", "fl_image_suite"], also={"fl_image_suite"}) == []
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fl_federation": "Not-Good"}, "fl_federation=Not-Good does not have the form [a-z][a-z0-9_]{0,30}"),
        ({"fl_port": 0}, "fl_port=0 is not a whole number from 1 to 65535: type -e fl_port=9092"),
        ({"fl_client_cpu": 0.01}, "fl_client_cpu=0.01 is not a number ≥ 0.05"),
        ({"fl_client_memory": "128m"}, "fl_client_memory=128m is not a size ≥ 384 MB"),
        (
            {"fl_client_memory": "lots"},
            "fl_client_memory=lots is not a size ≥ 384 MB: type -e fl_client_memory=512m",
        ),
        ({"fl_client_count": -1}, "fl_client_count=-1 is not a whole number ≥ 0"),
        ({"fl_client_list": "[]"}, "fl_client_list is not a list of clients"),
        ({"fl_client_list": [{"cpuu": 1}]}, "fl_client_list[0] has the unknown key cpuu: write cpu"),
        (
            {"fl_client_list": [{"cpu": "x"}]},
            "fl_client_list[0]: cpu=x is not a number ≥ 0.05: write cpu: 0.5",
        ),
        ({"docker_engine_manage": "maybe"}, "docker_engine_manage=maybe is not true or false"),
        ({"fl_client_count": None}, "fl_client_count is empty: type -e fl_client_count=3, or leave it out"),
        ({"fl_client_list": None}, "fl_client_list is empty: type -e"),
        ({"fl_data_dir": None}, "fl_data_dir is empty: type -e fl_data_dir=path/to/data, or leave it out"),
        ({"ansible_host": None}, "ansible_host is empty: type -e ansible_host=192.0.2.10"),
        ({"ansible_port": "ssh"}, "ansible_port=ssh is not a whole number from 1 to 65535"),
        ({"fl_client_list": [{"cpu": None}]}, "fl_client_list[0]: cpu is empty: write cpu: 0.5, or leave it"),
        (
            {"fl_client_list": [{"name": True}]},
            "fl_client_list[0]: name=True is not a text: write name: node",
        ),
        ({"fl_client_list": [{"name": "agent"}]}, "name=agent is taken: the federation's own container of"),
        (
            {"fl_client_list": [{"delay": 50}]},
            "delay=50 has no unit: write delay: 50ms (milliseconds) or del",
        ),
        ({"fl_client_count": 10**6}, "fl_client_count=1000000 is more than 1000: type -e fl_client_count=3"),
        ({"fl_client_memory": "9" * 400}, "is not a size ≥ 384 MB: type -e fl_client_memory=512m"),
        ({"fl_client_memory": "300t"}, "fl_client_memory=300t is more than 16 TB: type -e"),
        ({"fl_client_down": "1bit"}, "fl_client_down=1bit is not a rate ≥ 1kbit: type -e"),
        ({"fl_client_up": "9000gbit"}, "fl_client_up=9000gbit is more than 1000gbit: type -e"),
        ({"fl_client_delay": "2m"}, "fl_client_delay=2m is more than 60 s: type -e fl_client_delay=50ms"),
        ({"fl_image_registry": "https://r.example/lab"}, "type -e fl_image_registry=r.example/lab"),
        ({"fl_image_registry": "r.example:5000/Lab/"}, "type -e fl_image_registry=r.example:5000/lab"),
        ({"fl_image_registry": "r.example/"}, "how an image's name begins (no https://, no upper case, no /"),
        ({"fl_image_registry": "a b"}, "fl_image_registry=a b is not a registry: type -e fl_image_registry="),
        ({"fl_federation": ""}, "fl_federation= is empty: type -e fl_federation=coldframe, or leave it out"),
        ({"fl_federation": " "}, "fl_federation=  is empty: type -e fl_federation=coldframe"),
    ],
)
def test_a_bad_inventory_variable_is_told_what_to_type(given, message):
    assert message in only(cast_inventory(given)[1])


@pytest.mark.parametrize("name", ["delay", "jitter"])
def test_a_delay_says_its_unit(name):
    """Of ping's milliseconds and of seconds neither goes without saying."""
    assert only(cast("throttle", {name: 50})[1]) == (
        f"{name}=50 has no unit: type -e {name}=50ms (milliseconds) or -e {name}=50s (seconds)"
    )
    for value, seconds in (("50ms", 0.05), ("0.5s", 0.5), (0, 0.0), ("0", 0.0)):
        values, findings = cast("throttle", {name: value})
        assert (values[name], findings) == (seconds, [])


def test_the_names_that_are_taken_are_those_of_the_roles_containers():
    roles = Path(__file__).parents[2] / "roles"
    found = set()
    for folder in ("tasks", "vars"):
        for path in roles.glob(f"*/{folder}/*.yml"):
            found |= set(
                re.findall(r'^ +name: "\{\{ \w+_federation \}\}-([a-z-]+)"', path.read_text(), re.MULTILINE)
            )
    assert found == set(settings.PARTS)


def test_a_path_may_begin_with_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    paths = {"app": "~/app", "trace": "~/t.csv", "fl_data_dir": "~/data", "grafana_archive": "~/g.tar"}
    values = {**cast("run", paths)[0], **cast("throttle", paths)[0], **cast_inventory(paths)[0]}
    assert {name: values[name] for name in paths} == {
        name: path.replace("~", "/home/ada") for name, path in paths.items()
    }
    for table in [*VERBS.values(), INVENTORY]:  # those on the machines are named from their root
        for variable in table.values():
            about_files = re.search(r"path|FILE|/|_dir", f"{variable.example} {variable.name}")
            if variable.kind == "text" and about_files and not variable.pattern:
                assert variable.example.startswith("/"), variable.name


def empty_values():
    """Every variable that no value is refused for, each with the function that judges it."""
    for verb, table in VERBS.items():
        for variable in table.values():
            yield pytest.param(variable, partial(cast, verb), id=f"{verb} {variable.name}")
    for variable in INVENTORY.values():
        yield pytest.param(variable, cast_inventory, id=variable.name)


@pytest.mark.parametrize(("variable", "judge"), list(empty_values()))
def test_an_empty_value_is_refused_unless_it_means_the_default(variable, judge):
    """-e cpu=$CPU, where the shell knows no CPU: nothing that was typed is passed over without a word."""
    findings = judge({variable.name: ""})[1]
    if variable.empty:
        assert findings == []
    else:
        assert only(findings).startswith(variable.name)
        assert "type" in str(findings[0]).lower()


def test_inventory_variables_become_typed_and_others_stay_away():
    values, findings = cast_inventory(
        {"fl_client_memory": "1g", "fl_port": "9192", "fl_data_dir": "", "x": 1}
    )
    assert findings == []
    assert values == {"fl_client_memory": 1 << 30, "fl_port": 9192}
