"""Tests of coldframe/controller/misplaced.py: one line that helps, and no other about the same word."""

import pytest

from coldframe.controller.misplaced import misplaced

JSON = (
    'Ansible cuts partitioner_args={"alpha": 0.3} at its blanks: '
    'type -e \'{"partitioner_args": {"alpha": 0.3}}\''
)


@pytest.mark.parametrize(
    ("extra", "line", "about"),
    [
        (
            {"alpha": "0.3"},
            "alpha is an argument of partitioner dirichlet or quantity_skew: "
            'type -e partitioner=dirichlet -e \'{"partitioner_args": {"alpha": 0.3}}\'',
            {"alpha"},
        ),
        (
            {"alpha": "0.3", "partitioner": "quantity_skew"},
            "alpha is an argument of partitioner dirichlet or quantity_skew: "
            'type -e \'{"partitioner_args": {"alpha": 0.3}}\'',
            {"alpha"},
        ),
        (
            {"proximal_mu": 1},
            "proximal_mu is an argument of fl_strategy fedprox or fedasync: "
            'type -e fl_strategy=fedprox -e \'{"strategy_args": {"proximal_mu": 1}}\'',
            {"proximal_mu"},
        ),
        # As Ansible has -e partitioner_args='{"alpha": 0.3}'.
        ({"partitioner_args": '{"alpha":', "_raw_params": "0.3}"}, JSON, {"partitioner_args", "_raw_params"}),
        (
            {"rounds": "", "_raw_params": "5"},
            "'5' of -e belongs to no variable: no blanks around =, and a value with blanks in quotes of its "
            "own: -e 'name=\"a b\"'",
            {"_raw_params"},
        ),
    ],
)
def test_what_is_misplaced_gets_the_line_that_helps(extra, line, about):
    findings, names = misplaced("run", extra)
    assert [str(finding) for finding in findings] == [line]
    assert names == about


def test_what_is_typed_well_is_left_alone():
    assert misplaced("run", {"rounds": "3", "partitioner_args": {"alpha": 0.3}, "foo": 1}) == ([], set())
    assert misplaced("status", {"alpha": 0.3}) == ([], set()), "it takes no such variable anywhere"
