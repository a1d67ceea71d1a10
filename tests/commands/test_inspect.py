"""`aptp plugins`."""

from __future__ import annotations


def test_plugins_are_listed_by_kind(invoke, refusal) -> None:
    everything = invoke("plugins", "list").stdout
    assert "contrastive" in everything
    assert "sinkhorn" in everything
    routers = invoke("plugins", "list", "--kind", "router").stdout
    assert "contrastive" in routers
    assert "sinkhorn" not in routers
    assert "did you mean 'router'" in refusal(invoke("plugins", "list", "--kind", "roter"))


def test_a_plugin_is_shown_with_its_options(invoke, refusal) -> None:
    shown = invoke("plugins", "show", "sinkhorn").stdout
    assert "balancer sinkhorn" in shown
    assert "from aptp.plugins" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert any(row[:5] == ["epsilon", "float,", ">", "0", "0.05"] for row in rows)
    assert "no options" in invoke("plugins", "show", "macs").stdout
    assert "needed" in invoke("plugins", "show", "clip").stdout
    assert "did you mean 'sinkhorn'" in refusal(invoke("plugins", "show", "sinkhor"))
