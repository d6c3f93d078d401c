"""`stanza-sim import infragraph` and `simai` as a user meets them."""

from __future__ import annotations

from pathlib import Path

import stanza_sim
from stanza_sim import load_cluster
from tests.cli.test_cli import call, refused
from tests.importers.test_infragraph import CONNECTIONS
from tests.importers.test_simai import NS3, RAILS

SHIPPED = Path(stanza_sim.__file__).parent / "data" / "devices"


def test_a_simai_topology_is_written_and_predicts(tmp_path: Path) -> None:
    source, target = tmp_path / "Rail_4g_A100", tmp_path / "mine.yaml"
    source.write_text(RAILS)
    done = call("import", "simai", source, "-o", target)
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert (load_cluster(target).name, load_cluster(target).world_size) == ("mine", 4)
    source.write_text(NS3)
    assert "state --device" in refused("import", "simai", source, "-o", target)
    assert load_cluster(target).name == "mine"  # as it was
    done = call("import", "simai", source, "--device", "V100")
    assert done.exit_code == 0 and "devices: [V100]" in done.stdout


def test_a_device_of_one_s_own_lies_beside_the_cluster(tmp_path: Path) -> None:
    source, target = tmp_path / "rail", tmp_path / "out" / "mine.yaml"
    source.write_text(RAILS.replace("A100", "B999"))
    (tmp_path / "out" / "devices").mkdir(parents=True)
    told = refused("import", "simai", source, "-o", target)
    assert "names the GPU 'B999', of which nothing is known" in told
    assert "looked in" in refused("import", "simai", source, "-o", target, "--device", "B999")
    own = (SHIPPED / "P100.yaml").read_text().replace("name: P100", "name: B999")
    (tmp_path / "out" / "devices" / "B999.yaml").write_text(own)
    for more in ((), ("--device", "B999")):
        done = call("import", "simai", source, "-o", target, *more)
        assert done.exit_code == 0, done.output
        assert "devices: [B999, B999]" in target.read_text()
        assert Path(load_cluster(target).hosts[0].devices[0]).name == "B999.yaml"


def test_an_infragraph_asks_for_rates_and_says_what_it_left_out(tmp_path: Path) -> None:
    source, target = tmp_path / "graph.yaml", tmp_path / "mine.yaml"
    source.write_text(CONNECTIONS)
    assert "graph.yaml:12: does not say how fast 'nvlink' is" in refused("import", "infragraph", source, "-o", target)
    assert not target.exists()
    done = call("import", "infragraph", source, "-o", target, "--rate", "nvlink=300GB/s")
    assert done.exit_code == 0, done.output
    assert f"{source}:18: instance 'tor' is of device 'vendor-switch', which is not described" in done.stderr
    assert "# - line 18: instance 'tor'" in target.read_text()
    source.write_text(RAILS)
    assert f"stanza-sim import simai {source}" in refused("import", "infragraph", source)
