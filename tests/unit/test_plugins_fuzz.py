"""Preflight on values that nobody thought of: whatever is typed, it answers with findings and remedies.

Hypothesis makes the values, always the same ones; FUZZ_EXAMPLES=5000 in the environment tries as many others.
"""

import json
import os
import re
from types import SimpleNamespace
from unittest import mock

import pytest
from ansible import context
from ansible.utils.context_objects import CLIArgs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe.controller import deployment, preflight, profiles, purge
from coldframe.controller.roster import coldframe_roster, coldframe_state_files
from coldframe.controller.settings import CLIENT, CONNECTION, INVENTORY, VERBS, cast
from plugins.action import preflight as action_plugin
from tests.unit.test_plugins_checks import facts

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
BOUNDED = settings(
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
KNOWN, REFERENCE = profiles.known()
ON_DISK = preflight.names_on_disk(preflight.ROOT, preflight.ROLES, "group_vars/all/*.yml")

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "0", "-1", "1e400", "nan", "inf", "null", "None", "true", "[]", "{}", "~", "$X"]
    ),
    st.sampled_from(["{", "[" * 9000, '{"beta": 0.6}', '{"alpha": NaN}', "0x10", "٣", "1_000", "a: b: c"]),
    st.from_regex(r"-?\d{1,400}(\.\d{1,3})?(ms|s|m|h|k|m|g|t|kbit|mbit|gbit|%)?", fullmatch=True),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 20),
    st.sampled_from([10**30, -(10**30), 2**63, 65536]),
    st.floats(),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 3) | TEXTS, inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(
    st.sampled_from(["beta", "num_malicious_nodes", "num_nodes_to_select", "eta", "alpha", "min_samples"])
    | st.sampled_from(["noise_multiplier", "clipping_norm", "num_sampled_clients", "clipped_count_stddev"])
    | st.sampled_from(["epsilon", "delta", "sensitivity", "classes_per_client"]),
    SCALARS,
    max_size=4,
)
ENTRIES = st.lists(
    st.dictionaries(st.sampled_from([*CLIENT, "cpuu"]), VALUES, max_size=3) | VALUES, max_size=3
)


def value_of(variable):
    """A value for a variable: what works, what nearly works, or anything."""
    usual = [st.just(variable.example), VALUES]
    if variable.choices:
        usual.append(st.sampled_from(variable.choices))
    if variable.kind == "dictionary":
        usual += [ARGUMENTS, ARGUMENTS.map(json.dumps)]
    if variable.kind == "entries":
        usual.append(ENTRIES)
    return st.one_of(usual)


def some_of(table):
    """Values for up to four variables of a table."""
    names = st.lists(st.sampled_from(sorted(table)), max_size=4, unique=True)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({name: value_of(table[name]) for name in chosen})
    )


def judge(verb, extra, inventory, folder):
    """What preflight answers for two machines with the inventory's values, and with those of -e."""
    hostvars = {
        name: {
            "coldframe_group_vars_loaded": True,
            "coldframe_controller_state": str(folder),
            "coldframe_profiles": KNOWN,
            "coldframe_reference_speed": REFERENCE,
            "ansible_host": f"192.0.2.{number}",
            **inventory,
            **extra,
            "machine_facts": facts(hostname=name, machine_id=name),
        }
        for number, name in enumerate(("one", "two"), start=1)
    }
    groups = {"fl_machines": ["one", "two"], "fl_server": ["one"], "fl_clients": ["one", "two"]}
    task = SimpleNamespace(args={"verb": verb}, async_val=0, check_mode=False, diff=False, action="preflight")
    parts = dict.fromkeys(
        ("connection", "play_context", "loader", "templar", "shared_loader_obj"), mock.Mock()
    )
    action = action_plugin.ActionModule(task=task, **parts)
    with (
        mock.patch.object(action_plugin, "load_extra_vars", return_value=extra),
        mock.patch.object(preflight, "names_on_disk", return_value=ON_DISK),
        mock.patch.object(deployment.standing, "sources_digest", return_value=""),
        mock.patch.object(action_plugin.display, "display"),
        mock.patch.object(context, "CLIARGS", CLIArgs({})),
    ):
        return action.run(None, {"groups": groups, "hostvars": hostvars}), hostvars


def check(verb, extra, inventory, folder):
    answer, hostvars = judge(verb, extra, inventory, folder)
    assert answer["changed"] is False
    if answer.get("failed"):
        findings, _, closing = answer["msg"].rpartition("\n\n")
        assert closing == "Nothing was changed."
        if findings.startswith("purge=true deletes for good"):
            check_question(verb, extra, findings)
            return
        assert re.match(r"(\w+:\n)?  1\. ", findings)
        assert len(re.findall(r"^     -> \S", findings, re.MULTILINE)) >= 1
        return
    # What passes has to do for what comes next.
    json.dumps(answer["run_config"], allow_nan=False)
    json.dumps(answer["requests"], allow_nan=False)
    coldframe_state_files(coldframe_roster(["one", "two"], hostvars), "coldframe")


def check_question(verb, extra, text):
    """Before a purge there is nothing to mend: it names what will be gone, and what to type for a yes."""
    values, _found = cast("teardown", extra)
    assert (verb, values["purge"], values["yes"]) == ("teardown", True, False)
    lost, _, offer = text.rpartition("\n\n")
    _federation, *lines = lost.split("\n")
    assert len(lines) >= 3 and all(re.match("  - |      ", line) for line in lines), lost
    more = " -e interrupt=true" if values["interrupt"] else ""
    assert offer == f"To delete all of it, type {purge.COMMAND}{more}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.mark.parametrize("extra", [{"purge": "true"}, {"purge": True, "interrupt": True, "yes": "no"}])
def test_the_question_before_a_purge_is_an_answer(folder, extra):
    answer, _ = judge("teardown", extra, {}, folder)
    assert answer["msg"].startswith("purge=true deletes for good")
    check("teardown", extra, {}, folder)


@BOUNDED
@given(verb=st.sampled_from(sorted(VERBS)), inventory=some_of({**INVENTORY, **CONNECTION}))
def test_any_value_in_an_inventory_passes_or_is_found(folder, verb, inventory):
    check(verb, {}, inventory, folder)


@BOUNDED
@given(data=st.data(), verb=st.sampled_from(sorted(VERBS)))
def test_any_value_that_is_typed_passes_or_is_found(folder, verb, data):
    extra = data.draw(some_of({**INVENTORY, **VERBS[verb]}))
    check(verb, extra | data.draw(st.dictionaries(TEXTS, VALUES, max_size=1)), {}, folder)


@BOUNDED
@given(
    strategy=st.sampled_from(VERBS["run"]["fl_strategy"].choices),
    dp=st.sampled_from(VERBS["run"]["fl_dp"].choices),
    arguments=st.tuples(ARGUMENTS, ARGUMENTS, ARGUMENTS),
    more=some_of(VERBS["run"]),
)
def test_any_arguments_of_the_training_pass_or_are_found(folder, strategy, dp, arguments, more):
    names = ("strategy_args", "dp_args", "partitioner_args")
    extra = {**more, "fl_strategy": strategy, "fl_dp": dp, **dict(zip(names, arguments, strict=True))}
    check("run", extra, {}, folder)
