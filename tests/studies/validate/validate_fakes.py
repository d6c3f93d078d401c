"""A small suite, results whose figures are known beforehand, and a bench that measures nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from stanza_sim.studies.validate.records import CaseResult, Measured, Predicted
from stanza_sim.studies.validate.suite import Case

SUITE = """\
name: small
bounds: {median: 2, p90: 4, max: 8}
repeats: 2
timing: {time: 1s, least: 2, most: 10, warmup: 1}
execute: {compute: emulated}
models:
  alex: {model: alexnet, batch_per_worker: 8, scale: {bytes: 0.01}}
  vgg: {model: vgg16, batch_per_worker: 4, scale: {bytes: 0.01}}
strategies:
  ps: {strategy: parameter_server, settings: {servers: 1}}
  ring: all_reduce
networks:
  fast: {cluster: star, nodes: 4, rate: 500Mbps}
  slow: {cluster: star, nodes: 3, rate: 100Mbps}
cases:
  - {network: [fast, slow], model: alex, strategy: [ps, ring]}
  - {network: fast, model: vgg, strategy: ring}
"""


def predicted(iteration_s: float = 0.1, *, exposed: float = 0.5, servers: int = 0, **parts: float) -> Predicted:
    return Predicted(
        iteration_s=iteration_s,
        exposed_comm_s=exposed * iteration_s,
        parts=parts or {"forward": iteration_s / 2, "all_reduce": iteration_s / 2},
        source="by hand",
        nodes=4,
        servers=servers,
    )


def measured(iteration_s: float = 0.1, *, exposed: float = 0.5, load: float = 0.0, **parts: float) -> Measured:
    return Measured(
        iteration_s=iteration_s,
        iteration_s_min=0.9 * iteration_s,
        iteration_s_max=1.1 * iteration_s,
        exposed_comm_s=exposed * iteration_s,
        parts=parts or {"forward": iteration_s / 2, "all_reduce": iteration_s / 2},
        iterations=10,
        wall_s=1.0,
        load=load,
    )


def result(prediction: Predicted, *measurements: Measured, name: str = "fast/alex/ring", index: int = 0) -> CaseResult:
    network, model, strategy = name.split("/")
    case = Case(index=index, network=network, model=model, strategy=strategy)
    return CaseResult(case=case, predicted=prediction, measured=measurements)


class FakeBench:
    """Predicts 100 ms for every case and measures 100 ms, or `times[case]` of one repeat after the other.

    `log` is what was asked of it, in order; the measurement numbered `fail_at` (from 0) raises `error` instead.
    """

    def __init__(self, *, times: dict[str, list[float]] | None = None) -> None:
        self.log: list[tuple[str, str]] = []
        self.times = times or {}
        self.fail_at: int | None = None
        self.error: BaseException = KeyboardInterrupt()
        self.opened: list[str] = []
        self.count = 0

    def calibrate(self, network: str, cases: list[Case]) -> str:
        assert {c.network for c in cases} == {network}
        self.log.append(("calibrate", network))
        return f"{network} is as it is"

    def predict(self, case: Case) -> Predicted:
        assert ("calibrate", case.network) in self.log
        self.log.append(("predict", case.name))
        return predicted(servers=1 if case.strategy == "ps" else 0)

    @contextmanager
    def open(self, network: str) -> Iterator[None]:
        self.log.append(("open", network))
        self.opened.append(network)
        try:
            yield
        finally:
            self.opened.remove(network)
            self.log.append(("close", network))

    def measure(self, case: Case, prediction: Predicted) -> Measured:
        assert self.opened == [case.network]
        assert prediction.iteration_s == 0.1
        if self.count == self.fail_at:
            raise self.error
        self.count += 1
        self.log.append(("measure", case.name))
        left = self.times.get(case.name)
        return measured(left.pop(0) if left else 0.1)

    def measurements(self) -> list[str]:
        return [name for what, name in self.log if what == "measure"]
